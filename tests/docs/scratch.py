"""What the commands of the documentation are run on: names as in the text, at a tiny scale."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from outmodal.data.encode import encode_jpeg, encode_npy, encode_png, encode_text, encode_wav
from outmodal.data.manifest import (
    MANIFEST,
    Manifest,
    Modality,
    ShardInfo,
    SplitInfo,
    write_manifest,
)
from outmodal.data.shards import ShardWriter
from tests.data.build import imagenets
from tests.data.tiny import RATE, WORDS
from tests.docs.pages import ROOT, blocks
from tests.models import hub_models

CLASSES = WORDS[:3]
VIEWS = {"fou": 76, "zer": 47, "mor": 6, "kar": 64, "pix": 240, "fac": 216}
SAMPLES = {"train": 64, "test": 16}
SHARDS = {"train": 16, "test": 2}


def vectors(size: int) -> Modality:
    return Modality(kind="vector", ext="npy", shape=(size,))


PICTURE = Modality(kind="image", ext="png", channels=1, size=(28, 28))
PHOTO = Modality(kind="image", ext="jpg", channels=3, size=(28, 28))
SPEECH = Modality(kind="audio", ext="wav", sample_rate=RATE)
TEXT = Modality(kind="text", ext="txt")
FORCE = Modality(kind="series", ext="npy", shape=(32, 6))
SETS = {
    "features": {"speech": SPEECH, "image": vectors(8), "text": vectors(8)},
    "more-features": {"speech": SPEECH, "image": vectors(8), "text": vectors(8)},
    "photos": {"photo": PHOTO},
    "loose": {"force": FORCE},
    "pairs": {"speech": SPEECH, "image": PICTURE, "text": TEXT},
    "DATASET": {"image": PICTURE, "text": TEXT, "force": FORCE},
    "views": {name: vectors(size) for name, size in VIEWS.items()},
}


def prepare(root: Path) -> None:
    """Make everything below `root`: data sets, recordings, a small CLIP, the guide's recipe."""
    for name, modalities in SETS.items():
        write_set(root / name, modalities)
    for made in (root / "loose" / MANIFEST, *(root / "loose").glob("*.index")):
        made.unlink()
    (root / "my-bucket").mkdir()
    (root / "my-bucket" / "features").symlink_to(root / "features")
    recordings(root / "my-recordings")
    imagenets.downloads(root / "downloads")
    (root / "weights").mkdir()
    hub_models.clip(root / "CLIP_FOLDER")
    (root / "BERT_FOLDER").mkdir()
    hub_models.bert(root / "BERT_FOLDER")
    (root / "weights" / "clip").symlink_to(root / "CLIP_FOLDER")
    for page in ("getting-started.md", "data-streaming.md", "extending.md"):
        for block in blocks(ROOT / "docs" / page):
            if block.language == "yaml" or block.file.endswith(".py"):
                (root / block.file).write_text(block.text, "utf-8")


def write_set(root: Path, modalities: dict[str, Modality]) -> None:
    """A data set of `SAMPLES`, its classes taking turns."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    splits = {}
    for split, count in SAMPLES.items():
        infos: list[ShardInfo] = []
        for n, part in enumerate(np.array_split(np.arange(count), SHARDS[split])):
            with ShardWriter(root / f"{split}-{n:06d}.tar") as shard:
                for i in part.tolist():
                    label = i % len(CLASSES)
                    members = {
                        f"{m}.{spec.ext}": member(spec, label, rng)
                        for m, spec in modalities.items()
                    }
                    shard.add(f"{split}-{i:05d}", {**members, "cls": str(label).encode()})
            infos.append(shard.info)
        splits[split] = SplitInfo(samples=count, shards=tuple(infos))
    manifest = Manifest(name=root.name, classes=CLASSES, modalities=modalities, splits=splits)
    write_manifest(root, manifest)


def member(spec: Modality, label: int, rng: np.random.Generator) -> bytes:
    """One file of a kind; its class can be told from it."""
    if spec.kind == "audio":
        time = np.arange(RATE // 2) / RATE
        wave = 0.5 * np.sin(2 * np.pi * (300 + 150 * label) * time)
        return encode_wav(wave + 0.02 * rng.normal(size=time.size), RATE)
    if spec.kind == "image":
        pixels = (rng.integers(0, 40, (28, 28, 1)) + 80 * label).astype(np.uint8)
        return encode_png(pixels) if spec.ext == "png" else encode_jpeg(pixels.repeat(3, axis=2))
    if spec.kind == "text":
        return encode_text(f"a {CLASSES[label]} thing number {int(rng.integers(10))}")
    assert spec.shape is not None
    values = 0.3 * rng.normal(size=spec.shape)
    values[..., label] += 2.0
    return encode_npy(values.astype(np.float32))


def recordings(folder: Path) -> None:
    """Files and the table of them, as a laboratory has them."""
    folder.mkdir()
    rng, rows = np.random.default_rng(1), [("force", "image", "text", "label")]
    for i in range(90):
        label = i % len(CLASSES)
        names = (f"{i}.force.npy", f"{i}.image.png", f"{i}.text.txt")
        for name, spec in zip(names, (FORCE, PICTURE, TEXT), strict=True):
            (folder / name).write_bytes(member(spec, label, rng))
        rows.append((*names, CLASSES[label]))
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
