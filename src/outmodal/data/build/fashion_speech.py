"""fashion-speech: image, speech and text of ten classes of clothes, paired by class.

- image: a Fashion-MNIST picture, 28 x 28 grey (Debian package dataset-fashion-mnist).
- speech: the class name said by eSpeak NG, 8 kHz, trimmed and clean; noise is for the reader.
- text: a sentence about the class; 30 % name it, 70 % describe it without the name.

The three are of one class and nothing else links them. No picture is used twice, and train and
test share no picture, voice, template or description. Sample i of a split draws from a generator
of its own, so a larger build begins with the samples of a smaller one of the same seed.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from pydantic import Field
from scipy.signal import resample_poly

from outmodal.base import Config
from outmodal.data.build.common import Add, BuildPlan, Facts, Progress, build_dataset
from outmodal.data.build.espeak import PACKAGES, Espeak, Voice, espeak_version
from outmodal.data.build.fashion_words import CLASSES, NAMES, TEST, TRAIN, Wording
from outmodal.data.encode import encode_opus, encode_png
from outmodal.data.manifest import Dataset, Modality
from outmodal.errors import UserError

SAMPLE_RATE = 8000
IMAGE_SIZE = (28, 28)
LONGEST = SAMPLE_RATE  # one second; about 1 in 400 utterances is longer, by less than a tenth
BITRATE = 20_000  # bits a second; 2.1 kB an utterance
LOUDEST = np.float32(0.98)
NAMED = 0.3
"""Share of the texts that name the class."""

RECIPE = 1
"""Raised with every change of what this builder writes for a given configuration."""

WORDING = {"train": TRAIN, "test": TEST}
_SPLIT_SALT = {"train": 0, "test": 1}
_PICTURES, _SAMPLE = 1, 2  # first number of a generator's seed: what it is for
_IDX_NAME = {"train": "train", "test": "t10k"}

Images = NDArray[np.uint8]


class FashionSpeechConfig(Config):
    """What to build.

    Attributes:
        train: Samples in train, at most 60,000.
        test: Samples in test, at most 10,000.
        seed: Decides everything that is drawn.
        samples_per_shard: Samples in a shard.
        audio: Codec of the speech.
        images: Folder of the four Fashion-MNIST idx files.
        name: Name in the manifest.
    """

    train: int = Field(default=10_000, ge=1)
    test: int = Field(default=2_000, ge=1)
    seed: int = Field(default=0, ge=0)
    samples_per_shard: int = Field(default=500, ge=1)
    audio: Literal["opus"] = "opus"
    images: Path = Path("/usr/share/datasets/fashion-mnist")
    name: str = "fashion-speech"


def build_fashion_speech(
    cfg: FashionSpeechConfig, out: Path, workers: int = 0, progress: Progress | None = None
) -> Dataset:
    """Build fashion-speech in `out`; see `build_dataset` for resuming and errors."""
    plan = BuildPlan(
        name=cfg.name,
        classes=CLASSES,
        splits={"train": cfg.train, "test": cfg.test},
        samples_per_shard=cfg.samples_per_shard,
        request={
            "source": "fashion-speech",
            "recipe": RECIPE,
            **cfg.model_dump(mode="json", exclude={"images"}),
            "images_sha256": _images_digest(cfg.images),
            "espeak": espeak_version(),
            "libsndfile": soundfile.__libsndfile_version__,
        },
        source=FashionSpeech(cfg),
    )
    return build_dataset(plan, out, workers, progress)


class FashionSpeech:
    """The source: chooses the pictures of both splits, and hands each shard its own."""

    def __init__(self, cfg: FashionSpeechConfig) -> None:
        self.seed = cfg.seed
        self._pictures = {
            split: _choose(cfg.images, split, count, cfg.seed)
            for split, count in (("train", cfg.train), ("test", cfg.test))
        }

    def job(self, split: str, start: int, stop: int) -> FashionShard:
        """Return the job for the samples [start, stop) of `split`."""
        images, labels = self._pictures[split]
        return FashionShard(self.seed, split, start, images[start:stop], labels[start:stop])

    def modalities(self, facts: Sequence[Facts]) -> dict[str, Modality]:
        """Return the three modalities; they are the same for every build."""
        return {
            "image": Modality(kind="image", ext="png", channels=1, size=IMAGE_SIZE),
            "speech": Modality(kind="audio", ext="ogg", sample_rate=SAMPLE_RATE),
            "text": Modality(kind="text", ext="txt"),
        }


@dataclass(frozen=True)
class FashionShard:
    """One shard: pictures [N, 28, 28] with labels [N], to be given words and a voice."""

    seed: int
    split: str
    start: int
    images: Images
    labels: Images

    def write(self, add: Add) -> Facts:
        """Add the samples; the synthesiser must not have been used in this process."""
        synthesiser = Espeak()
        wording = WORDING[self.split]
        for offset, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            index = self.start + offset
            rng = default_rng([_SAMPLE, _SPLIT_SALT[self.split], self.seed, index])
            wave = draw_speech(rng, synthesiser, wording, int(label))
            text = draw_text(rng, wording, int(label))
            members = {
                "image.png": encode_png(image),
                "speech.ogg": encode_opus(wave, SAMPLE_RATE, BITRATE),
                "text.txt": text.encode(),
                "cls": str(int(label)).encode(),
            }
            add(f"{self.split}-{index:06d}", members)
        return {}


def draw_speech(
    rng: Generator, synthesiser: Espeak, wording: Wording, label: int
) -> NDArray[np.float32]:
    """Say the class in a random voice; [T] at 8 kHz, at most one second, silence cut off."""
    voice = Voice(
        name=f"{_pick(rng, wording.accents)}+{_pick(rng, wording.variants)}",
        rate=int(rng.integers(140, 261)),
        pitch=int(rng.integers(15, 86)),
        spread=int(rng.integers(10, 91)),
    )
    phrase = _pick(rng, wording.carriers).format(CLASSES[label])
    common = gcd(SAMPLE_RATE, synthesiser.rate)
    spoken = synthesiser.say(phrase, voice)
    wave = trim(resample_poly(spoken, SAMPLE_RATE // common, synthesiser.rate // common))
    if not len(wave):
        raise RuntimeError(f"eSpeak NG said nothing for '{phrase}' with the voice '{voice.name}'")
    loudness = max(np.float32(1), np.abs(wave).max() / LOUDEST)
    quiet: NDArray[np.float32] = wave[:LONGEST] / loudness
    return quiet


def draw_text(rng: Generator, wording: Wording, label: int) -> str:
    """Return a sentence that names the class, or one that describes it without the name."""
    if rng.random() < NAMED:
        return _pick(rng, wording.templates).format(_pick(rng, NAMES[label]))
    return _pick(rng, wording.descriptions[label])


def trim(wave: NDArray[np.float32], threshold: float = 0.01) -> NDArray[np.float32]:
    """Cut off what is quieter than `threshold` times the peak at both ends; may return nothing."""
    loud = np.flatnonzero(np.abs(wave) > threshold * np.abs(wave).max(initial=0))
    kept: NDArray[np.float32] = wave[loud[0] : loud[-1] + 1] if len(loud) else wave[:0]
    return kept


def read_idx(path: Path) -> Images:
    """Read a gzipped idx file of bytes (LeCun's MNIST format); UserError if it is damaged."""
    try:
        content = gzip.decompress(path.read_bytes())
        dimensions = content[3]
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except FileNotFoundError:
        raise _images_missing(path) from None
    except (OSError, EOFError, ValueError, IndexError, struct.error) as error:
        raise UserError(f"{path} is not a readable idx file ({error}); install it again") from None


def _pick(rng: Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _choose(folder: Path, split: str, count: int, seed: int) -> tuple[Images, Images]:
    """Return `count` pictures [count, 28, 28] of a split with labels [count], none twice."""
    images_file, labels_file = _idx_files(folder, split)
    images, labels = read_idx(images_file), read_idx(labels_file)
    if count > len(images):
        raise UserError(
            f"{split}={count}: Fashion-MNIST has {len(images)} pictures for {split}, and none is "
            f"used twice; ask for at most {len(images)}"
        )
    order = default_rng([_PICTURES, _SPLIT_SALT[split], seed]).permutation(len(images))[:count]
    return images[order], labels[order]


def _idx_files(folder: Path, split: str) -> tuple[Path, Path]:
    stem = _IDX_NAME[split]
    return (
        folder / f"{stem}-images-idx3-ubyte.gz",
        folder / f"{stem}-labels-idx1-ubyte.gz",
    )


def _images_digest(folder: Path) -> str:
    """Return the sha256 of the four idx files."""
    digest = hashlib.sha256()
    for split in _IDX_NAME:
        for path in _idx_files(folder, split):
            try:
                digest.update(path.read_bytes())
            except FileNotFoundError:
                raise _images_missing(path) from None
    return digest.hexdigest()


def _images_missing(path: Path) -> UserError:
    return UserError(
        f"Fashion-MNIST is not installed: {path} does not exist; install it with `{PACKAGES}`, "
        "or set `images` to a folder that holds its four idx files"
    )
