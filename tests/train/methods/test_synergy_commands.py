"""Synergy by its commands: distances between runs, evaluation, export and report where the helper
is gone, and what is said of a helper or a data set that does not do."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from outmodal.launch.cli import main as cli
from outmodal.launch.config import load_config
from outmodal.launch.report.board import read_board
from outmodal.launch.report.measure import HELPER
from outmodal.launch.running import run_plan
from outmodal.train.run import train
from tests.data.tiny import make_tiny
from tests.launch.report.runs import HEAD
from tests.models.hub_models import bert
from tests.train.plans import lines, losses

RECIPE = (
    HEAD.replace("epochs: 4", "epochs: 2")
    + """
method:
  name: synergy
  unknown: force
  helper: {{name: hub, modality: text, path: {helper}}}
"""
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three runs with a small BERT as the helper, which is gone afterwards."""
    root = tmp_path_factory.mktemp("helped")
    torch.manual_seed(0)
    helper = bert(root / "helper")
    data = make_tiny(root / "data", 64, 4, ("force", "pose"), test=20)
    recipe = root / "recipe.yaml"
    recipe.write_text(RECIPE.format(data=data.root, helper=helper), "utf-8")
    changes = {"plain": ("--method.alpha", "0"), "helped": (), "ideal": ("--seed", "1")}
    for name, more in changes.items():
        out = root / name
        train(run_plan(load_config(str(recipe), ["--out", str(out), *more]), out))
    shutil.rmtree(helper)
    for table in Path(root).rglob("guides/*"):
        table.unlink()
    return {name: root / name for name in changes} | {"root": root}


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "empty"))


