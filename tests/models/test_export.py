"""Exports: what lies in the folder, that it loads without outmodal, all of it or nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer

from outmodal.data.manifest import Dataset
from outmodal.errors import UserError
from outmodal.models import export as export_module
from outmodal.models.export import export_encoder
from outmodal.models.export_folder import RECORD, load_export
from outmodal.models.features import feature_norm, unit_norm
from outmodal.models.reload_check import compare, reload_check
from tests.data.tiny import make_tiny
from tests.models.encoders import CARD, LEARNERS, OURS, THEIRS, export, head_for, make


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def edit_record(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(content | changes))


def difference(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max())


@pytest.mark.parametrize("head", ["none", "linear", "linear_ln", "mlp", "mlp3"])
@pytest.mark.parametrize("name", LEARNERS)
def test_what_is_loaded_gives_what_was_trained(
    name: str, head: str, dataset: Dataset, tmp_path: Path
) -> None:
    learner, transform, x = make(name, dataset)
    g = head_for(learner, head)
    folder = export_encoder(
        learner,
        transform,
        tmp_path / "out",
        head=g,
        classifier=None,
        classes=("a", "b"),
        card=CARD,
        sample_inputs=x,
    )
    learner.eval()
    with torch.no_grad():
        r = learner(x)
        e = r if g is None else g(r)
    found, check = load_export(folder).outputs(x), load_file(folder / "check.safetensors")
    for stored in (found, check):
        assert difference(stored["repr"], r) <= 1e-5
        assert difference(stored["embedding"], e) <= 1e-5
    assert difference(check["embedding_unit"], unit_norm(e)) <= 1e-5
    assert sorted(found) == ["embedding", "repr"]


@pytest.mark.parametrize("name", THEIRS)
def test_plain_transformers_gives_the_same_without_outmodal(
    name: str, dataset: Dataset, tmp_path: Path
) -> None:
    folder = export(name, dataset, tmp_path / "out", "mlp", classify=True)
    differences = compare(folder)
    assert sorted(differences) == ["embedding", "embedding_unit", "logits", "repr"]
    assert max(differences.values()) <= 1e-5


def test_every_head_is_known_without_outmodal(dataset: Dataset, tmp_path: Path) -> None:
    for head in ("none", "linear", "linear_ln", "mlp3"):
        folder = export("vit", dataset, tmp_path / head, head, classify=True)
        assert max(compare(folder).values()) <= 1e-5


@pytest.mark.parametrize("head", ["none", "linear", "linear_ln", "mlp", "mlp3"])
@pytest.mark.parametrize("name", ["vit", "mlp"])
def test_head_and_classifier_are_two_lines_each(
    name: str, head: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export(name, dataset, tmp_path / "out", head, classify=True)
    section = (folder / "README.md").read_text().split("### Head and classifier alone\n")[1]
    code = section.split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) == 3 + 2 * (2 if head != "none" else 1)
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), scope)
    check = load_file(folder / "check.safetensors")
    with torch.no_grad():
        e = check["repr"] if head == "none" else scope["head"](check["repr"])
        logits = scope["classifier"](feature_norm(e, "l2_sqrtd"))
    assert difference(e, check["embedding"]) <= 1e-5
    assert difference(logits, check["logits"]) <= 1e-5


def test_a_fresh_process_confirms_the_export(dataset: Dataset, tmp_path: Path) -> None:
    folder = export("bert_mean", dataset, tmp_path / "out", classify=True)
    assert reload_check(folder) <= 1e-5
    check = load_file(folder / "check.safetensors")
    check["repr"][0, 0] += 0.5
    save_file(check, folder / "check.safetensors")
    assert compare(folder)["repr"] == pytest.approx(0.5, abs=1e-3)


def test_a_fresh_process_that_fails_is_reported(dataset: Dataset, tmp_path: Path) -> None:
    folder = export("vit", dataset, tmp_path / "out")
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no torch here >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(RuntimeError, match=r"reloading .*out failed: no torch here"):
        reload_check(folder, str(broken))


@pytest.mark.parametrize("name", LEARNERS)
def test_the_program_in_the_model_card_runs_as_it_stands(
    name: str,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = export(name, dataset, tmp_path / "out", "mlp", classify=True)
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert found is not None
    check = load_file(folder / "check.safetensors")
    scope: dict[str, Any] = {"x": check["inputs"]}
    monkeypatch.chdir(folder)
    exec(compile(found[1], "README.md", "exec"), scope)
    if name in OURS:
        assert difference(scope["outputs"]["logits"], check["logits"]) <= 1e-5
    else:
        assert difference(scope["logits"], check["logits"]) <= 1e-4
        printed = [float(v) for v in re.findall(r"tensor\(([^)]*)\)", capsys.readouterr().out)]
        assert len(printed) == 2
        assert max(printed) <= 1e-5


def test_the_preprocessor_is_the_one_that_transformers_loads(
    dataset: Dataset, tmp_path: Path
) -> None:
    image = export("vit", dataset, tmp_path / "image")
    assert AutoImageProcessor.from_pretrained(image).size["height"] == 12
    mel = export("vit_mel", dataset, tmp_path / "mel")
    assert AutoFeatureExtractor.from_pretrained(mel).sampling_rate == 8000
    text = export("bert", dataset, tmp_path / "text")
    ids = AutoTokenizer.from_pretrained(text)("a red thing", padding="max_length", max_length=10)
    transform = load_export(text).transform()
    assert ids["input_ids"] == transform("a red thing", "k").tolist()


WITHOUT_US = """
import sys
sys.modules["outmodal"] = None  # an import of it fails
import numpy as np, torch
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel
picture = np.zeros((12, 12, 1), np.uint8)
pixels = AutoImageProcessor.from_pretrained(sys.argv[1])(picture, return_tensors="pt").pixel_values
with torch.no_grad():
    print(AutoModel.from_pretrained(sys.argv[1])(pixels).last_hidden_state.isfinite().all().item())
