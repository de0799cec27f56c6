"""Which earlier samples are negatives."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outmodal.data.draws import Draw
from outmodal.train.methods.infobridge_negatives import Negatives, draw_negatives

DRAW = Draw(0, 3, "a-b")


def drawn(
    index: list[int],
    context: list[int],
    held_index: list[int],
    held_context: list[int],
    count: int = 3,
    *,
    same: bool = True,
    usable: list[bool] | None = None,
    draw: Draw = DRAW,
) -> Negatives:
    fits = torch.tensor(usable) if usable else torch.ones(len(held_index), dtype=torch.bool)
    parts = [torch.tensor(part) for part in (index, context, held_index, held_context)]
    return draw_negatives(*parts, fits, count, draw, same=same)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), held=st.integers(1, 40), count=st.integers(1, 6))
def test_negatives_share_t_and_are_not_the_sample(seed: int, held: int, count: int) -> None:
    g = torch.Generator().manual_seed(seed)
    index, held_index = (torch.randint(0, 30, (n,), generator=g).tolist() for n in (8, held))
    context, held_context = ([i % 3 for i in part] for part in (index, held_index))
    usable = (torch.rand(held, generator=g) > 0.2).tolist()
    out = drawn(index, context, held_index, held_context, count, usable=usable)
    for i in range(8):
        others = [q for q in range(held) if usable[q] and held_index[q] != index[i]]
        alike = [q for q in others if held_context[q] == context[i]]
        rows = out.rows[i].tolist()
        assert bool(out.found[i]) == bool(others)
        assert bool(out.strange[i]) == (bool(others) and not alike)
        assert bool(out.repeated[i]) == (0 < len(alike) < count)
        if others:
            assert set(rows) <= set(alike or others)
            pool = len(alike or others)
            assert len(set(rows)) == min(count, pool)  # no repetition while there are enough


def test_any_t_takes_the_whole_buffer() -> None:
    out = drawn([5], [1], [0, 1, 2, 3, 5], [0, 0, 0, 0, 1], 4, same=False)
    assert sorted(out.rows[0].tolist()) == [0, 1, 2, 3]
    assert not out.strange.any()
    assert not out.repeated.any()


def test_a_draw_is_a_sample_s_own() -> None:
    """Whatever rows share its batch, and so on any number of ranks."""
    held, contexts = list(range(100, 140)), [0] * 40
    together = drawn([1, 2, 3, 4], [0] * 4, held, contexts).rows
    for place, i in enumerate((1, 2, 3, 4)):
        assert drawn([i], [0], held, contexts).rows[0].tolist() == together[place].tolist()
    later = drawn([1, 2, 3, 4], [0] * 4, held, contexts, draw=Draw(0, 4, "a-b")).rows
    assert not torch.equal(together, later)


def test_every_candidate_has_its_chance() -> None:
    held = list(range(100, 110))
    counts = torch.zeros(10)
    for step in range(400):
        rows = drawn([1], [0], held, [0] * 10, 3, draw=Draw(0, step, "a-b")).rows[0]
        counts[rows] += 1
    assert float(counts.min()) > 80  # 120 each, expected
    assert float(counts.max()) < 165
