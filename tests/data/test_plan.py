"""The plan's promises, over arbitrary sizes: coverage, independence of readers, resume, passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outmodal.data.plan import (
    PADDING,
    Indices,
    Layout,
    PassPlan,
    Plan,
    check_batch,
    check_readers,
    check_split,
    choose_streams,
    permutation,
    share,
)
from outmodal.errors import UserError

UNTIMED = settings(deadline=None, max_examples=100)


@st.composite
def plans(draw: st.DrawFn, tiled: bool = False) -> Plan:
    """Any plan; `tiled` are those whose selection is smaller than the number of streams."""
    sizes = tuple(draw(st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any)))
    samples = sum(sizes)
    select = None
    if tiled or draw(st.booleans()):
        chosen = draw(st.sets(st.integers(0, samples - 1), min_size=1, max_size=samples))
        select = np.array(sorted(chosen))
    held = samples if select is None else len(select)
    streams = draw(st.integers(held + 1, held + 9) if tiled else st.integers(1, held))
    seed, epoch = draw(st.integers(-5, 2**70)), draw(st.integers(0, 50))
    return Plan(seed, epoch, "anchors", streams, draw(st.integers(1, 50)), sizes, select)


def drawn_from(plan: Plan) -> Indices:
    return np.arange(sum(plan.sizes)) if plan.select is None else plan.select


def one_pass(plan: Plan, turn: int) -> Indices:
    span = (turn * plan.length, (turn + 1) * plan.length)
    return np.concatenate([plan.indices(s, *span) for s in range(plan.streams)])


@UNTIMED
@given(plans(), st.integers(0, 3))
def test_a_pass_holds_each_sample_at_most_once_and_drops_fewer_than_the_streams(
    plan: Plan, turn: int
) -> None:
    seen, pool = one_pass(plan, turn), drawn_from(plan)
    assert len(np.unique(seen)) == len(seen)
    assert np.isin(seen, pool).all()
    assert 0 <= len(pool) - len(seen) < plan.streams


@UNTIMED
@given(plans(tiled=True), st.integers(0, 3))
def test_a_selection_smaller_than_the_streams_is_repeated_evenly(plan: Plan, turn: int) -> None:
    seen, pool = one_pass(plan, turn), drawn_from(plan)
    assert plan.length >= 1
    assert np.isin(seen, pool).all()
    assert np.bincount(seen).max() <= -(-plan.streams // len(pool))


@UNTIMED
@given(plans(), st.integers(0, 5), st.data())
def test_readers_together_hold_the_global_batch_whatever_their_number(
    plan: Plan, step: int, data: st.DataObject
) -> None:
    ranks = data.draw(st.sampled_from([r for r in range(1, 65) if plan.streams % r == 0]))
    workers = data.draw(
        st.sampled_from([w for w in range(1, 65) if (plan.streams // ranks) % w == 0])
    )
    rows = data.draw(st.integers(1, 5))
    parts = []
    for part in range(ranks * workers):
        for stream in share(plan.streams, part, ranks * workers):
            parts.append(plan.indices(stream, step * rows, (step + 1) * rows))
    assert np.array_equal(np.concatenate(parts), plan.batch(step, rows * plan.streams))


@UNTIMED
@given(plans(), st.integers(0, 200), st.data())
def test_a_position_is_found_without_walking(plan: Plan, start: int, data: st.DataObject) -> None:
    stream = data.draw(st.integers(0, plan.streams - 1))
    whole = plan.indices(stream, 0, start + 20)
    assert np.array_equal(plan.indices(stream, start, start + 20), whole[start:])
    shard, position = plan.at(stream, start)
    assert 0 <= position < plan.sizes[shard]
    assert Layout(plan.sizes).starts[shard] + position == whole[start]


@UNTIMED
@given(plans(), st.integers(0, 100), st.data())
def test_a_block_is_a_stretch_of_the_ring_of_shards(
    plan: Plan, position: int, data: st.DataObject
) -> None:
    stream = data.draw(st.integers(0, plan.streams - 1))
    picks, offset = plan.block(stream, position)
    assert 0 <= offset < len(picks) <= plan.window
    pool = drawn_from(plan)
    places = np.sort(np.searchsorted(pool, picks.index))
    runs = 1 + int((np.diff(places) > 1).sum())
    assert runs <= len(np.unique(picks.shard)) + 1  # the ring's cut may split one


def test_epochs_passes_names_and_seeds_are_ordered_differently() -> None:
    plan = Plan(0, 0, "labelled", 4, 64, (50, 50, 50, 50))
    others = [replace(plan, epoch=1), replace(plan, seed=1), replace(plan, name="unlabelled")]
    orders = [one_pass(plan, 0), one_pass(plan, 1), *(one_pass(other, 0) for other in others)]
    for i, order in enumerate(orders):
        for other in orders[:i]:
            assert (order == other).mean() < 0.1


@pytest.mark.parametrize("sizes", [(5, 5, 5, 5), (20, 0, 0, 0)])
def test_no_sample_is_dropped_for_good(sizes: tuple[int, ...]) -> None:
    """7 streams of 20 samples drop 6 in a pass; every sample comes about equally often."""
    plan = Plan(0, 0, "all", 7, 4, sizes)
    seen = np.concatenate([one_pass(replace(plan, epoch=e), 0) for e in range(200)])
    counts = np.bincount(seen, minlength=20)
    assert counts.min() > 110  # 140 expected, standard deviation 6.5
    assert counts.max() < 170


def test_the_order_is_the_same_on_every_machine_and_release() -> None:
    """A changed order would silently change every run that is resumed."""
    assert permutation(8, "block", 0, 1, "x").tolist() == [3, 0, 2, 4, 7, 1, 5, 6]
    plan = Plan(3, 2, "labelled", 2, 4, (5, 4, 6))
    assert plan.batch(1, 8).tolist() == [1, 3, 2, 7, 13, 14, 12, 3]


@UNTIMED
@given(st.integers(0, 300), st.integers(1, 64), st.integers(1, 9))
def test_a_pass_gives_each_sample_once_in_order_and_the_same_steps_to_each_rank(
    samples: int, batch: int, world: int
) -> None:
    plan = PassPlan(samples, batch, world)
    ranks = [
        np.concatenate([np.empty(0, np.int64), *(plan.places(r, t) for t in range(plan.steps))])
        for r in range(world)
    ]
    for places in ranks:
        assert len(places) == plan.steps * plan.rows
        filled = places[places != PADDING]
        assert np.array_equal(filled, np.sort(filled))
    everything = np.concatenate(ranks)
    assert np.array_equal(everything[everything != PADDING], np.arange(samples))
    assert plan.rows * world - batch < world


@pytest.mark.parametrize(
    ("shards", "samples", "batch", "ranks", "workers", "streams"),
    [
        (1, 10_000, 128, 1, 1, 16),
        (1, 10_000, 128, 4, 8, 32),
        (5, 10_000, 96, 1, 1, 16),
        (1, 10, 128, 1, 1, 8),
        (3, 5, 10, 5, 1, 5),
        (20, 2000, 128, 1, 1, 16),
        (2000, 10_000, 128, 1, 1, 64),
        (2000, 10_000, 96, 1, 1, 32),
        (2000, 10_000, 128, 2, 4, 64),
        (2000, 10_000, 96, 3, 1, 48),
        (2000, 10_000, 4096, 64, 4, 256),
        (7, 100, 6, 3, 2, 6),
    ],
)
def test_the_number_of_streams_is_chosen_from_sizes_batch_and_readers(
    shards: int, samples: int, batch: int, ranks: int, workers: int, streams: int
) -> None:
    assert choose_streams(shards, samples, batch, ranks, workers) == streams


@UNTIMED
@given(
    st.integers(1, 300),
    st.integers(0, 300),
    st.integers(1, 512),
    st.integers(1, 16),
    st.integers(1, 8),
)
def test_the_choice_passes_all_checks_or_names_a_remedy(
    shards: int, more: int, batch: int, ranks: int, workers: int
) -> None:
    samples = shards + more
    if ranks * workers > samples or batch % (ranks * workers):
        with pytest.raises(UserError, match="use "):
            choose_streams(shards, samples, batch, ranks, workers)
        return
    streams = choose_streams(shards, samples, batch, ranks, workers)
    check_readers(streams, ranks, workers)
    check_batch(batch, streams)
    check_split("train", [samples], streams, batch, ranks * workers)


@UNTIMED
@given(st.integers(16, 300), st.integers(1, 512), st.sampled_from([1, 2, 4]), st.integers(1, 4))
def test_with_enough_shards_there_are_as_many_streams_as_before_they_could_share_one(
    shards: int, batch: int, ranks: int, workers: int
) -> None:
    """A run that did not record its streams would change its batches otherwise."""
    readers = ranks * workers
    if batch % readers:
        return
    fit = [v for v in range(readers, min(shards, 64) + 1, readers) if batch % v == 0]
    old = max([v for v in fit if v & (v - 1) == 0] or fit)
    assert choose_streams(shards, 10_000, batch, ranks, workers) == old


def test_what_cannot_work_names_the_numbers_and_the_nearest_valid_value() -> None:
    with pytest.raises(UserError, match=r"2 ranks x 8 workers = 16 readers.*8: use data.workers=4"):
        choose_streams(1, 8, 128, 2, 8)
    with pytest.raises(UserError, match="use at most 4 ranks"):
        choose_streams(4, 4, 128, 8, 1)
    with pytest.raises(UserError, match=r"data.batch=100.*8 readers: use data.batch=104"):
        choose_streams(64, 640, 100, 4, 2)
    with pytest.raises(UserError, match=r"data.streams=16.*2 ranks x 3 workers.*data.workers=2"):
        check_readers(16, 2, 3)
    with pytest.raises(UserError, match=r"data.streams=16.*3 ranks: use 2 ranks.*data.streams=15"):
        check_readers(16, 3, 1)
    with pytest.raises(
        UserError, match=r"=48 .*batch of 128 of stream 'all'.*144.*data.streams=32"
    ):
        check_batch(128, 48, "all")
    with pytest.raises(
        UserError, match=r"'train' has 3 samples.*data.streams=4: use data.streams=2, or build"
    ):
        check_split("train", [1, 1, 1, 0], 4, batch=128, readers=1)
    with pytest.raises(UserError, match=r"'train' has 3 samples.*data.streams=4: build"):
        check_split("train", [1, 1, 1, 0], 4, batch=128, readers=4)
    check_split("train", [100], 64, batch=128, readers=4)  # one shard for any number of streams


def test_a_selection_must_be_sorted_and_inside_the_split() -> None:
    for bad in ([3, 1], [1, 1], [0, 9]):
        with pytest.raises(ValueError):
            Plan(0, 0, "x", 1, 4, (5,), np.array(bad))
