"""Data that a method cannot learn from: every method, by the command line, ends with exit code 2,
the reason and what to change; or trains, where the method has no use for what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outmodal.launch.cli import main
from tests.data.tiny import make_tiny
from tests.docs.knobs import METHODS
from tests.models import hub_models

CUT = 12
SAMPLES = 2 * CUT
HEAD = """
data: {{path: {data}, batch: {batch}, streams: 1}}
optim: {{name: adam, lr: 1.0e-3}}
engine: {{epochs: 2, max_steps: 1, device: cpu, threads: 1}}
"""
FORCE = (
    "{name: mlp, modality: force, widths: [8], input: {name: series, length: 16, channels: 3, "
    "augment: [{name: jitter}], strong: [{name: scaling}]}}"
)
POSE = "{name: mlp, modality: pose, widths: [8], input: {name: vector, dim: 7}}"
TEXT = (
    "{name: bert, modality: text, size: custom, width: 8, depth: 2, heads: 2, pool: mean, input: "
    "{name: tokens, length: 6, vocab_size: 60, augment: [{name: word_dropout, rate: 0.3}]}}"
)
IMAGE = "{name: mlp, modality: image, input: {name: vector, dim: 7}}"
ONE = "unknown: force, label_fraction: 0.1"
COX = f"{ONE}, known: [pose], vib_hidden: 8, vib_latent: 4, warmup_epochs: 1, boot_epochs: 1"

ALIKE = {  # method -> its learners and keys, where it is not one of fusion
    **dict.fromkeys(("erm", "entmin", "random", "ssl", "freematch"), (FORCE, ONE)),
    "moco": (FORCE, f"{ONE}, queue: 8"),
    "mixtext": (TEXT, "unknown: text, label_fraction: 0.1"),
    "synergy": (FORCE, f"{ONE}, targets: text, level: 3, guide: pose"),
    "cox": (FORCE, COX),
    "moco_cox": (FORCE, f"{COX}, queue: 8"),
    "aligned": ("", "unknown: pose, prompts: {name: hub, modality: text, path: CLIP}"),
}
KEYS = {  # keys of the others, which learn from force and pose
    "unimodal": "modalities: [force]",
    "diagnose_relearn": "holdout: 0.25",
    "ume_mma": "complete_epochs: 1",
}
FEW = "method.label_fraction 0.1 of 3 labelled training samples gives none: raise it"
NO_PAIRS = "none of the 24 training samples has 2 of force, pose"
NO_STEP = "data.batch=8 is more than the 3 samples"
UNLABELLED = "no training sample of class 'black' has a label"
ONE_CLASS = "the data set has 1 class"

DEFECTS = {
    "a modality": dict.fromkeys(  # is found before the method is made
        ("erm", "align", "naive"), "learner for 'image': data set 'tiny' has no such modality"
    ),
    "single class": {
        **dict.fromkeys(METHODS, ONE_CLASS),
        **dict.fromkeys(("cox", "moco_cox"), "method cox needs two classes or more"),
        "align": "",  # needs no classes
    },
    "unlabelled class": {
        **dict.fromkeys(METHODS, "no labelled sample of class 'black' in split 'train'"),
        **dict.fromkeys(set(ALIKE) - {"aligned"}, UNLABELLED),
        **dict.fromkeys(("align", "aligned"), ""),  # learn from no label
    },
    "few": {
        **dict.fromkeys(METHODS, NO_STEP),  # have no share of labels
        **dict.fromkeys(set(ALIKE) - {"aligned"}, FEW),
        "diagnose_relearn": "method.holdout 0.25 holds nothing out",
        "aligned": "",  # takes no step
    },
    "unpaired": {
        **dict.fromkeys(METHODS, NO_PAIRS),
        **dict.fromkeys(ALIKE, ""),
        **dict.fromkeys(("cox", "moco_cox"), "has both 'force' and 'pose', so nothing connects"),
        "synergy": "pairs 'force' with 'pose', and method.level 3 learns from such pairs",
        "ume_mma": NO_PAIRS,
        **dict.fromkeys(("unimodal", "missing_detection"), ""),  # one by one
    },
}
REMEDIES = (
    *("raise it", "add samples", "use a data set", "use a paired data set", "leave it out of"),
    *("set data.batch", "use a larger", "raise method."),
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set for each defect, and a small CLIP."""
    root, held = tmp_path_factory.mktemp("defects"), ("force", "text", "pose")
    there = {"test": 12, "modalities": held}
    make_tiny(root / "a modality", SAMPLES, 2, **there)
    make_tiny(root / "single class", SAMPLES, 2, classes=1, **there)
    make_tiny(root / "unlabelled class", SAMPLES, 2, **there)
    manifest = root / "unlabelled class" / "dataset.json"
    values = json.loads(manifest.read_text("utf-8"))
    manifest.write_text(json.dumps({**values, "classes": [*values["classes"], "black"]}), "utf-8")
    make_tiny(root / "few", 3, 1, test=3, modalities=held)
    apart = {"pose": range(CUT), "force": range(CUT, SAMPLES)}
    make_tiny(root / "unpaired", SAMPLES, 2, missing=apart, **there)
    hub_models.clip(root / "CLIP", projection=7)
    return root


