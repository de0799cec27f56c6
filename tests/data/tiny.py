"""A tiny labelled data set of five modalities, written with the library's own writers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outmodal.data.encode import encode_npy, encode_png, encode_text, encode_wav
from outmodal.data.manifest import (
    Dataset,
    Manifest,
    Modality,
    ShardInfo,
    SplitInfo,
    open_dataset,
    write_manifest,
)
from outmodal.data.shards import ShardWriter

RATE = 8000
WORDS = ("red", "green", "blue", "black", "white", "grey", "brown", "pink", "teal", "gold")
SPECS = {
    "image": Modality(kind="image", ext="png", channels=1, size=(12, 12)),
    "speech": Modality(kind="audio", ext="wav", sample_rate=RATE),
    "text": Modality(kind="text", ext="txt"),
    "force": Modality(kind="series", ext="npy", shape=(16, 3)),
    "pose": Modality(kind="vector", ext="npy", shape=(7,)),
}


def make_tiny(
    root: Path,
    samples: int = 24,
    shards: int = 3,
    modalities: Sequence[str] = tuple(SPECS),
    *,
    test: int = 12,
    classes: int = 3,
    seed: int = 0,
    missing: Mapping[str, Collection[int]] | None = None,
) -> Dataset:
    """Write a data set with splits train (in `shards` tars) and test (in two), and open it.

    Every modality depends on the class, so a learner can learn from each. Classes take turns.
    `missing` maps a modality to the train positions that lack it. A key is "train-00003".
    """
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    splits = {}
    for split, count, tars in (("train", samples, shards), ("test", test, min(2, test))):
        infos = [
            _write_shard(
                root / f"{split}-{n:06d}.tar",
                split,
                part,
                modalities,
                classes,
                rng,
                missing if split == "train" and missing else {},
            )
            for n, part in enumerate(np.array_split(np.arange(count), tars) if tars else [])
        ]
        splits[split] = SplitInfo(samples=count, shards=tuple(infos))
    manifest = Manifest(
        name="tiny",
        classes=WORDS[:classes],
        modalities={name: SPECS[name] for name in modalities},
        splits=splits,
    )
    write_manifest(root, manifest)
    return open_dataset(root)


def _write_shard(
    path: Path,
    split: str,
    positions: NDArray[np.int64],
    modalities: Sequence[str],
    classes: int,
    rng: np.random.Generator,
    missing: Mapping[str, Collection[int]],
) -> ShardInfo:
    with ShardWriter(path) as shard:
        for position in positions.tolist():
            label = position % classes
            drawn = _sample(label, rng)
            members = {
                f"{name}.{SPECS[name].ext}": drawn[name]
                for name in modalities
                if position not in missing.get(name, ())
            }
            shard.add(f"{split}-{position:05d}", {**members, "cls": str(label).encode()})
    return shard.info


def _sample(label: int, rng: np.random.Generator) -> dict[str, bytes]:
    """Draw one member for every modality; the class sets brightness, pitch, word and offset."""
    image = rng.integers(0, 40, (12, 12, 1)) + 200 * label // len(WORDS)
    time = np.arange(RATE // 10) / RATE
    wave = 0.5 * np.sin(2 * np.pi * (300 + 150 * label) * time) + 0.02 * rng.normal(size=time.size)
    force: NDArray[Any] = rng.normal(size=(16, 3)).astype(np.float32) * 0.3
    pose: NDArray[Any] = rng.normal(size=7).astype(np.float32) * 0.3
    force[:, label % 3] += 1.0 + label // 3
    pose[label % 7] += 2.0
    return {
        "image": encode_png(image.astype(np.uint8)),
        "speech": encode_wav(wave, RATE),
        "text": encode_text(f"a {WORDS[label]} thing number {int(rng.integers(10))}"),
        "force": encode_npy(force),
        "pose": encode_npy(pose),
    }
