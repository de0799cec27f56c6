"""Smaller pictures, everything else as it was."""

from __future__ import annotations

import errno
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from outmodal.data import transcode as module
from outmodal.data.check import check_dataset
from outmodal.data.manifest import (
    Dataset,
    Manifest,
    Modality,
    SplitInfo,
    open_dataset,
    write_manifest,
)
from outmodal.data.shards import ShardWriter, read_shard
from outmodal.data.transcode import shrink, smaller_size, transcode
from outmodal.errors import UserError
from outmodal.launch.commands.transcode import run
from tests.data.pictures import as_file, smooth
from tests.data.tiny import make_tiny

SMALL = as_file(smooth(20, 30), quality=95)
MEMBERS = [
    as_file(smooth(90, 120)),
    as_file(smooth(120, 60, 1)),
    SMALL,
    as_file(smooth(30, 30), mode="CMYK"),
    as_file(smooth(80, 80), "PNG"),
    b"\xff\xd8\xff broken",
]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    folder = tmp_path / "source"
    folder.mkdir()
    splits = {}
    for split, parts in (("train", (MEMBERS[:3], MEMBERS[3:])), ("test", (MEMBERS[:1],))):
        infos = []
        for number, part in enumerate(parts):
            with ShardWriter(folder / f"{split}-{number:06d}.tar") as shard:
                for i, data in enumerate(part):
                    others = {"text.txt": b"words", "json": b"{}", "cls": str(i % 2).encode()}
                    shard.add(f"{split}-{number}-{i}", {"photo.jpg": data, **others})
            infos.append(shard.info)
        splits[split] = SplitInfo(samples=sum(len(p) for p in parts), shards=tuple(infos))
    modalities = {
        "photo": Modality(kind="image", ext="jpg"),
        "text": Modality(kind="text", ext="txt"),
    }
    write_manifest(
        folder, Manifest(name="some", classes=("a", "b"), modalities=modalities, splits=splits)
    )
    return open_dataset(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_pictures_shrink_and_nothing_else_changes(dataset: Dataset, tmp_path: Path) -> None:
    done = transcode(dataset, tmp_path / "out", side=40)
    assert (done.written, done.kept, done.broken) == (5, 1, 1)
    made = open_dataset(tmp_path / "out")
    assert made.manifest.classes == dataset.manifest.classes
    assert made.manifest.modalities == dataset.manifest.modalities
    found = {}
    for split, info in dataset.manifest.splits.items():
        for old, new in zip(info.shards, made.split(split).shards, strict=True):
            olds, news = read_shard(dataset.shard(old)), read_shard(made.shard(new))
            for (_, key, before), (_, again, after) in zip(olds, news, strict=True):
                assert key == again
                assert {k: v for k, v in before.items() if k != "photo.jpg"} == {
                    k: v for k, v in after.items() if k != "photo.jpg"
                }
                found[key] = after["photo.jpg"]
    assert found["train-0-2"] == SMALL
    assert found["train-1-2"] == MEMBERS[5]
    with Image.open(io.BytesIO(found["train-0-0"])) as image:
        assert (image.size, image.mode, image.format) == ((53, 40), "RGB", "JPEG")
    with Image.open(io.BytesIO(found["train-0-1"])) as image:
        assert (image.size, image.mode) == ((40, 80), "L")
    for key in ("train-1-0", "train-1-1"):
        with Image.open(io.BytesIO(found[key])) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
    assert done.bytes_after == sum(s.bytes for i in made.manifest.splits.values() for s in i.shards)
    assert [p.key for p in check_dataset(made, 0).problems] == ["train-1-2"]


def test_bytes_do_not_depend_on_the_workers_and_a_rest_is_gone_on_with(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcode(dataset, tmp_path / "one", side=40)
    transcode(dataset, tmp_path / "two", side=40, workers=2)
    wanted = contents(tmp_path / "one")
    assert contents(tmp_path / "two") == wanted

    class Killed(Exception):
        pass

    def killed(done: int, total: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        transcode(dataset, tmp_path / "three", side=40, progress=killed)
    assert not (tmp_path / "three" / "dataset.json").exists()
    monkeypatch.setattr(module, "shrink", _only_the_last)
    transcode(dataset, tmp_path / "three", side=40)
    assert contents(tmp_path / "three") == wanted


def _only_the_last(data: bytes, side: int, quality: int) -> bytes:
    assert data == MEMBERS[0], "a finished shard was read again"
    return shrink(data, side, quality)


def test_folders_of_other_things_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is the data set itself"):
        transcode(dataset, dataset.root)
    other = make_tiny(tmp_path / "tiny", samples=4, shards=1)
    with pytest.raises(UserError, match="holds a data set"):
        transcode(dataset, other.root)
    transcode(dataset, tmp_path / "out", side=40)
    with pytest.raises(UserError, match="side was 40 and is now 41"):
        transcode(dataset, tmp_path / "out", side=41)


def test_what_is_no_jpeg_is_named_to_become_one(tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "tiny", samples=4, shards=1)
    with pytest.raises(UserError, match=r"no JPEG pictures .*image \(png\).*--modality"):
        transcode(tiny, tmp_path / "out")
    with pytest.raises(UserError, match="no pictures of the name 'imag'"):
        transcode(tiny, tmp_path / "out", modalities=["imag"])
    done = transcode(tiny, tmp_path / "out", side=8, modalities=["image"])
    made = open_dataset(tmp_path / "out")
    assert done.written == 16
    assert made.modality("image") == Modality(kind="image", ext="jpg", channels=1, size=(8, 8))
    assert check_dataset(made, 0).ok


def test_a_full_disk_is_said(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: ShardWriter, key: str, members: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self.path))

    monkeypatch.setattr(ShardWriter, "add", full)
    with pytest.raises(UserError, match="No space left on device; free space"):
        transcode(dataset, tmp_path / "out", side=40)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_damaged_shard_stops_it(dataset: Dataset, tmp_path: Path) -> None:
    cut = shutil.copytree(dataset.root, tmp_path / "cut")
    file = cut / "train-000000.tar"
    file.write_bytes(file.read_bytes()[:3000])
    file.with_name(f"{file.name}.index").unlink(missing_ok=True)
    broken = open_dataset(cut, verify=False)
    with pytest.raises(UserError, match=r"train-000000\.tar.*--repair"):
        transcode(broken, tmp_path / "out", side=40)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (375, 500, (256, 341)),
        (500, 375, (341, 256)),
        (256, 999, (256, 999)),
        (300, 300, (256,) * 2),
    ],
)
def test_sizes(height: int, width: int, expected: tuple[int, int]) -> None:
    assert smaller_size(height, width, 256) == expected


def test_sixteen_bits_stay(tmp_path: Path) -> None:
    deep = np.zeros((300, 300, 1), np.uint16)
    file = io.BytesIO()
    Image.fromarray(deep[:, :, 0]).save(file, "PNG")
    with pytest.raises(module.DecodeError, match="16 bits"):
        shrink(file.getvalue(), 256, 90)


def test_the_command(dataset: Dataset, tmp_path: Path) -> None:
    out = run([str(dataset.root), "--out", str(tmp_path / "out"), "--side", "40"])
    assert out.data["written"] == 5
    assert "5 pictures made smaller, 1 left as they are" in out.text
    assert "1 pictures cannot be decoded" in out.text
    for argv, words in (
        ([], "--dataset"),
        (["a", "b", "--out", "x"], "name one data set"),
        ([str(dataset.root)], "--out names"),
        ([str(dataset.root), "--out", "x", "--side", "2"], "--side must be"),
        ([str(dataset.root), "--out", "x", "--quality", "0"], "--quality must be"),
    ):
        with pytest.raises(UserError, match=words):
            run(argv)
