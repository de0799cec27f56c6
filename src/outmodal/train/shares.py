"""Work on rows that the ranks share: contiguous parts, and the rows of all put together again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from outmodal.train import gather
from outmodal.train.together import on_all

T = TypeVar("T")

_ROWS_AT_ONCE = 65_536  # gathered over ranks together: bounds the memory on an accelerator


def own_rows(count: int, piece: int) -> range:
    """This rank's contiguous rows of `count`, cut at multiples of `piece` only.

    So that whatever works on pieces of that size does the same pieces on any number of ranks, and
    sums them in the same order. Where there are fewer pieces than ranks every rank gets all rows,
    see `shared`.
    """
    pieces, world = -(-count // piece), gather.world()
    if not shared(count, piece):
        return range(count)
    start, stop = (pieces * rank // world.size for rank in (world.rank, world.rank + 1))
    return range(start * piece, min(count, stop * piece))


def shared(count: int, piece: int) -> bool:
    """Whether `own_rows` are a part only."""
    return 1 < gather.world().size <= -(-count // piece)


def all_rows(local: Tensor) -> Tensor:
    """The rows [n, ...] of all ranks in rank order, on the device of `local`; a bounded number
    of them is on the way at a time."""
    world = gather.world()
    if world.size == 1:
        return local
    most = gather.max_over_ranks([len(local)])[0]
    parts: list[list[Tensor]] = [[] for _ in range(world.size)]
    for start in range(0, max(most, 1), _ROWS_AT_ONCE):
        pieces = gather.all_gather_pieces(local[start : start + _ROWS_AT_ONCE])
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece.to(local.device))
    return torch.cat([piece for part in parts for piece in part])


def by_rows(count: int, piece: int, act: Callable[[range], Sequence[Tensor]]) -> list[Tensor]:
    """What `act` makes of all rows, by every rank of its own ones.

    Args:
        count: Rows.
        piece: See `own_rows`.
        act: Takes rows, returns tensors with one row for each. Not collective.

    Raises:
        UserError: Of any rank, on all.
    """
    made = on_all(lambda: act(own_rows(count, piece)))
    return [all_rows(t) if shared(count, piece) else t for t in made]


def in_turn(items: Sequence[T], act: Callable[[T], Any]) -> list[Any]:
    """`act` of every item, by the ranks in turn; results of JSON types, equal on every rank.

    Raises:
        UserError: Of any rank, on all.
    """
    world = gather.world()
    mine = on_all(lambda: [act(item) for item in items[world.rank :: world.size]])
    if world.size == 1:
        return list(mine)
    parts = gather.all_gather_objects(mine)
    return [parts[i % world.size][i // world.size] for i in range(len(items))]
