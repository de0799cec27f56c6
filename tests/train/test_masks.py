"""What samples lose: how often, never everything, and by seed, epoch and key alone."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outmodal.data.draws import key_number
from outmodal.train.masks import MOST, DropConfig, Drops

KEYS = torch.tensor([key_number(f"train-{i:05d}") for i in range(20_000)])
everything = Drops(1.0)


def share(hit: torch.Tensor) -> float:
    return float(hit.double().mean())


def test_two_modalities_lose_each_three_times_in_ten() -> None:
    taken = DropConfig().drops().drawn(0, 0, KEYS, 2)
    assert share(taken[:, 0]) == pytest.approx(0.3, abs=0.015)
    assert share(taken[:, 1]) == pytest.approx(0.3, abs=0.015)
    assert share(taken.any(dim=1)) == pytest.approx(0.6, abs=0.015)
    assert not taken.all(dim=1).any()


@pytest.mark.parametrize("count", [3, 4])
def test_all_proper_subsets_are_equally_likely(count: int) -> None:
    taken = everything.drawn(0, 0, KEYS, count)
    subsets = [s for size in range(1, count) for s in combinations(range(count), size)]
    for subset in subsets:
        wanted = torch.zeros(count, dtype=torch.bool)
        wanted[list(subset)] = True
        found = share((taken == wanted).all(dim=1))
        assert found == pytest.approx(1 / len(subsets), abs=0.015)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_one_takes_exactly_one_and_each_alike(count: int) -> None:
    taken = Drops(0.6, one=True).drawn(0, 0, KEYS, count)
    assert int(taken.sum(dim=1).max()) == 1
    for i in range(count):
        assert share(taken[:, i]) == pytest.approx(0.6 / count, abs=0.015)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, MOST),
    st.floats(0.0, 1.0),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
    st.integers(0, 1000),
)
def test_nobody_loses_everything(
    count: int, total: float, one: bool, extra: bool, seed: int, epoch: int
) -> None:
    drops, keys = Drops(total, one, extra), KEYS[:300]
    present = torch.rand(300, count, generator=torch.Generator().manual_seed(epoch)) < 0.6
    present[:40] = True
    taken = drops.taken(seed, epoch, keys, present)
    assert not (taken & ~present).any()
    left = (present & ~taken).any(dim=1)
    assert torch.equal(left, present.any(dim=1))
    if not extra:
        assert not taken[~present.all(dim=1)].any()


def test_a_draw_is_of_seed_epoch_and_key() -> None:
    present = torch.ones(len(KEYS), 3, dtype=torch.bool)
    taken = everything.taken(3, 5, KEYS, present)
    order = torch.randperm(len(KEYS), generator=torch.Generator().manual_seed(0))[:777]
    assert torch.equal(everything.taken(3, 5, KEYS[order], present[order]), taken[order])
    for other in (everything.taken(4, 5, KEYS, present), everything.taken(3, 6, KEYS, present)):
        same = share((other == taken).all(dim=1))
        assert same == pytest.approx(1 / 6, abs=0.015)


def test_a_larger_share_takes_from_the_same_samples_and_more() -> None:
    few, many = (Drops(p).drawn(0, 0, KEYS, 3) for p in (0.2, 0.7))
    assert not (few & ~many).any()


def test_samples_that_lack_something_lose_more_on_request_only() -> None:
    present = torch.tensor([[True, True, False]]).expand(len(KEYS), 3)
    assert not everything.taken(0, 0, KEYS, present).any()
    more = Drops(1.0, extra=True).taken(0, 0, KEYS, present)
    # of six subsets {0}, {0, 2} and {1}, {1, 2} leave something and take something
    assert share(more.any(dim=1)) == pytest.approx(4 / 6, abs=0.015)
    assert share(more[:, 0]) == pytest.approx(2 / 6, abs=0.015)


def test_too_many_modalities() -> None:
    with pytest.raises(ValueError, match="41 modalities"):
        everything.drawn(0, 0, KEYS[:2], 41)
