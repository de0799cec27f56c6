"""A mixture's order: shares that hold everywhere, and all promises of the plain plan."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outmodal.data.mixture_plan import UNIT, MixPlan, Part, floor_sum, whole_shares
from outmodal.data.plan import (
    Indices,
    Plan,
    global_batch,
    permutation,
    picks_between,
    share,
)

UNTIMED = settings(deadline=None, max_examples=30)


@st.composite
def mixtures(draw: st.DrawFn) -> MixPlan:
    """One to four sources of uneven, tiny and empty shards, selections among them."""
    streams, window = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    seed, epoch = draw(st.integers(-5, 2**70)), draw(st.integers(0, 50))
    parts, shard, index = [], 0, 0
    count = draw(st.integers(1, 4))
    weights = draw(st.lists(st.floats(1e-3, 1e3), min_size=count, max_size=count))
    for number, own in enumerate(whole_shares(weights)):
        sizes = tuple(draw(st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(any)))
        samples = sum(sizes)
        select = None
        if samples < streams or draw(st.booleans()):
            chosen = draw(st.sets(st.integers(0, samples - 1), min_size=1, max_size=samples))
            select = np.array(sorted(chosen))
        plan = Plan(seed, epoch, f"all {number}", streams, window, sizes, select)
        parts.append(Part(plan, own, number, shard, index))
        shard, index = shard + len(sizes), index + samples
    return MixPlan(seed, epoch, "all", streams, window, tuple(parts))


def source_of(plan: MixPlan, index: int) -> int:
    return int(np.searchsorted([part.index for part in plan.parts], index, side="right")) - 1


@UNTIMED
@given(st.integers(0, 200), st.integers(1, 50), st.integers(0, 99), st.integers(0, 99))
def test_floor_sum_is_the_sum(n: int, modulus: int, slope: int, offset: int) -> None:
    wanted = sum((slope * i + offset) // modulus for i in range(n))
    assert floor_sum(n, modulus, slope, offset) == wanted


@UNTIMED
@given(st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=20))
def test_shares_add_up_and_keep_every_source(weights: list[float]) -> None:
    shares = whole_shares(weights)
    assert sum(shares) == UNIT
    assert min(shares) >= 1
    top = max(range(len(weights)), key=lambda k: weights[k])
    for k, weight in enumerate(weights):
        if k != top:
            assert abs(shares[k] / UNIT - weight / sum(weights)) < 1e-9


@UNTIMED
@given(mixtures(), st.integers(0, 4), st.data())
def test_the_global_batch_is_the_same_for_any_readers(
    plan: MixPlan, step: int, data: st.DataObject
) -> None:
    ranks = data.draw(st.sampled_from([r for r in range(1, 10) if plan.streams % r == 0]))
    each = plan.streams // ranks
    workers = data.draw(st.sampled_from([w for w in range(1, 10) if each % w == 0]))
    rows, readers = data.draw(st.integers(1, 5)), ranks * workers
    parts = [
        picks_between(plan, stream, step * rows, (step + 1) * rows).index
        for part in range(readers)
        for stream in share(plan.streams, part, readers)
    ]
    assert np.array_equal(np.concatenate(parts), global_batch(plan, step, rows * plan.streams))


@UNTIMED
@given(mixtures(), st.integers(0, 120), st.data())
def test_a_position_is_found_without_walking(
    plan: MixPlan, start: int, data: st.DataObject
) -> None:
    stream = data.draw(st.integers(0, plan.streams - 1))
    whole = picks_between(plan, stream, 0, start + 15)
    late = picks_between(plan, stream, start, start + 15)
    for a, b in ((whole.index, late.index), (whole.shard, late.shard)):
        assert np.array_equal(a[start:], b)
    for index, shard, position in zip(late.index, late.shard, late.position, strict=True):
        part = plan.parts[source_of(plan, int(index))]
        sizes = part.plan.sizes
        assert 0 <= position < sizes[shard - part.shard]
        assert index == part.index + sum(sizes[: shard - part.shard]) + position


@UNTIMED
@given(mixtures(), st.data())
def test_each_source_gives_its_own_order(plan: MixPlan, data: st.DataObject) -> None:
    """Blocks are shuffled once more, so whole blocks are compared as sets, in turn."""
    stream = data.draw(st.integers(0, plan.streams - 1))
    taken = [0] * len(plan.parts)
    for block in range(3):
        picks, _ = plan.block(stream, block * plan.window)
        assert len(picks) == plan.window
        owners = np.array([source_of(plan, int(i)) for i in picks.index])
        for k, part in enumerate(plan.parts):
            got = picks.index[owners == k] - part.index
            end = taken[k] + len(got)
            assert np.array_equal(got, part.plan.indices(stream, taken[k], end))
            taken[k] = end


@UNTIMED
@given(mixtures(), st.integers(1, 60))
def test_every_prefix_of_blocks_has_its_shares(plan: MixPlan, blocks: int) -> None:
    """Counts are rounded evenly: low discrepancy, not only the right mean."""
    for stream in range(plan.streams):
        counts = plan._before(stream, blocks)
        assert sum(counts) == blocks * plan.window
        for part, count in zip(plan.parts, counts, strict=True):
            assert abs(count - blocks * plan.window * part.share / UNIT) < 8
            assert count >= 0


@UNTIMED
@given(mixtures(), st.integers(0, 100))
def test_drawn_counts_what_streams_draw(plan: MixPlan, positions: int) -> None:
    counts = [0] * len(plan.parts)
    for stream in range(plan.streams):
        for index in picks_between(plan, stream, 0, positions).index:
            counts[source_of(plan, int(index))] += 1
    assert plan.drawn(positions) == counts


def test_a_batch_is_mixed_and_a_pass_of_a_source_repeats_nothing() -> None:
    sizes = [(500,) * 4, (100,), (10, 0, 90)]
    starts = list(accumulate(map(sum, sizes), initial=0))
    parts = tuple(
        Part(Plan(0, 0, f"x{k}", 8, 64, size), own, k, 4 * k, starts[k])
        for k, (size, own) in enumerate(zip(sizes, whole_shares([2, 1, 1]), strict=True))
    )
    plan = MixPlan(0, 0, "x", 8, 64, parts)
    seen = np.concatenate([global_batch(plan, step, 64) for step in range(34)])
    by_batch = np.searchsorted(starts, seen, side="right").reshape(34, 64) - 1
    shares = np.array([(by_batch == k).mean(1) for k in range(3)])
    assert shares.mean(1) == pytest.approx([0.5, 0.25, 0.25], abs=0.01)
    assert shares.min() > 0.05  # no batch lacks a source
    large = seen[seen < 2000]
    assert len(np.unique(large)) == len(large)
    counts = np.bincount(seen)[2000:2100]  # 544 draws of 100 samples: five passes and a part
    assert counts.min() >= 3
    assert counts.max() <= 7


def test_epochs_and_seeds_differ() -> None:
    part = Part(Plan(0, 0, "x", 2, 8, (50,)), UNIT, 0, 0, 0)
    plan = MixPlan(0, 0, "x", 2, 8, (part,))
    other = replace(plan, parts=(replace(part, plan=replace(part.plan, epoch=1)),), epoch=1)
    same = global_batch(plan, 0, 32) == global_batch(other, 0, 32)
    assert same.mean() < 0.3


@pytest.mark.parametrize("position", [0, 10**6, 10**12, 10**15])
def test_a_late_position_takes_as_many_operations_as_the_first(
    position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: permutations drawn, and rounds of the sum of floors."""
    drawn = []

    def counting(n: int, *words: int | str) -> Indices:
        drawn.append(n)
        return permutation(n, *words)

    monkeypatch.setattr("outmodal.data.mixture_plan.permutation", counting)
    monkeypatch.setattr("outmodal.data.plan.permutation", counting)
    shares = whole_shares([3, 1])
    parts = tuple(
        Part(Plan(0, 0, f"{k}", 4, 32, (1000,) * 50), own, k, 50 * k, 50_000 * k)
        for k, own in enumerate(shares)
    )
    MixPlan(0, 0, "x", 4, 32, parts).block(1, position)
    assert len(drawn) <= 1 + 2 * 3 + 8  # the block, blocks of two sources, rings of two passes


def test_the_order_is_the_same_on_every_machine_and_release() -> None:
    """A changed order would silently change every run that is resumed."""
    parts = (
        Part(Plan(3, 2, "a", 2, 4, (5, 4, 6)), UNIT // 2, 0, 0, 0),
        Part(Plan(3, 2, "b", 2, 4, (3, 3)), UNIT // 2, 1, 3, 15),
    )
    plan = MixPlan(3, 2, "labelled", 2, 4, parts)
    assert global_batch(plan, 1, 8).tolist() == GOLDEN


GOLDEN = [19, 19, 7, 8, 14, 17, 17, 1]
