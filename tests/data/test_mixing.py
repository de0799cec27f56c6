"""MixUp and CutMix: their formulas, their distributions, and who decides what is drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from outmodal.data.arrays import VectorInput
from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.draws import Draw, key_number
from outmodal.data.manifest import Dataset
from outmodal.data.mixing import Mixed, Mixer, Mixing, MixingConfig
from outmodal.data.picture import ImageInput
from outmodal.data.stream import Loader, StreamConfig
from outmodal.errors import UserError
from tests.data.tiny import make_tiny

CPU = torch.device("cpu")


def mixer(*names: str, epoch: int = 0, **config: Any) -> Mixer:
    return Mixer(Mixing(MixingConfig(**config), names or ("image",)), Draw(0, epoch, "train"))


def pictures(rows: int, size: int = 8, **changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x": {"image": torch.rand(rows, 3, size, size, generator=generator)},
        "present": {"image": torch.ones(rows, dtype=torch.bool)},
        "label": torch.arange(rows) % 7,
        "key": torch.tensor([key_number(str(i)) for i in range(rows)]),
        "valid": torch.ones(rows, dtype=torch.bool),
        **changes,
    }


def swapped(x: Tensor) -> Tensor:
    return x.view(-1, 2, *x.shape[1:]).flip(1).reshape(x.shape)


def test_mixup_is_its_formula_in_pixels_and_labels() -> None:
    given = pictures(64)
    done, mixed = mixer(mixup=0.8)(**given)
    x, share = given["x"]["image"], mixed.share.view(-1, 1, 1, 1)
    torch.testing.assert_close(done["image"], share * x + (1 - share) * swapped(x))
    assert torch.equal(mixed.label, swapped(given["label"]))
    assert torch.equal(mixed.share, swapped(mixed.share))
    assert len(mixed.share.unique()) > 20, "every pair has a share of its own"


def test_cutmix_takes_a_box_and_counts_its_pixels() -> None:
    given = pictures(64, 16)
    done, mixed = mixer(cutmix=1.0)(**given)
    x = given["x"]["image"]
    own, other = ((done["image"] == t).all(1) for t in (x, swapped(x)))
    assert bool((own | other).all())
    torch.testing.assert_close(own.float().mean((1, 2)), mixed.share)
    for inside in ~own:  # a box: the outer product of its sides
        assert torch.equal(inside, inside.any(1)[:, None] & inside.any(0)[None, :])


@pytest.mark.parametrize("a", [0.2, 0.8, 1.0, 4.0])
def test_shares_are_those_of_a_beta_distribution(a: float) -> None:
    given = pictures(20_000, 1)
    share = mixer(mixup=a)(**given)[1].share[::2].double()
    assert float(share.mean()) == pytest.approx(0.5, abs=0.015)
    assert float(share.var()) == pytest.approx(0.25 / (2 * a + 1), rel=0.04)
    assert 0 <= float(share.min()) <= float(share.max()) <= 1


def test_p_and_switch_are_shares_of_the_pairs() -> None:
    given = pictures(8000, 6)
    x = given["x"]["image"]
    done, mixed = mixer(mixup=0.8, cutmix=1.0, p=0.6, switch=0.25)(**given)
    untouched = (done["image"] == x).flatten(1).all(1)
    assert bool((mixed.share[untouched] > 0.9999).all())
    boxed = ((done["image"] == x) | (done["image"] == swapped(x))).flatten(1).all(1) & ~untouched
    # boxes that miss every pixel change nothing: a few
    assert float((~untouched).float().mean()) == pytest.approx(0.6, abs=0.03)
    assert float(boxed.sum() / (~untouched).sum()) == pytest.approx(0.25, abs=0.04)


def test_pairs_that_lack_something_stay_as_they_are() -> None:
    given = pictures(8)
    given["label"][0] = -1
    given["present"]["image"][3] = False
    given["valid"][5] = False
    done, mixed = mixer(mixup=1.0)(**given)
    assert torch.equal(done["image"][:6], given["x"]["image"][:6])
    assert mixed.share[:6].tolist() == [1.0] * 6
    assert float(mixed.share[6]) < 1


def test_what_is_not_named_stays_a_samples_own() -> None:
    given = pictures(8)
    given["x"]["words"] = torch.arange(8)
    done, _ = mixer("image", mixup=1.0)(**given)
    assert torch.equal(done["words"], given["x"]["words"])


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"3 rows: choose data\.batch and engine\.accumulate"):
        mixer(mixup=1.0)(**pictures(3))
    with pytest.raises(UserError, match="height and width, and 'image' has the shape"):
        mixer(cutmix=1.0)(**pictures(2, x={"image": torch.zeros(2, 5)}))
    with pytest.raises(UserError, match="cannot blend 'image'"):
        mixer(mixup=1.0)(**pictures(2, x={"image": torch.zeros(2, 5, dtype=torch.int64)}))
    with pytest.raises(ValidationError, match="leave mixing out"):
        MixingConfig()


# --- from the loader -------------------------------------------------------------------------

Rows = dict[int, tuple[Tensor, int, float]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("mixed"), 64, 4, missing={"image": [5]})


def epoch(
    dataset: Dataset, *, rank: int = 0, world: int = 1, pieces: int = 1, start: int = 0, **keys: Any
) -> Rows:
    """Sample -> (pixels, the other label, share) of an epoch of 3 steps of 16 rows."""
    config = ImageInput(
        size=(12, 12), augment=[{"name": "rand_augment"}, {"name": "erasing", "fill": "noise"}]
    )
    inputs = {"image": config.build(dataset, "image", None)}
    mixing = Mixing(MixingConfig(mixup=0.8, cutmix=1.0), ("image",))
    cfg = StreamConfig(batch=16, streams=4, window=8, **{"workers": 0, **keys})
    spec = StreamSpec("train", "train", ("image",), 16 // pieces, mixing=mixing)
    with Loader(dataset, inputs, cfg, rank=rank, world=world) as loader:
        steps = loader.open_epoch(
            [spec], seed=3, epoch=0, start_step=start * pieces, steps=3 * pieces
        )
        return {k: v for step in steps for k, v in read(step["train"]).items()}


def read(batch: Batch) -> Rows:
    done = batch.to(CPU)
    assert isinstance(done.mixed, Mixed)
    columns = (done.x["image"], done.mixed.label.tolist(), done.mixed.share.tolist())
    return dict(zip(done.index.tolist(), zip(*columns, strict=True), strict=True))


def agree(some: Rows, all_of_them: Rows) -> None:
    assert some
    for index, (x, label, share) in some.items():
        pixels, *rest = all_of_them[index]
        assert torch.equal(x, pixels), index
        assert [label, share] == rest


def test_pixels_and_labels_do_not_depend_on_ranks_pieces_workers_or_a_resume(
    dataset: Dataset,
) -> None:
    alone = epoch(dataset)
    assert len(alone) == 48
    assert sum(share < 1 for _, _, share in alone.values()) > 40
    for world in (2, 4):
        ranks = [epoch(dataset, rank=r, world=world) for r in range(world)]
        assert sum(map(len, ranks)) == 48
        for rows in ranks:
            agree(rows, alone)
    agree(epoch(dataset, pieces=2), alone)
    agree(epoch(dataset, start=2), alone)
    agree(epoch(dataset, workers=2), alone)


def test_a_pass_is_not_mixed(dataset: Dataset) -> None:
    inputs = {"pose": VectorInput(dim=7).build(dataset, "pose", None)}
    mixing = Mixing(MixingConfig(mixup=0.8), ("pose",))
    with Loader(dataset, inputs, StreamConfig(batch=16, streams=4)) as loader:
        spec = StreamSpec("pass", "train", ("pose",), 16, mixing=mixing)
        assert all(batch.to(CPU).mixed is None for batch in loader.open_pass(spec))
