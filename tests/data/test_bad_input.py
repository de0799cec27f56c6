"""Input that is wrong in the ways that real data is: through the loader, and through the check.

Each is either read, or refused with its shard and its key.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.check import CheckReport, check_dataset
from outmodal.data.decode import decode
from outmodal.data.encode import encode_jpeg, encode_npy, encode_png, encode_text, encode_wav
from outmodal.data.index import index_folder
from outmodal.data.manifest import (
    Dataset,
    Manifest,
    Modality,
    SplitInfo,
    open_dataset,
    write_manifest,
)
from outmodal.data.picture import ImageInput
from outmodal.data.shards import ShardWriter, read_shard
from outmodal.data.stream import Loader, StreamConfig
from outmodal.data.transform import Transform, array, as_tensor
from outmodal.errors import UserError
from tests.fuzz.bombs import npy, shaped
from tests.fuzz.containers import tar_of
from tests.fuzz.seeds import seed

GREY = np.full((20, 24, 3), 99, np.uint8)
SHARD = "train-000000.tar"
KINDS: Mapping[str, str] = {
    "png": "image", "jpg": "image", "wav": "audio", "npy": "series", "txt": "text",
}  # fmt: skip


class Length(Transform):
    """Something of any value: the loader has decoded it by then."""

    def __init__(self) -> None:
        super().__init__(ImageInput(), (1,))

    def __call__(self, value: Any, key: str) -> Tensor:
        return as_tensor(np.array([len(value)], np.float32))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "cache"))


def dataset_of(
    root: Path, samples: Mapping[str, Mapping[str, bytes]], modalities: Mapping[str, Modality]
) -> Dataset:
    """A data set of one shard."""
    root.mkdir()
    with ShardWriter(root / SHARD) as shard:
        for key, members in samples.items():
            shard.add(key, members)
    split = SplitInfo(samples=len(samples), shards=(shard.info,))
    manifest = Manifest(
        name="bad", classes=("a", "b"), modalities=dict(modalities), splits={"train": split}
    )
    write_manifest(root, manifest)
    return open_dataset(root)


def pair(root: Path, ext: str, bad: bytes, good: bytes) -> Dataset:
    """A good sample and one with the member in question."""
    name = f"thing.{ext}"
    samples = {"good": {name: good, "cls": b"0"}, "odd": {name: bad, "cls": b"1"}}
    return dataset_of(root, samples, {"thing": Modality.model_validate(
        {"kind": KINDS[ext], "ext": ext})})  # fmt: skip


def load(dataset: Dataset, modality: str = "thing", max_skips: int = 0) -> Batch:
    """One batch of all samples."""
    count = dataset.split("train").samples
    config = StreamConfig(batch=count, streams=1, window=count, max_skips=max_skips)
    spec = StreamSpec("all", "train", (modality,), count)
    inputs: dict[str, Transform] = {modality: Length()}
    with Loader(dataset, inputs, config, rank=0, world=1) as loader:
        (step,) = loader.open_epoch([spec], seed=0, epoch=0, start_step=0, steps=1)
    return step["all"]


def check(dataset: Dataset) -> CheckReport:
    return check_dataset(open_dataset(dataset.root, verify=False))


def refused(dataset: Dataset, reason: str, key: str = "odd") -> None:
    """By the loader and by the check, with shard and key."""
    with pytest.raises(UserError) as caught:
        load(dataset)
    for text in (reason, SHARD, key):
        assert text in str(caught.value)
    (problem,) = check(dataset).problems
    assert (problem.shard, problem.key) == (SHARD, key)
    assert reason in problem.detail


def accepted(dataset: Dataset) -> Batch:
    assert check(dataset).problems == ()
    batch = load(dataset)
    assert bool(batch.valid.all())
    assert bool(batch.present["thing"].all())
    return batch


def test_kinds_that_differ_between_shards(tmp_path: Path) -> None:
    picture, sound = encode_png(GREY), encode_wav(np.ones(80) / 2, 8000)
    (tmp_path / SHARD).write_bytes(tar_of({"a.thing.png": picture}))
    (tmp_path / "train-000001.tar").write_bytes(tar_of({"b.thing.wav": sound}))
    with pytest.raises(UserError, match="several types") as caught:
        index_folder(tmp_path)
    assert "1 .png" in str(caught.value)
    assert f".png first in {SHARD}: sample 'a'" in str(caught.value)
    assert ".wav first in train-000001.tar: sample 'b'" in str(caught.value)


def test_arrays_whose_axes_differ_between_shards(tmp_path: Path) -> None:
    (tmp_path / SHARD).write_bytes(tar_of({"a.thing.npy": encode_npy(np.ones(3))}))
    other = tar_of({"b.thing.npy": encode_npy(np.ones((3, 2)))})
    (tmp_path / "train-000001.tar").write_bytes(other)
    with pytest.raises(UserError, match=r"\[3\], \[3, 2\]") as caught:
        index_folder(tmp_path)
    assert f"1 axes first in {SHARD}: sample 'a'" in str(caught.value)
    assert "2 axes first in train-000001.tar: sample 'b'" in str(caught.value)


def test_a_manifest_that_another_kind_of_shard_disagrees_with(tmp_path: Path) -> None:
    dataset = pair(tmp_path / "d", "png", encode_wav(np.ones(80) / 2, 8000), encode_png(GREY))
    refused(dataset, "not a readable image")


@pytest.mark.parametrize("second", ["thing.jpg", "thing.png"])
def test_two_members_for_one_modality(tmp_path: Path, second: str) -> None:
    dataset = pair(tmp_path / "d", "png", encode_png(GREY), encode_png(GREY))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("good.thing.png", "odd.thing.png", f"odd.{second}"):
            info = tarfile.TarInfo(name)
            data = encode_png(GREY)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (dataset.root / SHARD).write_bytes(buffer.getvalue())
    for path in dataset.root.glob("*.index"):
        path.unlink()
    index_again(dataset)
    refused(open_dataset(dataset.root), "two members for modality 'thing'")


def index_again(dataset: Dataset) -> None:
    """Give the manifest the shard's new bytes and sha256."""
    data = (dataset.root / SHARD).read_bytes()
    (old,) = dataset.manifest.splits["train"].shards
    shard = old.model_copy(update={"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    split = SplitInfo(samples=old.samples, shards=(shard,))
    write_manifest(dataset.root, dataset.manifest.model_copy(update={"splits": {"train": split}}))


def test_keys_that_are_not_ascii(tmp_path: Path) -> None:
    keys = ("grün/übung-01", "日本語", "נתונים", "emoji-🎧", "e\u0301", "k" * 300)
    samples = {key: {"thing.txt": encode_text(key), "cls": b"0"} for key in keys}
    modalities = {"thing": Modality(kind="text", ext="txt")}
    dataset = dataset_of(tmp_path / "d", samples, modalities)
    accepted(dataset)
    assert [key for _, key, _ in read_shard(dataset.root / SHARD)] == list(keys)
    (dataset.root / "dataset.json").unlink()
    assert index_folder(dataset.root).splits["train"].samples == len(keys)
    broken = dict(samples)
    broken["日本語"] = {"thing.txt": b"\xff", "cls": b"0"}
    refused(dataset_of(tmp_path / "e", broken, modalities), "not UTF-8", "日本語")


def test_a_label_file_with_text(tmp_path: Path) -> None:
    samples = {
        "good": {"thing.txt": b"x", "cls": b"0"},
        "odd": {"thing.txt": b"y", "cls": "Köter".encode()},
    }
    dataset = dataset_of(tmp_path / "d", samples, {"thing": Modality(kind="text", ext="txt")})
    refused(dataset, "label 'Köter' is not an integer")
    with pytest.raises(UserError, match=rf"{SHARD}: sample 'odd': label 'Köter'"):
        index_folder(dataset.root)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (shaped("(1,)", "|O") + b"\x80\x04N.", "expected plain numbers"),
        (npy(b"{'descr'", 2, 2**32 - 1), "not a readable npy"),
        (npy(b"{" + b" " * (8 << 20), 2), "not a readable npy"),
        (shaped("(2684354560,)"), "where its header says 10737418240"),
    ],
    ids=["objects", "header of 4 GB, said", "header of 8 MB", "10 GB"],
)  # fmt: skip
def test_arrays_of_objects_and_of_ten_gigabytes(tmp_path: Path, data: bytes, reason: str) -> None:
    dataset = pair(tmp_path / "d", "npy", data, encode_npy(np.ones((3, 2))))
    refused(dataset, reason)


