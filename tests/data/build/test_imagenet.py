"""ImageNet from its tree: classes, labels, awkward files, captions, resuming."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from outmodal.data.build.imagenet import ImagenetConfig, build_imagenet, plan_tree
from outmodal.data.build.imagenet_source import REPORT, TreeShard
from outmodal.data.check import check_dataset
from outmodal.data.decode import decode, open_image
from outmodal.data.manifest import Dataset
from outmodal.errors import UserError
from tests.data.build.imagenets import (
    AWKWARD,
    BLANK,
    NAMES,
    WNIDS,
    awkward_tree,
    flat,
    jpeg,
    plain_files,
    validation,
)
from tests.data.build.jobs import contents
from tests.data.build.sources import read_all, write

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree without surprises, and the names of its classes."""
    root = tmp_path_factory.mktemp("plain")
    (root / "names.txt").write_text(NAMES)
    write(root / "tree", plain_files())
    return root


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The awkward tree, resized to 50 pixels."""
    root = tmp_path_factory.mktemp("awkward")
    cfg = ImagenetConfig(source=awkward_tree(root / "tree"), resize=50, samples_per_shard=8)
    return build_imagenet(cfg, root / "out", workers=2)


def report(dataset: Dataset) -> Any:
    return json.loads((dataset.root / REPORT).read_bytes())


def rows(cfg: ImagenetConfig, split: str) -> dict[str, tuple[int, str | None]]:
    """Key -> (class, caption) of a split in its order, without building it."""
    plan = plan_tree(cfg)
    job = plan.source.job(split, 0, plan.splits[split])
    assert isinstance(job, TreeShard)
    return {row.key: (row.label, row.caption) for row in job.rows}


def test_a_class_without_pictures_keeps_its_number(awkward: Dataset) -> None:
    assert awkward.manifest.wnids == awkward.manifest.classes == WNIDS
    train = read_all(awkward, "train")
    assert {int(members["cls"]) for members in train.values()} == {0, 1, 3}
    assert report(awkward)["empty_folders"] == [f"train/{BLANK}"]


def test_what_is_no_jpeg_becomes_one(awkward: Dataset) -> None:
    train = read_all(awkward, "train")
    for name in ("cmyk", "png", "alpha"):
        with open_image(train[f"n01440764_{name}"]["image.jpg"]) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (40, 30))
        original = AWKWARD[f"train/n01440764/n01440764_{name}.JPEG"]
        assert isinstance(original, bytes)
        spec = awkward.modality("image")
        pair = decode(spec, train[f"n01440764_{name}"]["image.jpg"]), decode(spec, original)
        assert np.abs(np.subtract(*pair, dtype=int)).mean() < 12
    assert report(awkward)["done"] == {"copied": 6, "from CMYK": 1, "from PNG": 2, "resized": 1}


def test_what_is_right_is_copied_byte_for_byte(awkward: Dataset) -> None:
    train = read_all(awkward, "train")
    for name in ("grey", "exif"):
        stored = train[f"n01440764_{name}"]["image.jpg"]
        assert stored == AWKWARD[f"train/n01440764/n01440764_{name}.JPEG"]
    with open_image(train["n03126707_large"]["image.jpg"]) as image:
        assert image.size == (75, 50)
    assert read_all(awkward, "val")["ILSVRC2012_val_00000004"]["cls"] == b"3"
    assert check_dataset(awkward).ok


def test_names_that_cannot_be_keys_or_come_twice(awkward: Dataset) -> None:
    train = read_all(awkward, "train")
    twice = {train[f"n01443537_twice{n}"]["image.jpg"] for n in ("", "-2")}
    assert twice == {AWKWARD["train/n01443537/twice.jpg"], AWKWARD["train/n01443537/twice.JPEG"]}
    assert "n01443537_with_dots_and_spaces" in train
    assert report(awkward)["renamed"] == 1


def test_what_cannot_be_read_is_named_and_what_is_no_picture_counted(awkward: Dataset) -> None:
    told = report(awkward)
    skipped = {Path(one["file"]).stem.split("_")[1]: one["reason"] for one in told["skipped"]}
    assert set(skipped) == {"cut", "zero", "text"}
    assert "truncated" in skipped["cut"]
    assert (told["stray_files"], told["pictures"]) == (3, {"train": 12, "val": 1})
    assert awkward.manifest.splits["train"].samples == 9
    assert any("12, and 1,281,167 in the published set" in line for line in told["warnings"])
    assert any("val: 1, and 50,000" in line for line in told["warnings"])


def test_a_shard_of_which_nothing_is_left(tmp_path: Path) -> None:
    files = plain_files(1) | {"train/n01440764/n01440764_0.JPEG": jpeg(0)[:300]}
    cfg = ImagenetConfig(source=write(tmp_path / "tree", files), samples_per_shard=1)
    dataset = build_imagenet(cfg, tmp_path / "out", workers=2)
    shards = dataset.manifest.splits["train"].shards
    assert sorted(shard.samples for shard in shards) == [0, 1, 1, 1]
    assert check_dataset(dataset).ok
    assert len(read_all(dataset, "train")) == 3


def test_more_broken_files_than_may_be_end_the_build(tmp_path: Path) -> None:
    source, out = awkward_tree(tmp_path / "tree"), tmp_path / "out"
    with pytest.raises(UserError) as caught:
        build_imagenet(ImagenetConfig(source=source, max_broken=2), out, workers=1)
    said = str(caught.value)
    assert "3 pictures cannot be decoded, and --max_broken lets 2 pass" in said
    assert "n01440764_cut.JPEG: not a readable image" in said
    begun = (out / "train-000000.tar").stat().st_mtime_ns
    dataset = build_imagenet(ImagenetConfig(source=source, max_broken=3), out, workers=1)
    assert len(report(dataset)["skipped"]) == 3
    assert (out / "train-000000.tar").stat().st_mtime_ns == begun  # kept


def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path: Path, plain: Path) -> None:
    cfg = ImagenetConfig(source=plain / "tree", resize=20, samples_per_shard=4)
    script = f"""
