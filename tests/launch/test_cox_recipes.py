"""The commands in the headers of the recipes of COX and its comparators run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import outmodal
from outmodal.launch.cli import main
from tests.docs.scratch import PICTURE, SETS, SPEECH, TEXT, write_set
from tests.models import hub_models

RECIPES = Path(outmodal.__file__).parent / "train" / "recipes"
SMALL = (
    "--data.batch 16 --data.streams 4 --engine.threads 1 --engine.device cpu --engine.max_steps 1"
)
STAND_INS = {
    "$rate": "0.4",
    "$share": "0.4",
    "FEATURES": "features",
    "DATASET": "pairs",
    "0.1": "0.4",
}
TRAINED_FIRST = ("cox-perceptor", "cox-tower")
UNLABELLED = ("aligned", "cox-unsup", "cox-tower")
OTHERS = (
    *("cox", "cox-unsup", "cox-no-connection", "cox-no-exploration", "cox-no-warmup", "cox-rate"),
    *("ssl", "moco", "moco-cox", "freematch", "mixtext", "aligned"),
)


def commands(recipe: str) -> list[str]:
    """The outmodal commands of a recipe's header, one a line, with data that the test has."""
    lines = [line[1:] for line in (RECIPES / f"{recipe}.yaml").read_text("utf-8").splitlines()]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = [line.strip() for line in text.splitlines() if line.strip().startswith("outmodal ")]
    for word, other in STAND_INS.items():
        found = [line.replace(word, other) for line in found]
    return [re.sub(r"\.\.\..*", "--data.path features --out runs/more", line) for line in found]


def run(command: str) -> None:
    """Run a command, training shortly where it trains."""
    words = shlex.split(command)[1:]
    if words[0] == "train":
        connected = words[1].startswith(("cox", "moco-cox")) and words[1] not in TRAINED_FIRST
        words += shlex.split(f"--engine.epochs {2 if connected else 1} {SMALL}")
        if connected and words[1] != "cox-no-warmup":
            words += ["--method.warmup_epochs", "1"]
        if "--method.label_fraction" not in words and words[1] not in UNLABELLED:
            words += ["--method.label_fraction", "0.5"]
    assert main(words) == 0, command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_set(tmp_path / "pairs", {"speech": SPEECH, "image": PICTURE, "text": TEXT})
    return tmp_path


def test_perceptors_of_a_share_of_the_data_and_cox_on_their_features(folder: Path) -> None:
    trained, exported, embedded, connected, fewer = commands("cox-perceptor")
    for modality in ("image", "text"):
        for command in (trained, exported):
            run(command.replace("$m", modality))
    run(embedded)
    run(connected)
    assert (folder / "runs" / "cox-0.4" / "metrics.jsonl").is_file()
    run(fewer.replace("features", "features-0.4"))
    # its tower of speech, with the projection, as the start of a run without labels
    run("outmodal export runs/cox-0.4 --modality speech --to perceptors/speech")
    start = "--method.oom_init perceptor --method.oom_weights perceptors/speech"
    run(f"outmodal train cox-unsup {start} --data.path features-0.4 --out runs/kept")


def test_a_tower_of_other_pairs_starts_a_run_without_labels(folder: Path) -> None:
    trained, exported, embedded, connected = commands("cox-tower")
    run(trained.replace("OTHER", "pairs"))
    for modality in ("image", "text", "speech"):
        run(exported.replace("$m", modality))
    run(embedded)
    run(connected)
    assert (folder / "runs" / "cox-from-tower" / "metrics.jsonl").is_file()


@pytest.mark.long
@pytest.mark.parametrize("recipe", OTHERS)
def test_every_command_of_a_header_runs(folder: Path, recipe: str) -> None:
    write_set(folder / "features", SETS["features"])
    hub_models.clip(folder / "CLIP_FOLDER")
    (folder / "weights").mkdir()
    (folder / "weights" / "clip").symlink_to(folder / "CLIP_FOLDER")
    found = commands(recipe)
    assert found
    for n, command in enumerate(found):
        run(command.replace("runs/more", f"runs/more-{n}"))
