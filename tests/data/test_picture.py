"""Pictures: bytes that travel, and the input that the device makes of them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from outmodal.data.decode import DecodeError, decode
from outmodal.data.draws import Draw
from outmodal.data.encode import encode_npy, encode_png
from outmodal.data.manifest import (
    Dataset,
    Manifest,
    Modality,
    SplitInfo,
    open_dataset,
    write_manifest,
)
from outmodal.data.picture import ImageInput, ImageTransform
from outmodal.data.shards import ShardWriter
from tests.data.pictures import as_file, smooth

JPG = Modality(kind="image", ext="jpg")
KEYS = torch.zeros(2, dtype=torch.int64)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def build(**settings: Any) -> ImageTransform:
    made = ImageInput(**{"size": (28, 20), "channels": 3, "mean": MEAN, "std": STD, **settings})
    transform = made.build(None, "image", None)
    assert isinstance(transform, ImageTransform)
    return transform


def test_bytes_travel_and_the_device_normalises_as_ever() -> None:
    """The order of fp32 operations is part of what runs of earlier versions computed."""
    transform = build()
    x = np.random.default_rng(0).integers(0, 256, (28, 20, 3), dtype=np.uint8)
    compact = transform.compact(x, "k")
    assert (tuple(compact.shape), compact.dtype) == transform.stored == ((28, 20, 3), torch.uint8)
    assert compact.numpy().tobytes() == x.tobytes()
    scaled = x.astype(np.float32) * np.float32(1 / 255)
    wanted = (scaled - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    both = transform.finish(torch.stack([compact, compact]), KEYS)
    assert both.shape == (2, 3, 28, 20)
    assert both.is_contiguous()
    np.testing.assert_array_equal(both[1].numpy(), wanted.transpose(2, 0, 1))
    assert transform(x, "k").equal(both[0])
    assert transform.zeros().dtype == torch.uint8


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stored", [1, 3])
@pytest.mark.parametrize("crop", ["none", "center"])
def test_a_jpeg_is_read_as_its_decoded_pixels_are(channels: int, stored: int, crop: str) -> None:
    transform = build(channels=channels, mean=(0.5,), std=(0.5,), crop=crop)
    data = as_file(smooth(60, 81, stored))
    for spec in (JPG, JPG.model_copy(update={"channels": 3} if stored == 1 else {})):
        x = transform.from_bytes(spec, data, "k")
        assert x.equal(transform.compact(decode(spec, data), "k"))
        assert (tuple(x.shape), x.dtype) == transform.stored
    assert transform.read(JPG, data, "k").equal(transform(decode(JPG, data), "k"))


def test_what_is_no_plain_jpeg_goes_another_way_to_the_same() -> None:
    transform = build()
    for data in (
        as_file(smooth(60, 81), mode="CMYK"),
        as_file(smooth(60, 81), "PNG"),
        as_file(smooth(60, 81), "PNG", mode="P"),
        as_file(smooth(60, 81), progressive=True),
    ):
        assert transform.from_bytes(JPG, data, "k").equal(transform.compact(decode(JPG, data), "k"))
    npy = Modality(kind="image", ext="npy")
    pixels = smooth(60, 81)
    assert transform.from_bytes(npy, encode_npy(pixels), "k").equal(transform.compact(pixels, "k"))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"size": (10, 10)}, r"size \[60, 81\] where the manifest says \[10, 10\]"),
        ({"channels": 1}, "3 channels where the manifest says 1"),
    ],
)
def test_the_manifest_is_kept_to(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        build().from_bytes(JPG.model_copy(update=spec), as_file(smooth(60, 81)), "k")


def test_a_cut_jpeg_is_refused() -> None:
    data = as_file(smooth(60, 81))
    with pytest.raises(DecodeError, match="truncated"):
        build().from_bytes(JPG, data[: len(data) // 2], "k")


def test_the_middle_keeps_the_aspect() -> None:
    pixels = np.zeros((50, 100, 3), np.uint8)
    pixels[:, 40:60] = 255
    whole, middle = build(size=(50, 50)), build(size=(50, 50), crop="center")
    assert int((whole.compact(pixels, "k")[0, :, 0] > 127).sum()) == 10
    assert int((middle.compact(pixels, "k")[0, :, 0] > 127).sum()) == 20
    with pytest.raises(ValueError, match="crop_fraction needs crop: center"):
        ImageInput(crop_fraction=0.9)


def test_drafts_are_smaller_and_nearly_the_same() -> None:
    data = as_file(smooth(400, 600), quality=95)
    exact, draft = build().from_bytes(JPG, data, "k"), build(draft=True).from_bytes(JPG, data, "k")
    assert not exact.equal(draft)
    assert (exact.int() - draft.int()).abs().max() <= 4


def test_crops_are_drawn_by_key_and_epoch_and_never_without_a_draw() -> None:
    transform = build(augment=({"name": "random_resized_crop"},))
    data = as_file(smooth(60, 81))
    draw = Draw(seed=0, epoch=1, view="image")
    assert transform.random
    first = transform.from_bytes(JPG, data, "a", draw)
    assert first.equal(transform.from_bytes(JPG, data, "a", draw))
    assert first.equal(transform.compact(decode(JPG, data), "a", draw))
    assert not first.equal(transform.from_bytes(JPG, data, "b", draw))
    assert not first.equal(transform.from_bytes(JPG, data, "a", Draw(0, 2, "image")))
    assert transform.from_bytes(JPG, data, "a").equal(build().from_bytes(JPG, data, "a"))


def test_it_can_be_sent_to_a_worker() -> None:
    transform = build()
    again = pickle.loads(pickle.dumps(transform))  # noqa: S301
    data = as_file(smooth(60, 81))
    assert again.read(JPG, data, "k").equal(transform.read(JPG, data, "k"))


def write(folder: Path, data: bytes) -> Dataset:
    spec = Modality(kind="image", ext="png")
    folder.mkdir()
    with ShardWriter(folder / "train-000000.tar") as shard:
        shard.add("0", {"depth.png": data, "cls": b"0"})
    splits = {"train": SplitInfo(samples=1, shards=(shard.info,))}
    write_manifest(
        folder, Manifest(name="x", classes=("a",), modalities={"depth": spec}, splits=splits)
    )
    return open_dataset(folder)


def test_sixteen_bits_are_found_and_travel_whole(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (28, 20, 1)).astype(np.uint16)
    cfg = ImageInput(size=(28, 20), mean=(0.0,), std=(1.0,))
    transform = cfg.build(write(tmp_path / "deep", encode_png(deep)), "depth", None)
    assert isinstance(transform, ImageTransform)
    assert transform.settings.bits == 16
    assert transform.stored[1] == torch.int32
    wanted = deep.astype(np.float32) * np.float32(1 / 65535)
    np.testing.assert_array_equal(transform(deep, "k")[0].numpy(), wanted[:, :, 0])
    eight = np.full((28, 20, 1), 255, np.uint8)
    assert transform(eight, "k").min() == 1
    flat = cfg.build(write(tmp_path / "flat", encode_png(eight)), "depth", None)
    assert isinstance(flat, ImageTransform)
    assert flat.settings.bits == 8
    deepest = np.full((28, 20, 1), 65535, np.uint16)
    assert flat.compact(deepest, "k").unique().tolist() == [255]
