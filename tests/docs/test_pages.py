"""The pages agree with the code: keys, messages, links, and examples that run."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from outmodal.data.manifest import Modality
from outmodal.launch.config import load_config
from outmodal.train.methods.base import Context
from tests.docs.knobs import CLASSES, MARK, METHODS, OBJECTIVES, PAGES, filled
from tests.docs.pages import ROOT, blocks, pages

LINK = re.compile(r"\]\(([^)\s]+)\)")
TROUBLE = ROOT / "docs" / "troubleshooting.md"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_method_and_objective_has_a_page(name: str) -> None:
    text = (PAGES / f"{name}.md").read_text("utf-8")
    assert MARK.search(text) is not None
    assert filled(text) == text, "run `python -m tests.docs.knobs`"
    for part in ("**Use it**", "## Run it", "## Keys", "## What it costs"):
        assert part in text
    assert f"({name}.md)" in (PAGES / "README.md").read_text("utf-8")


def test_the_registries_are_not_empty() -> None:
    assert {"cox", "erm", "entmin", "random", "align"} <= set(METHODS)
    assert {"clip", "clip_ib", "siglip", "symile", "gram", "triangle", "ova_ib"} <= set(OBJECTIVES)


@pytest.mark.parametrize("page", pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            path = page.parent / file if file else page
            assert path.exists(), target
            if anchor:
                titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
                slugs = [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles]
                assert anchor in slugs, target


def test_every_page_is_in_the_index() -> None:
    folder = ROOT / "docs"
    index = (folder / "README.md").read_text("utf-8")
    for page in folder.glob("*.md"):
        assert page.name == "README.md" or f"({page.name}" in index, page.name
    assert "docs/README.md" in (ROOT / "README.md").read_text("utf-8")


@cache
def messages() -> tuple[str, ...]:
    """Every text of the package, with a mark where a value is put in."""
    found = []
    for path in sorted((ROOT / "src" / "outmodal").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(_piece(part) for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def _piece(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "\0"


def quoted() -> list[str]:
    """The first cell of each row of the tables of messages."""
    return re.findall(r"^\| `(.+?)` \|", TROUBLE.read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_one_of_the_code(message: str) -> None:
    parts = [re.escape(part.strip()) for part in message.split("...") if part.strip()]
    assert max(map(len, parts)) >= 8, "too short to mean anything"
    wanted = re.compile(".*".join(parts), re.DOTALL)
    assert any(wanted.search(text) for text in messages()), message


def test_many_messages_are_explained() -> None:
    assert len(quoted()) > 40


@pytest.fixture(scope="module")
def extended() -> dict[str, Any]:
    """What the examples of docs/extending.md define."""
    scope: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "extending.md"):
        if block.language != "python":
            continue
        code = f"from __future__ import annotations\n{block.text}"
        scope["__name__"] = "extending"
        exec(compile(code, "extending.md", "exec", dont_inherit=True), scope)
    return scope


def resolved(scope: dict[str, Any], name: str) -> Any:
    """A configuration class whose annotations were text."""
    cls = scope[name]
    cls.model_rebuild(_types_namespace=scope)
    return cls


def test_the_learner_of_the_guide_learns(extended: dict[str, Any]) -> None:
    config = resolved(extended, "AverageLearner")(
        modality="force", dim=5, input={"name": "series", "length": 8, "channels": 3}
    )
    learner = config.build()
    learner(torch.ones(4, 8, 3)).sum().backward()
    assert all(p.grad is not None for p in learner.parameters())
    assert set(learner.backbone.state_dict()) == {"weight", "bias"}


def test_the_objective_of_the_guide_scores(extended: dict[str, Any]) -> None:
    objective = resolved(extended, "AttractConfig")().build(("a", "b"), 4)
    unit = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    held = torch.tensor([True] * 4 + [False] * 2)
    out = objective({"a": unit, "b": -unit}, {"a": held, "b": torch.ones(6, dtype=torch.bool)})
    assert float(out.loss) == pytest.approx(2.0, abs=1e-5)
    assert objective.score({"a": unit}, unit, "b").shape == (6, 6)


def test_the_input_of_the_guide_transforms(extended: dict[str, Any]) -> None:
    config = resolved(extended, "LengthInput")()
    assert Modality(kind="vector", ext="npy", shape=(2,)).kind in config.kinds
    transform = extended["LengthTransform"](config, config.shape)
    assert transform(np.array([3.0, 4.0]), "key").tolist() == [5.0]


def test_the_method_of_the_guide_steps(extended: dict[str, Any]) -> None:
    from outmodal.data.batch import Batch

    run = load_config("erm")
    learner = run.learners[0].build()
    labels = {"train": np.arange(8) % 2, "test": np.arange(4) % 2}
    context = Context(0, 4, ("x", "y"), labels, {}, {"speech": learner}, "train", "test", 1)
    config = resolved(extended, "FocalConfig")(unknown="speech", label_fraction=1.0)
    method = config.build(context)
    shape = learner.config.input.shape
    everywhere = torch.ones(4, dtype=torch.bool)
    batch = Batch(
        index=torch.arange(4),
        label=torch.tensor([0, 1, 0, -1]),
        x={"speech": torch.randn(4, *shape)},
        present={"speech": everywhere},
        valid=everywhere,
    )
    out = method.forward({"labelled": batch}, "train", 0)
    out.loss.backward()
    assert float(out.loss.detach()) > 0
