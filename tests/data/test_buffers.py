"""Memory of batches: used again, and never while anything refers to it."""

from __future__ import annotations

import gc

import torch

from outmodal.data.buffers import KEPT, LEAST, Buffers

SHAPE = (4, LEAST // 4)


def filled(buffers: Buffers, value: int) -> torch.Tensor:
    return buffers.empty(SHAPE, torch.uint8).fill_(value)


def test_memory_that_nobody_holds_is_given_again() -> None:
    buffers = Buffers()
    first = filled(buffers, 1)
    place = first.data_ptr()
    del first
    gc.collect()
    assert filled(buffers, 2).data_ptr() == place


def test_what_shares_the_memory_keeps_it() -> None:
    buffers = Buffers()
    holders = [
        filled(buffers, 0)[1:],
        filled(buffers, 1).view(-1),
        filled(buffers, 2).numpy(),
        filled(buffers, 3).untyped_storage(),
        filled(buffers, 4).detach().permute(1, 0),
    ]
    gc.collect()
    others = [filled(buffers, 99) for _ in range(2 * len(holders))]
    assert len({other.data_ptr() for other in others}) == len(others)
    for value, holder in enumerate(holders):
        assert int(holder[0] if value in (1, 3) else holder[0, 0]) == value


def test_what_a_gradient_needs_is_kept() -> None:
    buffers = Buffers()
    x = buffers.empty((LEAST // 4,), torch.float32).fill_(3)
    weight = torch.ones((), requires_grad=True)
    loss = (weight * x).sum()
    del x
    other = buffers.empty((LEAST // 4,), torch.float32).fill_(7)
    loss.backward()
    assert weight.grad is not None
    assert float(weight.grad) == 3 * len(other)


def test_sizes_and_types_differ() -> None:
    buffers = Buffers()
    for dtype in (torch.uint8, torch.int32, torch.float32, torch.bfloat16):
        for shape in ((3,), (2, LEAST), (LEAST, 1, 3)):
            x = buffers.empty(shape, dtype)
            assert x.shape == shape
            assert x.dtype == dtype
            assert x.is_contiguous()


def test_few_unused_buffers_are_kept() -> None:
    buffers = Buffers()
    held = [filled(buffers, value) for value in range(3 * KEPT)]
    del held
    gc.collect()
    assert len(buffers._free) == KEPT