def test_a_moving_png_gives_its_first_frame(tmp_path: Path) -> None:
    dataset = pair(tmp_path / "d", "png", seed("png-moving"), encode_png(GREY))
    assert accepted(dataset).x["thing"].flatten().tolist() == [20, 20]
    with Image.open(io.BytesIO(seed("png-moving"))) as image:
        assert image.n_frames == 3
        image.seek(0)
        first = np.array(image.convert("RGB"))
    frame = array(decode(dataset.modality("thing"), seed("png-moving")), 3)
    np.testing.assert_array_equal(frame, first)


def test_cmyk_jpegs_become_rgb(tmp_path: Path) -> None:
    """Adobe's files hold the inverse of each ink; grey stays grey either way."""
    buffer = io.BytesIO()
    Image.fromarray(GREY).convert("CMYK").save(buffer, "JPEG")
    dataset = pair(tmp_path / "d", "jpg", buffer.getvalue(), encode_jpeg(GREY))
    accepted(dataset)
    pixels = array(decode(dataset.modality("thing"), buffer.getvalue()), 3)
    assert pixels.shape == (20, 24, 3)
    assert np.abs(pixels.astype(int) - 99).max() < 6


def test_jpegs_of_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    dataset = pair(tmp_path / "d", "jpg", seed("jpeg-deep"), encode_jpeg(GREY))
    refused(dataset, "not a readable image")


@pytest.mark.parametrize(
    "make",
    [
        lambda: encode_wav(np.ones(80) / 2, 8000)[:44],
        lambda: riff(b""),
        lambda: b"",
    ],
    ids=["cut behind the header", "no samples", "no bytes"],
)
def test_sound_of_no_length(tmp_path: Path, make: Callable[[], bytes]) -> None:
    dataset = pair(tmp_path / "d", "wav", make(), encode_wav(np.ones(80) / 2, 8000))
    data = make()
    refused(dataset, "empty member" if not data else "no samples" if data == riff(b"") else "WAV")


def riff(samples: bytes) -> bytes:
    """A whole WAV of these bytes."""
    size = len(samples).to_bytes(4, "little")
    head = encode_wav(np.ones(80) / 2, 8000)[8:40]
    return b"RIFF" + (36 + len(samples)).to_bytes(4, "little") + head + size + samples


def test_a_budget_skips_what_is_refused(tmp_path: Path) -> None:
    dataset = pair(tmp_path / "d", "png", b"nothing", encode_png(GREY))
    batch = load(dataset, max_skips=1)
    assert torch.equal(batch.label, torch.tensor([0, 0]))  # the good one stands in
