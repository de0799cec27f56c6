"""Noise on a perceptor's input: its size, its draws, where it is stored, and what it is not for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from outmodal.data.draws import Draw, key_number
from outmodal.data.manifest import Dataset
from outmodal.errors import UserError
from outmodal.models.embed import embed_dataset
from outmodal.models.perceptors import HubPerceptor, known_identities, load_perceptor
from outmodal.models.perceptors.noise import NoisyTransform
from tests.data.tiny import make_tiny
from tests.models.hub_models import bert, wav2vec2

STD = 0.0316


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "data", 16, 2, ("speech", "text"), test=4)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> HubPerceptor:
    torch.manual_seed(0)
    folder = wav2vec2(tmp_path_factory.mktemp("hub") / "wav")
    return HubPerceptor(modality="speech", path=str(folder), seconds=0.1)


def test_noise_is_normal_and_follows_the_sample_and_the_epoch(
    dataset: Dataset, clean: HubPerceptor
) -> None:
    plain = load_perceptor(clean, dataset).transform
    loud = load_perceptor(clean.model_copy(update={"noise_std": STD}), dataset).transform
    assert isinstance(loud, NoisyTransform)
    wave = torch.randn(800).mul(0.1).numpy()
    before = plain(wave, "a")
    assert torch.equal(plain.compact(wave, "a"), loud.compact(wave, "a"))
    assert torch.equal(loud(wave, "a"), loud(wave, "a"))
    heard = ~before.isnan()
    assert torch.equal(heard, ~loud(wave, "a").isnan()), "padding stays padding"
    noise = (loud(wave, "a") - before)[heard]
    assert float(noise.std()) == pytest.approx(STD, rel=0.1)
    assert abs(float(noise.mean())) < 0.2 * STD
    assert not torch.equal(loud(wave, "a"), loud(wave, "b"))
    rows, keys = before[None].repeat(2, 1), torch.tensor([key_number("a"), key_number("b")])
    still = loud.finish(rows, keys)
    torch.testing.assert_close(still[0], loud(wave, "a"), equal_nan=True)
    draw = Draw(3, 1, "speech")
    first, again = (loud.finish(rows, keys, draw)[:, :800] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, still[:, :800])
    assert not torch.equal(first, loud.finish(rows, keys, replace(draw, epoch=2))[:, :800])
    alone = loud.finish(rows[1:], keys[1:], draw)[:, :800]
    assert torch.equal(alone[0], first[1]), "who shares a batch does not matter"


def test_stored_features_say_that_they_are_noisy(
    dataset: Dataset, clean: HubPerceptor, tmp_path: Path
) -> None:
    noisy = clean.model_copy(update={"noise_std": 0.5})
    perceptor = load_perceptor(noisy, dataset)
    assert perceptor.identity.endswith("+noise0.5")
    assert perceptor.identity in known_identities(noisy)
    assert perceptor.identity not in known_identities(clean)
    made = [
        embed_dataset(dataset, [load_perceptor(cfg, dataset)], ["text"], tmp_path / name)
        for name, cfg in {"clean": clean, "noisy": noisy, "again": noisy}.items()
    ]
    assert made[1].modality("speech").perceptor == perceptor.identity
    files = [(d.root / "train-000000.tar").read_bytes() for d in made]
    assert files[0] != files[1]
    assert files[1] == files[2], "one draw for each sample"


def test_noise_is_not_for_texts(dataset: Dataset, tmp_path: Path) -> None:
    words = HubPerceptor(modality="text", path=str(bert(tmp_path / "bert")), noise_std=0.1)
    with pytest.raises(UserError, match="reads tokens: leave noise_std out"):
        load_perceptor(words, dataset)
