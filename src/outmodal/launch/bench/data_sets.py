"""Data sets that the data benchmark makes for itself, the same bytes for the same settings."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from outmodal.data.encode import encode_npy
from outmodal.data.manifest import (
    Dataset,
    Manifest,
    Modality,
    SplitInfo,
    open_dataset,
    write_manifest,
)
from outmodal.data.shards import ShardWriter

SHARDS = 8
RATE = 16_000
SECONDS = 2.0
FRAMES = 32
SOUND_FORMATS = {"wav": None, "flac": None, "ogg": "VORBIS", "opus": "OPUS"}
ABOUT_PHOTOS = (
    "two photographs that scikit-learn ships, cropped at random to 500 x 375, their brightness "
    "changed, with sensor noise, as JPEG 4:2:0 of quality 85 to 92"
)

Encode = Callable[[np.random.Generator], bytes]


def photo_set(folder: Path, samples: int, seed: int = 0) -> Dataset:
    """JPEGs like photographs of ImageNet's usual size: see ABOUT_PHOTOS."""
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(image) for image in load_sample_images().images]
    spec = Modality(kind="image", ext="jpg", channels=3)
    return _write(folder, "image", spec, samples, seed, lambda rng: _photo(photos, rng))


def _photo(photos: list[Image.Image], rng: np.random.Generator) -> bytes:
    photo = photos[int(rng.integers(len(photos)))]
    tall = int(rng.integers(280, photo.height + 1))
    wide = min(tall * 4 // 3, photo.width)
    left = int(rng.integers(photo.width - wide + 1))
    top = int(rng.integers(photo.height - tall + 1))
    part = photo.resize(
        (500, 375), Image.Resampling.BICUBIC, box=(left, top, left + wide, top + tall)
    )
    pixels = np.asarray(part, np.float32) * rng.uniform(0.7, 1.2)
    pixels += rng.standard_normal(pixels.shape, np.float32) * 3
    file = io.BytesIO()
    quality = int(rng.integers(85, 93))
    noisy = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    noisy.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()


def sound_set(folder: Path, ext: str, samples: int, seed: int = 0) -> Dataset:
    """Mono sounds of SECONDS at RATE (48 kHz for opus, which knows no other), tones with noise."""
    rate = 48_000 if ext == "opus" else RATE

    def encode(rng: np.random.Generator) -> bytes:
        time = np.arange(int(SECONDS * rate)) / rate
        tones = sum(np.sin(2 * np.pi * rng.uniform(80, 2000) * time) for _ in range(4))
        wave = 0.1 * tones + 0.02 * rng.standard_normal(len(time))
        file = io.BytesIO()
        container = "OGG" if ext in ("ogg", "opus") else ext.upper()
        soundfile.write(file, wave, rate, format=container, subtype=SOUND_FORMATS[ext])
        return file.getvalue()

    return _write(folder, "sound", Modality(kind="audio", ext=ext), samples, seed, encode)


def film_set(folder: Path, samples: int, seed: int = 0) -> Dataset:
    """MPEG-4 films of FRAMES frames, 160 x 128, in which a picture moves."""
    spec = Modality(kind="video", ext="mp4")
    return _write(folder, "film", spec, samples, seed, _film)


def _film(rng: np.random.Generator) -> bytes:
    coarse = rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(coarse).resize((256, 200), Image.Resampling.BICUBIC))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream: Any = out.add_stream("mpeg4", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        stream.thread_count = 1
        for step in range(FRAMES):
            part = np.ascontiguousarray(scene[step : step + 128, 2 * step : 2 * step + 160])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(part, format="rgb24")))
        out.mux(stream.encode())
    return file.getvalue()


def array_set(folder: Path, samples: int, seed: int = 0) -> Dataset:
    """Series [256, 16] of float32 in npy."""
    spec = Modality(kind="series", ext="npy", shape=(256, 16))
    return _write(folder, "series", spec, samples, seed, _series)


def _series(rng: np.random.Generator) -> bytes:
    values: NDArray[np.float32] = rng.standard_normal((256, 16), np.float32)
    return encode_npy(values)


def _write(
    folder: Path, modality: str, spec: Modality, samples: int, seed: int, encode: Encode
) -> Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    infos = []
    for number, part in enumerate(np.array_split(np.arange(samples), SHARDS)):
        rng = np.random.default_rng((seed, number))
        with ShardWriter(folder / f"train-{number:06d}.tar") as shard:
            for position in part.tolist():
                member = {f"{modality}.{spec.ext}": encode(rng)}
                shard.add(f"{position:06d}", {**member, "cls": b"0"})
        infos.append(shard.info)
    split = SplitInfo(samples=samples, shards=tuple(infos))
    manifest = Manifest(
        name="bench", classes=("thing",), modalities={modality: spec}, splits={"train": split}
    )
    write_manifest(folder, manifest)
    return open_dataset(folder)