def recipe(method: str, sets: Path, defect: str) -> str:
    learners, keys = ALIKE.get(method, (f"{FORCE}, {POSE}", KEYS.get(method, "")))
    if defect == "a modality":
        learners = f"{learners}, {IMAGE}" if learners else IMAGE
    if defect != "few":
        keys = keys.replace("label_fraction: 0.1", "label_fraction: 0.5")
    section = ", ".join(filter(None, (f"name: {method}", keys.replace("CLIP", f"{sets}/CLIP"))))
    head = HEAD.format(data=json.dumps(str(sets / defect)), batch=8)
    return f"{head}learners: [{learners}]\nmethod: {{{section}}}\n"


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_method_says_what_the_data_lack(
    defect: str, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method, expected in DEFECTS[defect].items():
        file, out = tmp_path / f"{method}.yaml", str(tmp_path / method)
        file.write_text(recipe(method, sets, defect), "utf-8")
        code, said = main(["train", str(file), "--out", out]), capsys.readouterr().err
        assert code == (2 if expected else 0), (method, said)
        if expected:
            (line,) = [ln for ln in said.splitlines() if ln.startswith("outmodal train: ")]
            assert expected in line, method
            assert any(remedy in line for remedy in REMEDIES), line
            assert not (tmp_path / method / "result.json").exists()


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("{name: align, objective: {name: triangle}}", "defined for 3 modalities only, got 2"),
        ("{name: align, modalities: [force, pose, image]}", "method.modalities has 'image'"),
        ("{name: naive, modalities: [force, pose, image]}", "method.modalities has 'image'"),
        ("{name: infobridge, modalities: [force]}", "fuses 2 or more modalities, got force"),
        (f"{{name: cox, {COX.replace('[pose]', '[pose, image]')}}}", "method.known names 'image'"),
        (f"{{name: synergy, {ONE}, level: 3, guide: image}}", "'image'"),
    ],
)
def test_a_method_that_wants_three_modalities_of_two(
    method: str, expected: str, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    head = HEAD.format(data=json.dumps(str(sets / "a modality")), batch=8)
    learners = f"{FORCE}, {POSE}" if "unknown" not in method else FORCE
    file.write_text(f"{head}learners: [{learners}]\nmethod: {method}\n", "utf-8")
    assert main(["train", str(file), "--out", str(tmp_path / "run")]) == 2
    assert expected in capsys.readouterr().err


def test_shares_of_few_samples_without_a_label_fraction(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of unsupervised COX it is the anchors' share; one sample a step is enough for fusion."""
    keys = COX.replace("label_fraction", "select_fraction")
    for section, learners, expected in (
        (f"{{name: cox, setting: unsup, {keys}}}", FORCE, "method.select_fraction 0.1 of 3"),
        ("{name: pmr, fraction: 0.1}", f"{FORCE}, {POSE}", ""),
    ):
        file = tmp_path / "recipe.yaml"
        head = HEAD.format(data=json.dumps(str(sets / "few")), batch=1)
        file.write_text(f"{head}learners: [{learners}]\nmethod: {section}\n", "utf-8")
        code = main(["train", str(file), "--out", str(tmp_path / section[7:10])])
        assert code == (2 if expected else 0)
        assert expected in capsys.readouterr().err
