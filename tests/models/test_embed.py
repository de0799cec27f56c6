"""embed_dataset: the right vectors, nothing lost, one forward an input, the same bytes again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from outmodal.data.decode import decode
from outmodal.data.encode import encode_npy, encode_text
from outmodal.data.inputs import LogMelInput, NoiseConfig, SeriesInput, TokenInput
from outmodal.data.manifest import (
    Dataset,
    Manifest,
    Modality,
    SplitInfo,
    open_dataset,
    write_manifest,
)
from outmodal.data.shards import ShardWriter, read_shard
from outmodal.data.transform import BaseInput, Transform
from outmodal.errors import UserError
from outmodal.models import embed_common
from outmodal.models.embed import embed_dataset
from outmodal.models.embed_common import OVERHEAD, first_holders
from outmodal.models.perceptors import ExportedPerceptor, load_perceptor
from outmodal.models.perceptors.base import Precision
from tests.data.tiny import RATE, WORDS, make_tiny
from tests.models.encoders import export

INPUTS: dict[str, BaseInput] = {
    "force": SeriesInput(length=16, channels=3, mean=(0.0,), std=(1.0,)),
    "text": TokenInput(length=10, vocab_size=200),
    "speech": LogMelInput(seconds=0.2, sample_rate=RATE, n_mels=8, n_fft=200, hop=80),
}


class Fake:
    """A perceptor whose vectors depend, in their last bits, on the batch that they are made in.

    Real encoders do this because kernels sum in another order for another batch size.
    """

    def __init__(self, dataset: Dataset, modality: str, *, fail_at: int = -1, dim: int = 4) -> None:
        self.modality, self.dim = modality, dim
        self.identity = f"fake:{modality}@0"
        self.precision: Precision = "fp32"
        self.transform: Transform = INPUTS[modality].build(dataset, modality, None)
        self.fail_at = fail_at
        self.batches: list[int] = []

    def encode(self, x: Tensor) -> Tensor:
        if len(self.batches) == self.fail_at:
            raise KeyboardInterrupt
        self.batches.append(len(x))
        weights = torch.linspace(-1, 1, x[0].numel() * self.dim).reshape(-1, self.dim).sin()
        e = torch.nn.functional.normalize(x.flatten(1).float() @ weights, dim=1)
        return e * (1 + 1e-6 * len(x))

    def to(self, device: torch.device) -> Fake:
        return self


def bytes_of(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in root.iterdir() if p.is_file()}


def rows(dataset: Dataset) -> Iterator[tuple[str, str, dict[str, bytes]]]:
    for split in dataset.manifest.splits.values():
        for info in split.shards:
            for _, key, members in read_shard(dataset.shard_path(info)):
                yield info.file, key, members


def vectors(dataset: Dataset, modality: str) -> list[Any]:
    spec, name = dataset.modality(modality), f"{modality}.npy"
    return [decode(spec, m[name]) if name in m else None for _, _, m in rows(dataset)]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_tiny(tmp_path / "data", missing={"text": (1, 9), "force": (1,)})


def test_vectors_are_the_perceptors_and_everything_else_is_byte_for_byte(
    dataset: Dataset, tmp_path: Path
) -> None:
    fakes = [Fake(dataset, "force"), Fake(dataset, "text")]
    out = embed_dataset(dataset, fakes, ["image"], tmp_path / "out", batch=5)
    assert list(out.manifest.modalities) == ["image", "text", "force"]
    assert out.modality("image") == dataset.modality("image")
    assert out.modality("force") == Modality(
        kind="vector", ext="npy", shape=(4,), perceptor="fake:force@0"
    )
    assert out.manifest.classes == dataset.manifest.classes
    for (file, key, was), (file2, key2, now) in zip(rows(dataset), rows(out), strict=True):
        assert (file, key) == (file2, key2)
        assert {k: now[k] for k in ("image.png", "cls")} == {
            k: was[k] for k in ("image.png", "cls")
        }
        for fake, ext in ((fakes[0], "npy"), (fakes[1], "txt")):
            member = f"{fake.modality}.{ext}"
            assert (f"{fake.modality}.npy" in now) == (member in was)
            if member in was:
                spec = dataset.modality(fake.modality)
                x = fake.transform(decode(spec, was[member]), key)[None]
                v: Any = decode(out.modality(fake.modality), now[f"{fake.modality}.npy"])
                np.testing.assert_allclose(v, fake.encode(x)[0], atol=1e-5)
        assert not {"speech.wav", "pose.npy", "text.txt"} & set(now)


def test_features_of_an_export_are_those_of_the_live_perceptor(
    dataset: Dataset, tmp_path: Path
) -> None:
    folder = export("vit", dataset, tmp_path / "encoder")
    perceptor = load_perceptor(ExportedPerceptor(path=str(folder)), dataset)
    out = embed_dataset(dataset, [perceptor], ["text"], tmp_path / "out", batch=7)
    assert out.modality("image").perceptor == perceptor.identity
    spec = dataset.modality("image")
    for (_, key, was), v in zip(rows(dataset), vectors(out, "image"), strict=True):
        x = perceptor.transform(decode(spec, was["image.png"]), key)
        live = perceptor.encode(x[None])[0].numpy()
        np.testing.assert_allclose(v, live, atol=1e-5)
        assert np.linalg.norm(v) == pytest.approx(1.0, abs=1e-5)


def test_half_precision_is_stored_when_asked(dataset: Dataset, tmp_path: Path) -> None:
    full = embed_dataset(dataset, [Fake(dataset, "force")], (), tmp_path / "full")
    half = embed_dataset(dataset, [Fake(dataset, "force")], (), tmp_path / "half", "float16")
    for (_, _, a), (_, _, b), x, y in zip(
        rows(full), rows(half), vectors(full, "force"), vectors(half, "force"), strict=True
    ):
        if x is not None:
            np.testing.assert_allclose(x, y, atol=1e-3)
            assert len(a["force.npy"]) - len(b["force.npy"]) == 8


def test_identical_inputs_are_encoded_once_over_all_shards(tmp_path: Path) -> None:
    dataset = prompts(tmp_path / "data", ["a red thing", "a blue thing"] * 20, per_shard=6)
    fake = Fake(dataset, "text")
    out = embed_dataset(dataset, [fake], (), tmp_path / "out")
    assert fake.batches == [2]
    found = vectors(out, "text")
    assert len(found) == 40
    assert all(np.array_equal(v, found[i % 2]) for i, v in enumerate(found))
    assert not np.array_equal(found[0], found[1])


def prompts(root: Path, texts: list[str], per_shard: int, damaged: tuple[int, ...] = ()) -> Dataset:
    """A data set of texts with targets and json members; `damaged` positions are not UTF-8."""
    root.mkdir()
    shards = []
    for number, start in enumerate(range(0, len(texts), per_shard)):
        with ShardWriter(root / f"train-{number:06d}.tar") as shard:
            for i in range(start, min(start + per_shard, len(texts))):
                shard.add(
                    f"{i:05d}",
                    {
                        "text.txt": b"\xff" if i in damaged else encode_text(texts[i]),
                        "target.npy": encode_npy(np.ones(2, np.float32) * i),
                        "json": json.dumps({"i": i}).encode(),
                    },
                )
        shards.append(shard.info)
    write_manifest(
        root,
        Manifest(
            name="prompts",
            classes=(),
            modalities={"text": Modality(kind="text", ext="txt")},
            splits={"train": SplitInfo(samples=len(texts), shards=tuple(shards))},
        ),
    )
    return open_dataset(root)


def test_targets_and_json_members_are_kept(tmp_path: Path) -> None:
    dataset = prompts(tmp_path / "data", ["red", "blue", "teal"], per_shard=2)
    out = embed_dataset(dataset, [Fake(dataset, "text")], (), tmp_path / "out")
    for (_, _, was), (_, _, now) in zip(rows(dataset), rows(out), strict=True):
        assert {k: v for k, v in now.items() if k != "text.npy"} == {
            k: v for k, v in was.items() if k != "text.txt"
        }


def test_inputs_with_noise_are_encoded_for_each_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = LogMelInput(
        seconds=0.2,
        sample_rate=RATE,
        n_mels=8,
        n_fft=200,
        hop=80,
        noise=NoiseConfig(kinds=("white",)),
    )
    dataset = same_speech(tmp_path / "data")
    clean = Fake(dataset, "speech")
    embed_dataset(dataset, [clean], (), tmp_path / "clean")
    monkeypatch.setitem(INPUTS, "speech", noisy)
    other = Fake(dataset, "speech")
    embed_dataset(dataset, [other], (), tmp_path / "noisy")
    assert (clean.batches, other.batches) == ([1], [4])


def same_speech(root: Path) -> Dataset:
    """Four samples with the same recording."""
    source = make_tiny(root.parent / "source", modalities=["speech"])
    wav = next(rows(source))[2]["speech.wav"]
    root.mkdir()
    with ShardWriter(root / "train-000000.tar") as shard:
        for i in range(4):
            shard.add(f"{i}", {"speech.wav": wav})
    write_manifest(
        root,
        source.manifest.model_copy(
            update={"splits": {"train": SplitInfo(samples=4, shards=(shard.info,))}}
        ),
    )
    return open_dataset(root)


@pytest.mark.parametrize("held", [3, 12, 1000])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.7, 0.9])
def test_killed_and_resumed_gives_the_same_bytes(
    share: float, held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_common, "LIMIT", held * (16 + 128 + OVERHEAD))
    draws = np.random.default_rng(1).integers(0, 30, 60)
    texts = [f"a {WORDS[n % 10]} thing number {n // 10}" for n in draws.tolist()]
    dataset = prompts(tmp_path / "data", texts, per_shard=5)

    def run(out: Path, fail_at: int) -> list[int]:
        fake = Fake(dataset, "text", fail_at=fail_at)
        embed_dataset(dataset, [fake], (), out, batch=2)
        return fake.batches

    whole = run(tmp_path / "whole", -1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", int(share * len(whole)))
    assert not (tmp_path / "out" / "dataset.json").exists()
    again = run(tmp_path / "out", -1)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert again == whole[len(whole) - len(again) :]  # finished shards are not encoded again
    assert share == 0.0 or len(again) < len(whole)
    assert [p.name for p in (tmp_path / "out" / ".embed").iterdir()] == ["request.json"]


def test_only_the_shard_that_was_lost_is_made_again(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        embed_dataset(dataset, [Fake(dataset, "force", fail_at=4)], (), out)
    names = [s.file for s in dataset.split("train").shards]
    assert all((out / name).exists() for name in names)
    (out / names[1]).write_bytes(b"damaged")
    done: list[tuple[int, int]] = []
    fake = Fake(dataset, "force")
    embed_dataset(dataset, [fake], (), out, progress=lambda a, b: done.append((a, b)))
    assert fake.batches == [8, 6]  # the damaged shard, and the last one
    assert done[0] == (22, 36)  # what is there already
    assert done[-1] == (36, 36)
    whole = embed_dataset(dataset, [Fake(dataset, "force")], (), tmp_path / "whole")
    assert bytes_of(out) == bytes_of(whole.root)


def test_a_finished_data_set_is_opened_not_made_again(dataset: Dataset, tmp_path: Path) -> None:
    first = embed_dataset(dataset, [Fake(dataset, "force")], (), tmp_path / "out")
    fake = Fake(dataset, "force")
    assert embed_dataset(dataset, [fake], (), tmp_path / "out").manifest == first.manifest
    assert fake.batches == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": ["image"]}, "keep was"),
        ({"dtype": "float16"}, "dtype was 'float32' and is now 'float16'"),
        ({"identity": "fake:force@1"}, "perceptors was"),
    ],
)
def test_other_settings_are_not_mixed_into_a_folder(
    change: dict[str, Any], message: str, dataset: Dataset, tmp_path: Path
) -> None:
    embed_dataset(dataset, [Fake(dataset, "force")], (), tmp_path / "out")
    other = Fake(dataset, "force")
    other.identity = change.pop("identity", other.identity)
    with pytest.raises(UserError, match=message):
        embed_dataset(dataset, [other], change.pop("keep", ()), tmp_path / "out", **change)


def test_a_folder_with_something_else_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no record of how it was built"):
        embed_dataset(dataset, [Fake(dataset, "force")], (), dataset.root)
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"it holds 'thesis.txt'"):
        embed_dataset(dataset, [Fake(dataset, "force")], (), tmp_path / "busy")


@pytest.mark.parametrize(
    ("names", "keep", "options", "message"),
    [
        ((), (), {}, "no perceptor given"),
        (("force", "force"), (), {}, "two perceptors for modality 'force'"),
        (("force",), ("force",), {}, "both embedded and kept"),
        (("force",), ("imag",), {}, "no modality 'imag'; did you mean 'image'"),
        (("force",), (), {"dtype": "float8"}, "dtype 'float8'"),
        (("force",), (), {"batch": 0}, "batch must be at least 1"),
    ],
)
def test_requests_that_make_no_sense_are_explained(
    names: tuple[str, ...],
    keep: tuple[str, ...],
    options: dict[str, Any],
    message: str,
    dataset: Dataset,
    tmp_path: Path,
) -> None:
    fakes = [Fake(dataset, name) for name in names]
    with pytest.raises(UserError, match=message):
        embed_dataset(dataset, fakes, keep, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_corrupt_inputs_count_as_missing_up_to_a_budget_that_a_resume_keeps(
    tmp_path: Path,
) -> None:
    words = ["red", "blue", "teal", "pink", "gold", "grey"]
    dataset = prompts(tmp_path / "data", words, per_shard=2, damaged=(0, 3))
    for path in sorted((tmp_path / "data").glob("*.tar")):
        assert path.exists()
    fake = Fake(TokenSource(tmp_path / "clean").dataset, "text")
    out = embed_dataset(dataset, [fake], (), tmp_path / "out", max_skips=2)
    assert [v is None for v in vectors(out, "text")] == [i in (0, 3) for i in range(6)]
    for _ in range(2):
        with pytest.raises(UserError, match=r"2 corrupt samples.*train-000001.tar 00003 .*UTF-8"):
            embed_dataset(dataset, [fake], (), tmp_path / "strict", max_skips=1)


class TokenSource:
    """A clean data set to fit a vocabulary to."""

    def __init__(self, root: Path) -> None:
        self.dataset = prompts(root, ["red", "blue", "teal", "pink", "gold", "grey"], per_shard=6)


def test_a_sample_of_which_nothing_is_left_keeps_its_place(tmp_path: Path) -> None:
    source = make_tiny(
        tmp_path / "data",
        samples=4,
        shards=1,
        modalities=["pose", "force"],
        test=2,
        missing={"force": (2,)},
    )
    bare = tmp_path / "bare"
    bare.mkdir()
    infos = {}
    for name, split in source.manifest.splits.items():
        made = []
        for info in split.shards:
            with ShardWriter(bare / info.file) as shard:
                for _, key, members in read_shard(source.shard_path(info)):
                    members.pop("cls")
                    shard.add(key, members)
            made.append(shard.info)
        infos[name] = SplitInfo(samples=split.samples, shards=tuple(made))
    write_manifest(bare, source.manifest.model_copy(update={"splits": infos, "classes": ()}))
    dataset = open_dataset(bare)
    out = embed_dataset(dataset, [Fake(dataset, "force")], (), tmp_path / "out")
    assert [sorted(m) for _, _, m in rows(out)][2] == ["json"]
    assert out.split("train").samples == 4


def test_a_broken_shard_is_named(dataset: Dataset, tmp_path: Path) -> None:
    info = dataset.split("train").shards[1]
    path = dataset.shard_path(info)
    path.write_bytes(path.read_bytes()[: info.bytes // 2])
    with pytest.raises(UserError, match=rf"{info.file}.*outmodal data check"):
        embed_dataset(dataset, [Fake(dataset, "force")], (), tmp_path / "out")


def test_features_that_are_not_finite_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    class Broken(Fake):
        def encode(self, x: Tensor) -> Tensor:
            return super().encode(x) * float("nan")

    with pytest.raises(UserError, match="fake:force@0 gives values that are not finite"):
        embed_dataset(dataset, [Broken(dataset, "force")], (), tmp_path / "out")


def test_common_hashes_go_to_the_first_shard_that_holds_them() -> None:
    shards = [np.array(h, np.uint64) for h in ([1, 5, 7], [], [5, 6, 7, 9], [1, 7, 2**64 - 1])]
    assert [h.tolist() for h in first_holders(shards, 10)] == [[1, 5, 7], [], [], []]
    assert [h.tolist() for h in first_holders(shards, 2)] == [[1, 7], [], [], []]
    assert [h.tolist() for h in first_holders(shards[1:], 10)] == [[], [7], []]
    assert first_holders([], 10) == []


def test_large_inputs_are_encoded_once_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = prompts(tmp_path / "data", ["a red thing"] * 6 + ["blue"] * 6, per_shard=4)
    monkeypatch.setattr(embed_common, "SMALL", 5)
    fake = Fake(dataset, "text")
    out = embed_dataset(dataset, [fake], (), tmp_path / "out")
    assert fake.batches == [1, 1, 1]  # blue for all shards; red in the first, red in the second
    assert all(v is not None for v in vectors(out, "text"))