import os, signal
from pathlib import Path
from outmodal.data.build.imagenet import ImagenetConfig, build_imagenet

def stop(done, total):
    if done >= 4:
        os.kill(os.getpid(), signal.SIGKILL)

cfg = ImagenetConfig.model_validate_json({cfg.model_dump_json()!r})
build_imagenet(cfg, Path({str(tmp_path / "killed")!r}), workers=1, progress=stop)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/dataset.json").exists()
    build_imagenet(cfg, tmp_path / "killed", workers=1)
    build_imagenet(cfg, tmp_path / "whole", workers=2)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    first = read_all(build_imagenet(cfg, tmp_path / "whole"), "train")
    labels = [int(members["cls"]) for members in first.values()]
    assert labels != sorted(labels)  # classes are mixed


def mat(path: Path) -> bytes:
    """meta.mat as the devkit has it: leaves in another order than the alphabet's, then others."""
    from scipy.io import savemat

    ids = [*reversed(WNIDS), "n00001740"]
    table = np.zeros(len(ids), [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    for at, wnid in enumerate(ids):
        table[at] = (at + 1, wnid, "x")
    savemat(path, {"synsets": table})
    return path.read_bytes()


def test_the_forms_of_validation_labels(tmp_path: Path, plain: Path) -> None:
    expected = rows(ImagenetConfig(source=plain / "tree"), "val")
    assert {key: label for key, (label, _) in expected.items()} == {
        validation(label).removesuffix(".JPEG"): label for label in range(4)
    }
    of_number = {int(validation(n)[-13:-5]): n for n in range(4)}
    numbers = [4 - of_number.get(i, 0) for i in range(1, 10)]  # the devkit's order is reversed
    pairs = [(validation(n).removesuffix(".JPEG"), WNIDS[n]) for n in range(4)]
    files: Mapping[str, str] = {
        "ILSVRC2012_validation_ground_truth.txt": "".join(f"{n}\n" for n in numbers),
        "LOC_val_solution.csv": "ImageId,PredictionString\n"
        + "".join(f"{name},{wnid} 85 1 499 272 {wnid} 1 2 3 4\n" for name, wnid in pairs),
        "plain.txt": "".join(f"{name}.JPEG {wnid}\n" for name, wnid in pairs),
        "map_clsloc.txt": "".join(f"{w} {n} x\n" for n, w in enumerate(reversed(WNIDS), 1)),
    }
    source = write(tmp_path / "tree", flat(plain_files(1)))
    write(tmp_path / "kit", {**files, "meta.mat": mat(tmp_path / "m.mat")})
    kit = tmp_path / "kit"
    truth = kit / "ILSVRC2012_validation_ground_truth.txt"
    for labels, synsets in (
        (truth, None),
        (truth, kit / "map_clsloc.txt"),
        (kit / "LOC_val_solution.csv", None),
        (kit / "plain.txt", None),
    ):
        cfg = ImagenetConfig(source=source, val_labels=labels, synsets=synsets)
        assert rows(cfg, "val") == expected
    write(source, {"LOC_val_solution.csv": files["LOC_val_solution.csv"]})
    assert rows(ImagenetConfig(source=source), "val") == expected  # found where it lies


MISTAKES: Mapping[str, tuple[dict[str, bytes | str], dict[str, str], str]] = {
    "a class that train has not": (
        {"val/n99999999/ILSVRC2012_val_00000005.JPEG": jpeg(0)},
        {},
        r"val/n99999999: train has no class n99999999 \(it has 4\): complete train, or remove",
    ),
    "a folder that is no class": (
        {"train/cats/1.JPEG": jpeg(0)},
        {},
        "train/cats: expected folders named by WordNet ids .* `outmodal data build folder`",
    ),
    "names that lack a class": (
        {"n.txt": "n01440764 tench\n"},
        {"names": "n.txt"},
        "has no line for n01443537",
    ),
    "names of another form": (
        {"n.txt": "tench\n"},
        {"names": "n.txt"},
        "line 1: expected a WordNet id and a name, as 'n01440764 tench, Tinca tinca', got 'tench'",
    ),
    "captions of another form": (
        {"c.jsonl": '{"file": "x.JPEG", "caption": 3}\n'},
        {"captions": "c.jsonl"},
        "c.jsonl, line 1: expected JSON as",
    ),
    "no captions": ({}, {"captions": "c.jsonl"}, "cannot be read: No such file"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str, tmp_path: Path) -> None:
    files, options, message = MISTAKES[name]
    source = write(tmp_path, plain_files(1) | files)
    paths = {key: source / value for key, value in options.items()}
    with pytest.raises(UserError, match=message):
        plan_tree(ImagenetConfig(source=source, **paths))  # type: ignore[arg-type]


def test_validation_pictures_without_labels(tmp_path: Path) -> None:
    source = write(tmp_path / "tree", flat(plain_files(1)))
    with pytest.raises(UserError, match="nothing says their classes: name LOC_val_solution"):
        plan_tree(ImagenetConfig(source=source))
    write(tmp_path, {"few.txt": "ILSVRC2012_val_00000007.JPEG n01440764\n", "n.txt": "1\n2\n"})
    with pytest.raises(UserError, match=r"few.txt has 1 lines, and none for ILSVRC2012_val_"):
        plan_tree(ImagenetConfig(source=source, val_labels=tmp_path / "few.txt"))
    with pytest.raises(UserError, match=r"need .*meta.mat, which is not there"):
        plan_tree(ImagenetConfig(source=source, val_labels=tmp_path / "n.txt"))


def test_sources_that_are_none(tmp_path: Path) -> None:
    write(tmp_path / "down", plain_files(1))
    with pytest.raises(UserError, match=r"neither a folder train nor .* did you mean .*down\?"):
        build_imagenet(ImagenetConfig(source=tmp_path), tmp_path.parent / "out")
    with pytest.raises(UserError, match="is no folder"):
        build_imagenet(ImagenetConfig(source=tmp_path / "x"), tmp_path / "out")
    with pytest.raises(UserError, match="lies inside the source"):
        build_imagenet(ImagenetConfig(source=tmp_path / "down"), tmp_path / "down/out")


def test_classes_of_one_name_are_told_apart(plain: Path) -> None:
    plan = plan_tree(ImagenetConfig(source=plain / "tree", names=plain / "names.txt"))
    assert plan.classes == (
        "tench, Tinca tinca",
        "goldfish, Carassius auratus",
        "crane (n02012849)",
        "crane (n03126707)",
    )
    assert plan.wnids == WNIDS


def test_captions_become_texts(tmp_path: Path, plain: Path) -> None:
    lines = [
        {"file": "elsewhere/n01440764/n01440764_0.jpg", "caption": " A fish in a hand. "},
        {"file": "n01440764_1.JPEG", "caption": "A green fish."},
        {"key": "ILSVRC2012_val_00000002", "caption": "Two goldfish."},
        {"file": "nowhere/x.JPEG", "caption": "Nothing."},
    ]
    file = tmp_path / "captions.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    cfg = ImagenetConfig(source=plain / "tree", captions=file, samples_per_shard=20)
    train = {k: caption for k, (_, caption) in rows(cfg, "train").items() if caption}
    assert train == {
        "n01440764_0": "A fish in a hand.",
        "n01440764_1": "A green fish.",
    }
    dataset = build_imagenet(cfg, tmp_path / "out", workers=2)
    assert dataset.modality("text").kind == "text"
    assert read_all(dataset, "val")["ILSVRC2012_val_00000002"]["text.txt"] == b"Two goldfish."
    assert report(dataset)["captions"] == 3
    assert "samples without a caption: 13 of 16" in report(dataset)["warnings"]
    file.write_text('{"file": "y.JPEG", "caption": "A."}\n')
    with pytest.raises(UserError, match=r"none of the 1 captions .* belongs to a picture"):
        build_imagenet(cfg, tmp_path / "other", workers=2)


def test_pixels_of_sixteen_bits_and_palettes() -> None:
    from outmodal.data.build.imagenet_picture import Recipe, standard
    from tests.data.build.imagenets import encoded, picture

    wide = np.linspace(0, 65535, 30 * 40).astype(np.uint16).reshape(30, 40)
    made, what = standard(encoded(Image.fromarray(wide), "PNG"), Recipe())
    assert what == "from PNG"
    with open_image(made) as image:
        assert (image.mode, np.asarray(image).max() > 250) == ("RGB", True)
    palette = encoded(picture(1).convert("P"), "PNG")
    made, what = standard(palette, Recipe("png", 20))
    assert what == "from mode P"
    with open_image(made) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (27, 20))
