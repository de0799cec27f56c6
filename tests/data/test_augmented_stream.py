"""Augmentation in the loader: the same pixels whatever the batch, the workers or a resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from outmodal.data.arrays import SeriesInput, VectorInput
from outmodal.data.batch import Batch, StreamSpec, View
from outmodal.data.manifest import Dataset
from outmodal.data.picture import ImageInput
from outmodal.data.stream import Loader, StreamConfig
from outmodal.data.tokens import TokenInput
from outmodal.data.transform import BaseInput
from outmodal.data.waveform import LogMelInput
from tests.data.tiny import make_tiny

Rows = dict[int, dict[str, Tensor]]
ALL = ("image", "speech", "text", "force", "pose")
STEPS = 5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("augmented"), 48, 6, missing={"image": [3, 4]})


def configs(with_them: bool = True) -> dict[str, BaseInput]:
    def steps(*names: str) -> Any:
        return [{"name": name, "p": 1.0} for name in names] if with_them else []

    dropout: Any = [{"name": "word_dropout", "rate": 0.4}]
    strong: Any = [{"name": "erasing", "p": 1.0, "value": 50.0}]
    return {
        "image": ImageInput(
            size=(12, 12),
            augment=steps("random_resized_crop", "pad_crop", "hflip", "rand_augment", "erasing"),
            strong=strong,
        ),
        "speech": LogMelInput(
            seconds=0.2, augment=steps("gain", "noise", "time_shift", "spec_augment")
        ),
        "text": TokenInput(augment=dropout if with_them else ()),
        "force": SeriesInput(
            length=16,
            channels=3,
            mean=(0.0,),
            std=(1.0,),
            augment=steps("jitter", "scaling", "window", "time_mask"),
        ),
        "pose": VectorInput(dim=7, augment=steps("feature_noise"), normalize=True),
    }


def epoch(
    dataset: Dataset,
    *,
    number: int = 0,
    start: int = 0,
    with_them: bool = True,
    views: Sequence[View] = (),
    modalities: tuple[str, ...] = ALL,
    **changes: Any,
) -> Rows:
    """Return every row of an epoch by its sample's index."""
    cfg = StreamConfig(**{"batch": 8, "streams": 4, "window": 5, "workers": 0, **changes})
    made = {n: c.build(dataset, n, None) for n, c in configs(with_them).items()}
    spec = StreamSpec("all", "train", modalities, cfg.batch, views=tuple(views))
    with Loader(dataset, made, cfg, rank=0, world=1) as loader:
        steps = loader.open_epoch([spec], seed=1, epoch=number, start_step=start, steps=STEPS)
        return rows([step["all"] for step in steps])


def rows(batches: Sequence[Batch]) -> Rows:
    found: Rows = {}
    for batch in batches:
        done = batch.to(torch.device("cpu"))
        for i, index in enumerate(done.index.tolist()):
            found[index] = {name: x[i] for name, x in done.x.items()}
    return found


def agree(one: Rows, other: Rows) -> None:
    common = one.keys() & other.keys()
    assert len(common) > 8
    for index in common:
        for name in one[index]:
            assert torch.equal(one[index][name], other[index][name]), (index, name)


@pytest.fixture(scope="module")
def first(dataset: Dataset) -> Rows:
    return epoch(dataset)


def test_pixels_do_not_depend_on_batches_threads_or_resume(dataset: Dataset, first: Rows) -> None:
    agree(first, epoch(dataset, batch=4, streams=2))
    agree(first, epoch(dataset, start=2))
    agree(first, epoch(dataset, threads=3, cache_mb=8))
    agree(first, epoch(dataset, cache_mb=0))


def test_workers_give_the_same(dataset: Dataset, first: Rows) -> None:
    agree(first, epoch(dataset, workers=2))


def test_every_modality_changes_and_every_epoch_anew(dataset: Dataset, first: Rows) -> None:
    plain = epoch(dataset, with_them=False)
    later = epoch(dataset, number=1)
    for name in ALL:
        common = [i for i in first.keys() & later.keys() if i not in (3, 4)]
        changed = [not torch.equal(first[i][name], plain[i][name]) for i in first if i in plain]
        anew = [not torch.equal(first[i][name], later[i][name]) for i in common]
        assert sum(changed) > 0.4 * len(changed), name
        assert sum(anew) > 0.4 * len(anew), name
    absent = [i for i in (3, 4) if i in first]
    assert all(not first[i]["image"].any() for i in absent)


def test_passes_are_not_augmented(dataset: Dataset) -> None:
    found: list[Rows] = []
    for with_them in (True, False):
        made = {n: c.build(dataset, n, None) for n, c in configs(with_them).items()}
        cfg = StreamConfig(batch=8, streams=4)
        with Loader(dataset, made, cfg, rank=0, world=1) as loader:
            found.append(rows(list(loader.open_pass(StreamSpec("p", "train", ALL, 8)))))
    assert len(found[0]) == 48
    agree(*found)


def test_views_draw_apart(dataset: Dataset) -> None:
    looks = [View("again", "image"), View("hard", "image", "strong"), View("bare", "image", "none")]
    found = epoch(dataset, views=looks, modalities=("image",))
    plain = epoch(dataset, with_them=False, modalities=("image",))
    apart = 0
    for index in found.keys() - {3, 4}:
        row = found[index]
        apart += not torch.equal(row["image"], row["again"])
        hard, bare = row["hard"], row["bare"]
        assert torch.equal(bare, plain[index]["image"])
        erased = hard == 50.0
        assert erased.any()
        assert torch.equal(hard[~erased], bare[~erased])
    assert apart > 30


def test_vectors_stay_at_unit_length(first: Rows) -> None:
    lengths = torch.stack([row["pose"].norm() for row in first.values()])
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_templates_enter_a_fitted_vocabulary(dataset: Dataset) -> None:
    augment: Any = [{"name": "templates", "templates": ["a zebra near {}"]}]
    transform: Any = TokenInput(augment=augment).build(dataset, "text", None)
    assert transform.random
    assert transform.tokenizer.token_to_id("zebra") is not None
    plain: Any = TokenInput().build(dataset, "text", None)
    assert plain.tokenizer.token_to_id("zebra") is None


def test_inputs_without_their_augmentation() -> None:
    config = configs()["image"]
    assert config.plain() == ImageInput(size=(12, 12))
    assert config.augment
