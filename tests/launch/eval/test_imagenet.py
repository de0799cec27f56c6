"""A classifier on ImageNet's evaluation sets: masked classes, cells of corruptions, refusals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from outmodal.data.corruptions.imagenet_c import ALEXNET
from outmodal.launch.cli import main
from outmodal.train.classes import among, difference
from outmodal.train.published import corruption_errors, mean_error
from tests.data.build.imagenets import NAMES, WNIDS, jpeg, plain_files
from tests.data.build.sources import write

RECIPE = """
data: {{path: {data}, eval_split: val, batch: 8, streams: 2, window: 8}}
optim: {{name: adam, lr: 1.0e-2}}
engine: {{epochs: 2, device: cpu, threads: 1}}
learners:
  - name: resnet
    modality: image
    depth: micro
    stem: 8
    input: {{name: image, size: [16, 16], channels: 3, crop: center, crop_fraction: 0.875,
            interpolation: bicubic}}
method: {{name: erm, unknown: image, label_fraction: 1.0}}
"""
NAMES_OF_CELLS = ("fog", "snow")


@dataclass(frozen=True)
class Made:
    """Folders of data sets, and of a run on the first."""

    imagenet: Path
    r: Path
    c: Path
    run: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("imagenet-eval")
    sources = root / "sources"
    write(sources / "imagenet", plain_files(4))
    write(sources, {"names.txt": NAMES})
    write(sources / "r", {f"{w}/a_{n}.jpg": jpeg(n) for w in WNIDS[1:3] for n in range(5)})
    cells = {
        f"{name}/{severity}/{w}/{n}.JPEG": jpeg(100 * n + severity, (16, 16))
        for name in NAMES_OF_CELLS
        for severity in range(1, 6)
        for n, w in enumerate(WNIDS)
    }
    write(sources / "c", cells)
    found = Made(root / "imagenet", root / "r", root / "c", root / "run")
    build("imagenet", sources / "imagenet", found.imagenet, "--names", str(sources / "names.txt"))
    for kind in ("r", "c"):
        like = ["--like", str(found.imagenet), "--workers", "2"]
        build(f"imagenet-{kind}", sources / kind, root / kind, *like)
    (root / "recipe.yaml").write_text(RECIPE.format(data=found.imagenet))
    assert main(["train", str(root / "recipe.yaml"), "--out", str(found.run)]) == 0
    return found


def build(kind: str, source: Path, out: Path, *more: str) -> None:
    words = ["data", "build", kind, "--source", str(source), "--out", str(out), *more]
    assert main(words) == 0


def evaluated(capfd: pytest.CaptureFixture[str], *words: str) -> Any:
    capfd.readouterr()
    assert main(["eval", *words, "--draws", "50", "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    capfd.readouterr()
    assert main(["eval", *words]) == 2
    return capfd.readouterr().err


def test_the_classes_that_a_set_has_are_chosen_among(
    made: Made, capfd: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(capfd, str(made.run), "--data", str(made.r))
    assert (found["split"], found["samples"]) == ("test", 10)  # the only one there is
    said = [sum(column) for column in zip(*found["confusion"], strict=True)]
    assert said[0] == said[3] == 0
    assert sum(said) == 10
    assert found["settings"]["chosen_among"] == "the data set's 2 of 4"
    assert found["metrics"]["top5"]["value"] == 1.0
    assert main(["eval", str(made.run), "--data", str(made.r), "--draws", "0"]) == 0
    assert "chosen among: the data set's 2 of 4" in capfd.readouterr().out
    whole = evaluated(capfd, str(made.run), "--data", str(made.imagenet))
    assert "chosen_among" not in whole["settings"]
    assert whole["split"] == "val"


def test_cells_of_corruptions(made: Made, capfd: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capfd, str(made.run), "--data", str(made.c), "--task", "corruptions")
    assert (found["split"], found["samples"]) == ("cells", 40)
    metrics = {name: held["value"] for name, held in found["metrics"].items()}
    for name in NAMES_OF_CELLS:
        errors = [1 - metrics[f"{name}/{s}/top1"] for s in range(1, 6)]
        assert metrics[f"{name}/ce"] == pytest.approx(sum(errors) / 5 / ALEXNET[name])
    assert found["metrics"]["fog/ce"]["low"] is not None  # the same pictures in all cells
    assert "mce" not in metrics
    assert "no mCE: 13 of its 15 corruptions are not complete" in found["settings"]["note"]
    assert (made.run / "eval" / "corruptions-imagenet_c-cells.json").is_file()
    part = ("--corruptions", "snow", "--severities", "2", "--most", "3")
    one = evaluated(capfd, str(made.run), "--data", str(made.c), "--task", "corruptions", *part)
    assert set(one["metrics"]) == {"snow/2/top1", "snow/mean/top1"}
    said = refused(
        capfd, str(made.run), "--data", str(made.c), "--task", "corruptions", "--corruptions", "fo"
    )
    assert "has no corruption 'fo'; did you mean 'fog'" in said


def test_corruptions_made_while_reading_are_called_so(
    made: Made, capfd: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(capfd, str(made.run), "--task", "corruptions", "--most", "4")
    assert "mce_on_the_fly" in found["metrics"]
    assert "mce" not in found["metrics"]
    assert "not taken from ImageNet-C (frost is synthetic" in found["settings"]["note"]
    assert sum(name.endswith("/ce_on_the_fly") for name in found["metrics"]) == 15


def test_other_classes_are_refused_with_a_few_words(
    made: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "tree", {f"train/n0000000{n}/x.JPEG": jpeg(n) for n in range(3)})
    build("imagenet", tmp_path / "tree", tmp_path / "other")
    for task in ("classify", "corruptions"):
        said = refused(capfd, str(made.run), "--data", str(tmp_path / "other"), "--task", task)
        assert "has the classes n00000000, n00000001, n00000002 (3), where tench" in said
        assert "(4) were trained on" in said
        assert "are built --like it" in said


def test_a_thousand_classes_are_not_listed() -> None:
    given = [f"n{n:08d}" for n in range(1000)]
    said = difference(given, given[:10])
    assert said is not None
    assert len(said) < 300
    assert difference(given, [*given[:5], "x", *given[6:]]) == (
        "has 1000 classes as were trained on, but calls class 5 'n00000005' where that was 'x'"
    )
    assert difference(given, tuple(given)) is None


def test_corruption_error_by_hand() -> None:
    errors = {name: dict.fromkeys(range(1, 6), 0.5) for name in ALEXNET}
    errors["frost"] = {s: 0.1 * s for s in range(1, 6)}
    errors["spatter"] = errors["fog"]  # counts nowhere
    ce = corruption_errors(errors)
    assert ce["frost"] == pytest.approx(0.3 / 0.826572)
    assert mean_error(ce) == pytest.approx(sum(ce.values()) / 15)
    assert mean_error({name: value for name, value in ce.items() if name != "fog"}) is None
    alexnet = {name: dict.fromkeys(range(1, 6), value) for name, value in ALEXNET.items()}
    assert mean_error(corruption_errors(alexnet)) == pytest.approx(1.0)


def test_logits_of_absent_classes_lose(made: Made) -> None:
    from outmodal.data.manifest import open_dataset

    logits = torch.tensor([[9.0, 1.0, 2.0, 8.0]])
    masked = among(logits, open_dataset(made.r).manifest)
    assert masked.tolist() == [[-torch.inf, 1.0, 2.0, -torch.inf]]
    assert among(logits, open_dataset(made.imagenet).manifest) is logits
