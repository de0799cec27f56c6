"""Manifests for tars that other tools wrote."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from outmodal.data.check import check_dataset
from outmodal.data.encode import (
    encode_jpeg,
    encode_mp4,
    encode_npy,
    encode_png,
    encode_text,
    encode_wav,
)
from outmodal.data.index import index_folder
from outmodal.data.manifest import Modality, open_dataset
from outmodal.errors import UserError
from tests.data.tiny import make_tiny

GREY = np.full((6, 8, 1), 9, np.uint8)
COLOUR = np.full((6, 8, 3), 9, np.uint8)


def foreign(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar of GNU format with times and owners, as the command tar writes it."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(data), 1_700_000_000, "someone"
            tar.addfile(info, io.BytesIO(data))
    return path


def test_our_own_shards_give_their_manifest_back(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path, missing={"speech": {0, 5}})
    before = (tmp_path / "dataset.json").read_bytes()
    (tmp_path / "dataset.json").unlink()
    index_folder(tmp_path, name="tiny", classes=["red", "green", "blue"])
    again = open_dataset(tmp_path).manifest
    assert again.splits == dataset.manifest.splits
    assert dict(again.modalities) == dict(dataset.manifest.modalities)
    assert again.model_dump() == dataset.manifest.model_dump()
    assert sorted(before) == sorted((tmp_path / "dataset.json").read_bytes())


def test_foreign_tars_are_indexed_and_pass_the_check(tmp_path: Path) -> None:
    foreign(
        tmp_path / "val_001.tar",
        {
            "a/0.cam.jpg": encode_jpeg(COLOUR),
            "a/0.cls": b"1\n",
            "a/1.Cam.JPG": encode_jpeg(GREY),
            "a/1.json": b"{}",
            "a/1.target.npy": encode_npy(np.ones(2)),
        },
    )
    foreign(tmp_path / "00000.tar", {"x.cam.jpg": encode_jpeg(COLOUR[:4]), "x.cls": b"4"})
    seen: list[tuple[int, int]] = []
    index_folder(tmp_path, progress=lambda done, total: seen.append((done, total)))
    dataset = open_dataset(tmp_path)
    assert dataset.manifest.name == tmp_path.name
    assert dataset.manifest.classes == ("0", "1", "2", "3", "4")
    assert {name: split.samples for name, split in dataset.manifest.splits.items()} == {
        "train": 1,
        "val": 2,
    }
    # Sizes differ, and grey pictures among colour ones become colour.
    assert dataset.modality("cam") == Modality(kind="image", ext="jpg", channels=3)
    assert check_dataset(dataset).problems == ()
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("suffix", "data", "expected"),
    [
        ("png", [encode_png(GREY)] * 2, Modality(kind="image", ext="png", channels=1, size=(6, 8))),
        ("wav", [encode_wav(np.ones(9), 16000)],
         Modality(kind="audio", ext="wav", sample_rate=16000)),
        ("mp4", [encode_mp4(np.zeros((2, 16, 32, 3), np.uint8))],
         Modality(kind="video", ext="mp4", size=(16, 32))),
        ("txt", [encode_text("x")], Modality(kind="text", ext="txt")),
        ("npy", [encode_npy(np.ones(4))], Modality(kind="vector", ext="npy", shape=(4,))),
        ("npy", [encode_npy(np.ones((4, 2)))], Modality(kind="series", ext="npy", shape=(4, 2))),
        ("npy", [encode_npy(np.ones((n, 2))) for n in (4, 5)],
         Modality(kind="series", ext="npy", shape=(-1, 2))),
        ("npy", [encode_npy(COLOUR.astype(np.uint16))],
         Modality(kind="image", ext="npy", channels=3, size=(6, 8))),
        ("npy", [encode_npy(GREY[..., 0])],
         Modality(kind="image", ext="npy", channels=1, size=(6, 8))),
    ],
)  # fmt: skip
def test_kinds_are_guessed(
    tmp_path: Path, suffix: str, data: list[bytes], expected: Modality
) -> None:
    foreign(tmp_path / "train-0.tar", {f"{n}.m.{suffix}": item for n, item in enumerate(data)})
    index_folder(tmp_path)
    dataset = open_dataset(tmp_path)
    assert dataset.modality("m") == expected
    assert dataset.manifest.classes == ()
    assert check_dataset(dataset).ok


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train-000000", "train"), ("imagenet-val_0007", "imagenet-val"), ("0", "train"),
        ("shard-00001", "train"), ("test-shard-3", "test"), ("dev-1-of-4", "dev"), ("eval", "eval"),
        ("my.set-1", "my-set"),
    ],
)  # fmt: skip
def test_splits_follow_the_file_names(tmp_path: Path, file: str, split: str) -> None:
    foreign(tmp_path / f"{file}.tar", {"a.m.txt": b"x"})
    assert list(index_folder(tmp_path).splits) == [split]


def test_what_a_manifest_already_says_is_kept(tmp_path: Path) -> None:
    make_tiny(tmp_path, modalities=("force", "image"))
    text = (tmp_path / "dataset.json").read_text().replace("16,\n        3", "-1,\n        3")
    (tmp_path / "dataset.json").write_text(text.replace('"tiny"', '"mine"'))
    foreign(
        tmp_path / "more-0.tar", {"a.force.npy": encode_npy(np.ones((5, 3))), "a.note.txt": b"x"}
    )
    manifest = index_folder(tmp_path)
    assert manifest.name == "mine"
    assert manifest.classes == ("red", "green", "blue")
    assert manifest.modalities["force"].shape == (-1, 3)
    assert list(manifest.splits) == ["more", "test", "train"]
    assert "note" in manifest.modalities


def test_broken_manifest_is_replaced(tmp_path: Path) -> None:
    make_tiny(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    assert index_folder(tmp_path).classes == ("0", "1", "2")


def test_everything_wrong_is_listed_and_nothing_written(tmp_path: Path) -> None:
    foreign(
        tmp_path / "a-0.tar",
        {
            "0.jpg": b"x", "0.m.xyz": b"x", "1.m.xyz": b"x", "1.n.png": encode_png(GREY),
            "2.n.jpg": encode_jpeg(GREY), "2.cls": b"-4", "3.v.npy": encode_npy(np.ones(3)),
            "4.v.npy": encode_npy(np.ones(4)), "5.w.npy": encode_npy(np.ones((2, 2, 2))),
        },
    )  # fmt: skip
    (tmp_path / "b-0.tar").write_bytes(b"rubbish" * 200)
    foreign(tmp_path / "c 0.tar", {"0.k.txt": b"x"})
    with pytest.raises(UserError) as caught:
        index_folder(tmp_path)
    text = str(caught.value)
    for part in (
        "a-0.tar: sample '0': member 'jpg' must be <modality>.<ext>",
        "a-0.tar: sample '0': member 'm.xyz' must be",
        "sample '2': label -4 is outside",
        "shard b-0.tar:",
        "c 0.tar: rename it",
        "modality 'n' has members of several types",
        "modality 'v': its last axis must be the same everywhere, got [3, 4]",
        "modality 'w': arrays of shape [2, 2, 2]",
    ):
        assert part in text
    assert text.count("m.xyz") == 1
    assert not (tmp_path / "dataset.json").exists()


def test_corrupt_members_are_left_to_the_reader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    foreign(tmp_path / "a-0.tar", {"0.m.png": encode_png(GREY), "1.m.png": b"rubbish"})
    assert index_folder(tmp_path).modalities["m"].size == (6, 8)
    assert "sample '1': m.png" in caplog.text


def test_given_classes_bound_the_labels(tmp_path: Path) -> None:
    foreign(tmp_path / "a-0.tar", {"0.m.txt": b"x", "0.cls": b"2"})
    with pytest.raises(UserError, match=r"a-0\.tar: sample '0': label 2 is outside 0\.\.1"):
        index_folder(tmp_path, classes=["no", "yes"])
    assert index_folder(tmp_path, classes=["a", "b", "c", "d"]).classes == ("a", "b", "c", "d")


def test_folders_without_tars_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        index_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no \.tar$"):
        index_folder(tmp_path)
    (tmp_path / "a-0.tar.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(UserError, match=r"unpack a-0\.tar\.gz"):
        index_folder(tmp_path)
