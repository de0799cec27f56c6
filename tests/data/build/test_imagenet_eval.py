"""Evaluation sets with ImageNet's numbers of classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from outmodal.data.build.imagenet import ImagenetConfig, build_imagenet
from outmodal.data.build.imagenet_eval import ImagenetEvalConfig, build_imagenet_eval, plan_eval
from outmodal.data.build.imagenet_source import REPORT
from outmodal.data.check import check_dataset
from outmodal.data.corruptions.imagenet_c import ALEXNET
from outmodal.errors import UserError
from tests.data.build.imagenets import NAMES, WNIDS, encoded, jpeg, picture, plain_files
from tests.data.build.sources import read_all, write

SOME = (WNIDS[1], WNIDS[3])


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set that runs would be trained on."""
    root = tmp_path_factory.mktemp("imagenet")
    (root / "names.txt").write_text(NAMES)
    source = write(root / "tree", plain_files(1))
    cfg = ImagenetConfig(source=source, names=root / "names.txt")
    return build_imagenet(cfg, root / "out", workers=2).root


def test_a_set_with_some_of_the_classes(tmp_path: Path, imagenet: Path) -> None:
    files: Mapping[str, bytes | str] = {
        **{f"{wnid}/art_{n}.jpg": jpeg(n) for wnid in SOME for n in range(3)},
        "README.txt": "read me",
    }
    source = write(tmp_path / "r", files)
    cfg = ImagenetEvalConfig(kind="r", source=source, like=str(imagenet))
    dataset = build_imagenet_eval(cfg, tmp_path / "out", workers=2)
    manifest = dataset.manifest
    assert (manifest.name, manifest.subset, manifest.wnids) == ("imagenet-r", (1, 3), WNIDS)
    assert manifest.classes[3] == "crane (n03126707)"
    test = read_all(dataset, "test")
    assert test["n01443537_art_0"]["cls"] == b"1"
    assert {int(members["cls"]) for members in test.values()} == {1, 3}
    told = json.loads((dataset.root / REPORT).read_bytes())
    assert "classes: 2, and 200 in the published set" in told["warnings"]
    assert check_dataset(dataset).ok


def test_folders_called_by_numbers_and_sets_of_pngs(tmp_path: Path, imagenet: Path) -> None:
    png = encoded(picture(1), "PNG")
    source = write(tmp_path / "v2", {f"{n}/x.png": png for n in range(4)})
    cfg = ImagenetEvalConfig(kind="v2", source=source, like=str(imagenet))
    dataset = build_imagenet_eval(cfg, tmp_path / "out", workers=2)
    assert (dataset.manifest.subset, dataset.modality("image").ext) == (None, "png")
    held = read_all(dataset, "test")
    assert held["2_x"]["cls"] == b"2"
    assert held["2_x"]["image.png"] == png


def corrupted(root: Path, group: str = "", cells: int = 75) -> Path:
    """A tree of the first cells, with one picture of each of two classes."""
    files: dict[str, bytes | str] = {}
    for n, (name, severity) in enumerate((n, s) for n in ALEXNET for s in range(1, 6)):
        for wnid in SOME if n < cells else ():
            files[f"{group}{name}/{severity}/{wnid}/ILSVRC2012_val_00000001.JPEG"] = jpeg(n)
    return write(root, files)


@pytest.mark.parametrize("group", ["", "all/"])
def test_a_split_for_every_cell(group: str, tmp_path: Path, imagenet: Path) -> None:
    source = corrupted(tmp_path / "c", group)
    plan = plan_eval(ImagenetEvalConfig(kind="c", source=source, like=str(imagenet)))
    assert len(plan.splits) == 75
    assert plan.splits["jpeg_compression-5"] == 2
    orders = {
        tuple(row.label for row in job.rows)
        for job in (plan.source.job(split, 0, 2) for split in plan.splits)  # type: ignore[attr-defined]
    }
    assert len(orders) == 1  # the same pictures in every cell


def test_cells_that_are_missing_are_told(tmp_path: Path, imagenet: Path) -> None:
    source = corrupted(tmp_path / "c", cells=7)
    plan = plan_eval(ImagenetEvalConfig(kind="c", source=source, like=str(imagenet)))
    assert [*plan.splits][-1] == "shot_noise-2"
    notes: Any = plan.source
    assert "68 of the 75 cells are not there" in notes.notes.warnings[0]


MISTAKES = {
    "unknown class": (
        {"n99999999/x.jpg": jpeg(0)},
        "like",
        r"n99999999: none of the 4 classes of .*: expected WordNet ids as n0144.*move the folder",
    ),
    "number too large": (
        {"0/x.jpg": jpeg(0), "4/x.jpg": jpeg(0)},
        "like",
        "/4: none of the 4 classes",
    ),
    "nothing there": ({"x.jpg": jpeg(0)}, "like", "has no folders: expected one for each class"),
    "empty folders": ({"n01440764/x.txt": "x"}, "like", "no pictures in its folders"),
    "no classes": ({"n01440764/x.jpg": jpeg(0)}, "", "--like is missing"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str, tmp_path: Path, imagenet: Path) -> None:
    files, like, message = MISTAKES[name]
    source = write(tmp_path, files)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        plan_eval(ImagenetEvalConfig(kind="r", source=source, like=str(imagenet) if like else ""))


def test_what_a_set_can_be_numbered_by(tmp_path: Path, imagenet: Path) -> None:
    source = write(tmp_path / "r", {f"{SOME[0]}/x.jpg": jpeg(0)})
    (tmp_path / "names.txt").write_text("\n".join(reversed(NAMES.splitlines())))
    plan = plan_eval(ImagenetEvalConfig(kind="r", source=source, names=tmp_path / "names.txt"))
    assert (plan.wnids, plan.subset) == (WNIDS, (1,))
    from tests.data.tiny import make_tiny

    other = make_tiny(tmp_path / "tiny", 4, 1, ("pose",))
    with pytest.raises(UserError, match="does not say the WordNet ids of its classes"):
        plan_eval(ImagenetEvalConfig(kind="r", source=source, like=str(other.root)))
    with pytest.raises(UserError, match="found none"):
        plan_eval(ImagenetEvalConfig(kind="c", source=source, like=str(imagenet)))