@pytest.mark.usefixtures("no_cache")
def test_distances_between_runs_by_the_command(
    runs: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(runs["helped"]), "--task", "latents", "--against", str(runs["plain"])]
    assert cli([*words, "--json"]) == 0
    found = {k: v["value"] for k, v in json.loads(capfd.readouterr().out)["metrics"].items()}
    keys = {"delta_ij", "learner_trained", "target_trained"}
    assert set(found) == {"latent_loss"} | {
        f"{e}/{k}" for e in ("gaussian", "sliced") for k in keys
    }
    assert found["gaussian/target_trained"] < found["gaussian/delta_ij"]
    assert cli([*words, "--proxy", str(runs["ideal"]), "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["settings"]["proxy"] == str(runs["ideal"])
    value = {k: v["value"] for k, v in answer["metrics"].items()}
    assert 0 <= value["gaussian/proxy/alpha_star"] <= 1
    i, j, ij = (value[f"gaussian/{k}"] for k in ("proxy/delta_i", "proxy/delta_j", "delta_ij"))
    formula = 0.5 * (1 + (i**2 - j**2) / ij**2)
    assert value["gaussian/proxy/alpha_star"] == pytest.approx(min(1, max(0, formula)))
    assert value["gaussian/proxy/alpha_star_outside"] == float(not 0 <= formula <= 1)
    assert (runs["helped"] / "eval" / "latents-test.json").is_file()
    last = [r["values"] for r in lines(runs["helped"]) if r["split"] == "diagnostics"][-1]
    assert value["gaussian/target_trained"] == pytest.approx(last["latent/w2"], rel=1e-4)
    assert value["latent_loss"] == pytest.approx(last["latent/loss"], rel=1e-4)
    board = runs["helped"] / "tensorboard" / "latents"
    (events,) = board.glob("events.out.tfevents.*")  # of the second evaluation only
    shown = read_board(events.parent)
    ((step, best),) = shown["latents/gaussian/proxy/alpha_star"]
    assert (step, best) == (8, pytest.approx(value["gaussian/proxy/alpha_star"]))
    assert set(shown) == {f"latents/{name}" for name in value}
    assert "tensor_path" in (board / "projector_config.pbtxt").read_text("utf-8")
    (metadata,) = board.rglob("metadata.tsv")
    head, *points = metadata.read_text("utf-8").splitlines()
    assert head == "set\tclass"
    kinds = Counter(p.split("\t")[0] for p in points)
    assert kinds == {"learner alone": 20, HELPER: 20, "trained": 20}


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "name the one at alpha 0, --against RUN"),
        (("--against", "{plain}", "--data", "{other}"), "leave --data out"),
        (("--against", "{root}"), "is not a run"),
    ],
)
def test_mistakes_of_the_command_are_explained(
    runs: dict[str, Path], more: tuple[str, ...], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    other = runs["root"] / "other"
    if not other.exists():
        make_tiny(other, 32, 2, ("force", "pose"), test=12)
    named = [w.format(**runs, other=other) for w in more]
    assert cli(["eval", str(runs["helped"]), "--task", "latents", *named]) == 2
    assert message in capfd.readouterr().err


@pytest.mark.usefixtures("no_cache")
def test_the_other_tasks_and_the_export_need_no_helper(
    runs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli(["eval", str(runs["helped"]), "--json"]) == 0
    top1 = json.loads(capfd.readouterr().out)["metrics"]["top1"]["value"]
    last = [r["values"] for r in lines(runs["helped"]) if r["split"] == "eval"][-1]
    assert top1 == pytest.approx(last["top1"])
    assert cli(["export", str(runs["helped"]), "--to", str(tmp_path / "out")]) == 0
    assert "hub:helper" in (tmp_path / "out" / "README.md").read_text("utf-8")
    assert cli(["eval", str(tmp_path / "out"), "--data", str(runs["root"] / "data"), "--json"]) == 0
    capfd.readouterr()


@pytest.mark.usefixtures("no_cache")
def test_the_report_shows_learner_helper_and_trained_latents(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    words = ["report", str(runs["plain"]), str(runs["helped"]), "--out", str(page)]
    assert cli(words) == 0
    text = page.read_text("utf-8")
    assert "Embedding map of plain and helped" in text
    held = re.findall(r'<script type="application/json">(.*?)</script>', text)
    shown = [json.loads(content) for content in held]
    (both,) = [f for f in shown if f.get("title") == "Embedding map of plain and helped"]
    assert both["modalities"] == ["learner alone", HELPER, "trained"]
    assert {p[2] for p in both["points"]} == {0, 1, 2}
    for title in ("Latent loss", "W2 of latents and targets, Gaussian estimate"):
        (chart,) = [f for f in shown if f.get("title") == title]
        assert [len(s["points"]) for s in chart["series"]] == [1, 1]


BROKEN = {
    "gone": ("config.json", None, "method.helper: perceptor folder {folder} does not exist"),
    "cut": ("model.safetensors", b"\x10", "{folder}: transformers cannot read its weights"),
    "bare": ("model.safetensors", None, "method.helper: {folder} has no model.safetensors: put"),
}


@pytest.mark.parametrize("how", list(BROKEN))
def test_a_helper_that_cannot_be_opened_is_an_error_that_says_what_to_do(
    tmp_path: Path, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    name, content, message = BROKEN[how]
    folder = tmp_path / "helper"
    if how != "gone":
        bert(folder)
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
    data = make_tiny(tmp_path / "data", 32, 2, ("force",), test=8)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(data=data.root, helper=folder), "utf-8")
    assert cli(["train", str(recipe), "--out", str(tmp_path / "run")]) == 2
    said = capfd.readouterr().err
    assert message.format(folder=folder) in said


def test_level_3_without_a_single_description_ends_before_the_first_step(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_tiny(
        tmp_path / "data", 32, 2, ("force", "pose"), test=8, missing={"pose": range(32)}
    )
    recipe = tmp_path / "recipe.yaml"
    method = "\nmethod: {name: synergy, unknown: force, level: 3, guide: pose}\n"
    recipe.write_text(HEAD.format(data=data.root) + method, "utf-8")
    assert cli(["train", str(recipe), "--out", str(tmp_path / "run")]) == 2
    said = capfd.readouterr().err
    assert "none of 32 samples of split 'train' has 'pose'" in said
    assert "build the data set with it, or name another guide" in said
    assert losses(tmp_path / "run") == []


def test_a_run_against_one_of_another_size_is_refused(
    runs: dict[str, Path], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = runs["root"] / "recipe.yaml"
    text = recipe.read_text("utf-8").replace("unknown: force", "unknown: force\n  dim: 5")
    text = re.sub(r"  helper: .*", "  targets: gaussian", text)
    (tmp_path / "recipe.yaml").write_text(text, "utf-8")
    out = tmp_path / "small"
    train(run_plan(load_config(str(tmp_path / "recipe.yaml"), ["--out", str(out)]), out))
    words = ["eval", str(runs["helped"]), "--task", "latents", "--against", str(out)]
    assert cli(words) == 2
    assert "the latents differ in size" in capfd.readouterr().err