print(AutoFeatureExtractor.from_pretrained(sys.argv[2]).sampling_rate)
"""


def test_model_and_preprocessors_load_in_a_process_without_outmodal(
    dataset: Dataset, tmp_path: Path
) -> None:
    folders = [str(export(name, dataset, tmp_path / name)) for name in ("vit", "vit_mel")]
    done = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_US, *folders],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["True", "8000"]


def test_the_record_says_what_is_needed_to_use_the_folder(dataset: Dataset, tmp_path: Path) -> None:
    folder = export("vit", dataset, tmp_path / "out", classify=True)
    record = json.loads((folder / RECORD).read_text())
    assert {k: record[k] for k in ("format", "modality", "kind", "pool")} == {
        "format": 1,
        "modality": "image",
        "kind": "image",
        "pool": "cls",
    }
    assert (record["repr_dim"], record["embed_dim"]) == (32, 6)
    assert record["classes"] == ["red", "green", "blue"]
    assert record["forward"] == {"argument": "pixel_values", "pad_token": None}
    assert sorted(record["files"]) == [
        "check.safetensors",
        "classifier.safetensors",
        "config.json",
        "head.safetensors",
        "model.safetensors",
        "preprocessor_config.json",
    ]


def test_what_was_measured_on_the_data_set_is_in_the_record(
    dataset: Dataset, tmp_path: Path
) -> None:
    loaded = load_export(export("mlp", dataset, tmp_path / "out"))
    transform = LEARNERS["mlp"].input.build(dataset, "force", None)
    assert loaded.info.input == transform.config
    assert loaded.transform().config == transform.config
    assert loaded.info.learner.input == transform.config


def test_paths_of_the_training_machine_stay_there(dataset: Dataset, tmp_path: Path) -> None:
    saved = tmp_path / "tokenizer"
    LEARNERS["bert"].input.build(dataset, "text", None).save(saved)
    tokens = LEARNERS["bert"].input.model_copy(update={"tokenizer": saved})
    learner, _, x = make("bert", dataset)
    folder = export_encoder(
        learner,
        tokens.build(dataset, "text", None),
        tmp_path / "out",
        head=None,
        classifier=None,
        classes=(),
        card=CARD,
        sample_inputs=x,
    )
    assert str(tmp_path) not in (folder / RECORD).read_text()
    assert str(tmp_path) not in (folder / "config.json").read_text()


def test_the_card_tells_data_method_metrics_limits_perceptors_and_command(
    dataset: Dataset, tmp_path: Path
) -> None:
    text = (export("vit", dataset, tmp_path / "out") / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: transformers\ntags:\n- outmodal\n")
    for part in (
        "`tiny`",
        "`align`",
        "| accuracy | 0.7500 |",
        "Ten words only.",
        "10 % / drawn",
        "`exported:other@0123456789abcdef`, licence: MIT",
        "outmodal train align --data.path tiny",
        "## Licence",
    ):
        assert part in text


@pytest.mark.parametrize("name", OURS)
def test_architectures_that_transformers_lacks_say_so(
    name: str, dataset: Dataset, tmp_path: Path
) -> None:
    folder = export(name, dataset, tmp_path / "out")
    kind = LEARNERS[name].name  # type: ignore[attr-defined]
    assert json.loads((folder / "config.json").read_text())["model_type"] == f"outmodal-{kind}"
    assert f"`outmodal-{kind}`" in (folder / "README.md").read_text()
    with pytest.raises(UserError, match=f"transformers has no '{kind}', only outmodal"):
        reload_check(folder)


def test_the_trained_encoder_is_left_as_it_was(dataset: Dataset, tmp_path: Path) -> None:
    learner, transform, x = make("resnet", dataset)
    learner.train().bfloat16()
    state = torch.random.get_rng_state()
    folder = export_encoder(
        learner,
        transform,
        tmp_path / "out",
        head=None,
        classifier=None,
        classes=(),
        card=CARD,
        sample_inputs=x,
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert learner.training
    assert next(learner.parameters()).dtype == torch.bfloat16
    assert all(p.requires_grad for p in learner.parameters())
    assert AutoModel.from_pretrained(folder).dtype == torch.float32


def test_a_folder_that_exists_is_refused_and_replaced_only_when_asked(
    dataset: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export("mlp", dataset, out)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"out exists: .*--force"):
        export("mlp", dataset, out, seed=1)
    assert (out / "model.safetensors").read_bytes() == before
    export("mlp", dataset, out, seed=1, force=True)
    assert (out / "model.safetensors").read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_force_replaces_nothing_but_exports(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(UserError, match="is no export"):
        export("mlp", dataset, tmp_path, force=True)
    assert (tmp_path / "thesis.txt").exists()


def test_weights_that_are_not_finite_are_not_exported(dataset: Dataset, tmp_path: Path) -> None:
    learner, transform, x = make("mlp", dataset)
    export("mlp", dataset, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(learner.parameters()).fill_(float("nan"))
    with pytest.raises(RuntimeError, match="repr differs by nan"):
        export_encoder(
            learner,
            transform,
            tmp_path / "out",
            head=None,
            classifier=None,
            classes=(),
            card=CARD,
            sample_inputs=x,
            force=True,
        )
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_state_outside_the_weights_is_noticed(dataset: Dataset, tmp_path: Path) -> None:
    learner, transform, x = make("mlp", dataset)
    learner.register_forward_hook(lambda module, args, output: output + 1.0)
    with pytest.raises(RuntimeError, match="differs by 1"):
        export_encoder(
            learner,
            transform,
            tmp_path / "out",
            head=None,
            classifier=None,
            classes=(),
            card=CARD,
            sample_inputs=x,
        )
    assert not list(tmp_path.iterdir())


def test_what_the_run_gives_is_compared_too(dataset: Dataset, tmp_path: Path) -> None:
    learner, transform, x = make("mlp", dataset)
    for shift, name in ((0.0, "repr"), (1e-3, "embedding")):
        with torch.no_grad():
            own = {name: learner.eval()(x) + shift}

        def attempt() -> Path:
            return export_encoder(
                learner,
                transform,
                tmp_path / "out",
                head=None,
                classifier=None,
                classes=(),
                card=CARD,
                sample_inputs=x,
                own=own,  # noqa: B023 - called below
            )

        if shift:
            with pytest.raises(RuntimeError, match=r"embedding differs by 0\.001"):
                attempt()
            assert not list(tmp_path.iterdir())
        else:
            shutil.rmtree(attempt())


def test_a_full_disk_ends_in_one_sentence_and_no_folder(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_module, "save_file", full)
    with pytest.raises(UserError, match=r"cannot write the export .*No space left"):
        export("mlp", dataset, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_classifier_needs_its_normalisation(dataset: Dataset, tmp_path: Path) -> None:
    learner, transform, x = make("mlp", dataset)
    with pytest.raises(ValueError, match="feature_norm"):
        export_encoder(
            learner,
            transform,
            tmp_path / "out",
            head=None,
            classifier=torch.nn.Linear(learner.dim, 2),
            classes=("a", "b"),
            card=CARD,
            sample_inputs=x,
        )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "head.safetensors"])
def test_a_changed_or_missing_file_is_named(name: str, dataset: Dataset, tmp_path: Path) -> None:
    folder = export("vit", dataset, tmp_path / "out")
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name} is not the file that was exported"):
        load_export(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{folder} has no {name}"):
        load_export(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, r"format: expected 1, got 2"),
        ({"format": True}, r"format: expected 1, got True"),
        ({"colour": "red"}, r"colour: Extra inputs"),
        ({"files": {"../config.json": "0"}}, r"'\.\./config.json' is not the plain name"),
    ],
)
def test_a_record_of_another_format_is_refused(
    changes: dict[str, Any], message: str, dataset: Dataset, tmp_path: Path
) -> None:
    folder = export("mlp", dataset, tmp_path / "out")
    edit_record(folder, **changes)
    with pytest.raises(UserError, match=message):
        load_export(folder)


def test_folders_that_are_no_exports_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no export at"):
        load_export(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"has no outmodal.json.*hub"):
        load_export(tmp_path)
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_export(tmp_path)
