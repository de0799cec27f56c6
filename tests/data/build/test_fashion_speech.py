"""fashion-speech: what its samples hold, and that one seed gives one sequence of bytes."""

from __future__ import annotations

import gzip
import hashlib
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from outmodal.data.build.common import WORK
from outmodal.data.build.fashion_speech import (
    FashionSpeech,
    FashionSpeechConfig,
    build_fashion_speech,
    draw_text,
    read_idx,
    trim,
)
from outmodal.data.build.fashion_words import CLASSES, NAMES, TEST, TRAIN
from outmodal.data.check import check_dataset
from outmodal.data.decode import decode
from outmodal.data.manifest import Dataset, open_dataset
from outmodal.data.shards import read_shard
from outmodal.errors import UserError
from tests.data.build.jobs import contents

ROOT = Path(__file__).parents[3]
SMALL = FashionSpeechConfig(train=24, test=8, samples_per_shard=6)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("fashion") / "dataset"
    return build_fashion_speech(SMALL, out, workers=1)


def samples(dataset: Dataset, split: str) -> list[tuple[str, dict[str, bytes]]]:
    shards = [dataset.shard_path(info) for info in dataset.split(split).shards]
    return [(key, members) for shard in shards for _, key, members in read_shard(shard)]


def image_digests(images: NDArray[np.uint8]) -> Counter[bytes]:
    return Counter(hashlib.sha256(image.tobytes()).digest() for image in images)


def test_a_check_finds_nothing_wrong(built: Dataset) -> None:
    report = check_dataset(built)
    assert report.ok, report.problems
    assert (report.samples, report.shards) == (32, 6)
    assert built.manifest.classes == CLASSES


def test_keys_are_unique_over_the_splits(built: Dataset) -> None:
    keys = [key for split in ("train", "test") for key, _ in samples(built, split)]
    assert keys[:2] == ["train-000000", "train-000001"]
    assert len(set(keys)) == 32


@pytest.mark.parametrize(("split", "stem"), [("train", "train"), ("test", "t10k")])
def test_images_are_fashion_mnist_with_their_own_class(
    built: Dataset, split: str, stem: str
) -> None:
    folder = FashionSpeechConfig().images
    images = read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz")
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for _, members in samples(built, split):
        image = decode(built.modality("image"), members["image.png"])
        assert isinstance(image, np.ndarray)
        assert known[image.tobytes()] == int(members["cls"])


def test_all_images_of_a_split_are_used_once() -> None:
    cfg = FashionSpeechConfig(train=1, test=10_000, samples_per_shard=10_000)
    shard = FashionSpeech(cfg).job("test", 0, 10_000)
    everything = read_idx(cfg.images / "t10k-images-idx3-ubyte.gz")
    assert image_digests(shard.images) == image_digests(everything)


def test_speech_is_trimmed_and_at_most_a_second(built: Dataset) -> None:
    for _, members in samples(built, "train"):
        wave = decode(built.modality("speech"), members["speech.ogg"])
        assert isinstance(wave, np.ndarray)
        assert 1000 < len(wave) <= 8000
        assert 0.1 < np.abs(wave).max() <= 1.05
        assert np.abs(wave[:400]).max() > 0.005
        assert np.abs(wave[-400:]).max() > 0.005


@pytest.mark.parametrize(("split", "wording"), [("train", TRAIN), ("test", TEST)])
def test_texts_are_of_their_class_and_split(built: Dataset, split: str, wording: object) -> None:
    words = TRAIN if wording is TRAIN else TEST
    for _, members in samples(built, split):
        label = int(members["cls"])
        named = {t.format(n) for t in words.templates for n in NAMES[label]}
        assert members["text.txt"].decode() in named | set(words.descriptions[label])


def test_three_texts_in_ten_name_the_class() -> None:
    rng = np.random.default_rng(0)
    texts = [draw_text(rng, TRAIN, 4) for _ in range(2000)]
    described = sum(text in TRAIN.descriptions[4] for text in texts)
    assert 0.66 < described / len(texts) < 0.74


def test_a_killed_build_by_two_processes_gives_the_same_bytes(
    tmp_path: Path, built: Dataset
) -> None:
    out = tmp_path / "dataset"
    script = f"""
import os, signal
from pathlib import Path
from outmodal.data.build.fashion_speech import FashionSpeechConfig, build_fashion_speech

def stop(done, total):
    if done >= 12:
        os.kill(os.getpid(), signal.SIGKILL)

cfg = FashionSpeechConfig(train=24, test=8, samples_per_shard=6)
build_fashion_speech(cfg, Path({str(out)!r}), workers=2, progress=stop)
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(list((out / WORK).glob("*.tar.json"))) >= 2
    assert not (out / "dataset.json").exists()
    build_fashion_speech(SMALL, out, workers=2)
    assert contents(out) == contents(built.root)


def test_a_larger_build_begins_with_the_smaller_one(tmp_path: Path, built: Dataset) -> None:
    larger = SMALL.model_copy(update={"train": 30})
    dataset = build_fashion_speech(larger, tmp_path / "larger", workers=2)
    assert dataset.split("train").shards[:4] == built.split("train").shards
    assert dataset.split("test") == built.split("test")


def test_another_seed_gives_other_samples(tmp_path: Path, built: Dataset) -> None:
    cfg = FashionSpeechConfig(train=6, test=6, samples_per_shard=6, seed=1)
    other = samples(build_fashion_speech(cfg, tmp_path / "other", workers=2), "train")
    for (_, a), (_, b) in zip(other, samples(built, "train"), strict=False):
        assert a["image.png"] != b["image.png"]
        assert a["speech.ogg"] != b["speech.ogg"]


def test_other_settings_for_a_finished_build_are_refused(built: Dataset) -> None:
    with pytest.raises(UserError, match="seed was 0 and is now 5"):
        build_fashion_speech(SMALL.model_copy(update={"seed": 5}), built.root)
    assert open_dataset(built.root) == built


@pytest.mark.parametrize(("split", "most"), [("train", 60_000), ("test", 10_000)])
def test_more_samples_than_images_are_refused(tmp_path: Path, split: str, most: int) -> None:
    cfg = FashionSpeechConfig.model_validate({split: most + 1})
    with pytest.raises(UserError, match=rf"{split}={most + 1}: .*ask for at most {most}"):
        build_fashion_speech(cfg, tmp_path / "dataset")


@pytest.mark.parametrize("wrong", [{"train": 0}, {"seed": -1}, {"audio": "wma"}, {"trian": 5}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FashionSpeechConfig.model_validate(wrong)


def test_missing_images_name_the_package(tmp_path: Path) -> None:
    cfg = FashionSpeechConfig(images=tmp_path)
    with pytest.raises(UserError, match="apt-get install dataset-fashion-mnist espeak-ng"):
        build_fashion_speech(cfg, tmp_path / "dataset")


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b""), gzip.compress(b"\0\0\x08\x01\0\0\0\x05ab")],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"x.gz is not a readable idx file"):
        read_idx(tmp_path / "x.gz")


def test_trim_keeps_what_lies_between() -> None:
    wave = np.array([0, 0.001, 0.5, 0, 1, 0.002, 0], np.float32)
    assert trim(wave).tolist() == [0.5, 0, 1]
    assert len(trim(np.zeros(5, np.float32))) == len(trim(np.zeros(0, np.float32))) == 0
