"""The queue keeps the newest rows, oldest first, and never changes what it gave."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outmodal.train.queue import Queue


@settings(max_examples=40, deadline=None)
@given(capacity=st.integers(1, 9), sizes=st.lists(st.integers(0, 12), max_size=6))
def test_it_holds_the_newest_rows_in_their_order(capacity: int, sizes: list[int]) -> None:
    queue, pushed = Queue(capacity), 0
    for size in sizes:
        ids = torch.arange(pushed, pushed + size)
        queue.push({"id": ids, "r": ids[:, None] * torch.ones(1, 2)})
        pushed += size
        kept = list(range(max(0, pushed - capacity), pushed))
        assert len(queue) == len(kept)
        assert queue.rows()["id"].tolist() == kept
        assert queue.rows()["r"][:, 1].tolist() == kept


def test_it_is_empty_before_the_first_push() -> None:
    assert len(Queue(3)) == 0
    assert Queue(3).rows() == {}


def test_a_mask_chooses_rows() -> None:
    queue = Queue(5)
    queue.push({"id": torch.arange(4)}, torch.tensor([True, False, False, True]))
    assert queue.rows()["id"].tolist() == [0, 3]


def test_rows_are_detached_copies() -> None:
    queue, weights = Queue(4), torch.ones(2, 3, requires_grad=True)
    queue.push({"r": weights * 2})
    held = queue.rows()["r"]
    assert not held.requires_grad
    loss = (weights @ held.T).sum()
    queue.push({"r": torch.zeros(4, 3)})
    loss.backward()  # what the loss used is as it was
    assert torch.equal(held, torch.full((2, 3), 2.0))
    source = torch.ones(1, 3)
    queue.push({"r": source})
    source.zero_()
    assert queue.rows()["r"][-1].tolist() == [1.0, 1.0, 1.0]


def test_rows_that_are_not_finite_are_left_out() -> None:
    queue = Queue(4)
    bad = torch.tensor([[1.0, 2.0], [float("nan"), 0.0], [0.0, float("inf")]])
    queue.push({"r": bad, "id": torch.arange(3)})
    assert queue.rows()["id"].tolist() == [0]
    assert queue.rows()["r"].tolist() == [[1.0, 2.0]]


def test_its_state_restores_it() -> None:
    queue, other = Queue(3), Queue(3)
    queue.push({"id": torch.arange(5), "r": torch.rand(5, 2)})
    other.load(queue.state())
    for one in (queue, other):
        one.push({"id": torch.tensor([9]), "r": torch.ones(1, 2)})
    assert other.rows()["id"].tolist() == [3, 4, 9]
    assert torch.equal(other.rows()["r"], queue.rows()["r"])
    other.load({})
    assert len(other) == 0


def test_a_smaller_queue_takes_the_newest_of_a_state() -> None:
    queue, small = Queue(4), Queue(2)
    queue.push({"id": torch.arange(4)})
    small.load(queue.state())
    assert small.rows()["id"].tolist() == [2, 3]


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity 0"):
        Queue(0)
    queue = Queue(2)
    with pytest.raises(AssertionError, match="different numbers"):
        queue.push({"a": torch.ones(2), "b": torch.ones(3)})
    queue.push({"a": torch.ones(2)})
    with pytest.raises(AssertionError, match="other names"):
        queue.push({"b": torch.ones(2)})
