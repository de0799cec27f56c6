"""Small facts that all ranks must share: flags, counts, means, JSON, and the main one's tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from outmodal.train.gather.group import is_main, world


def barrier() -> None:
    """Wait for all ranks."""
    agree(False)


def agree(flag: bool) -> bool:
    """Return True on every rank when any rank says True."""
    return bool(max_over_ranks([int(flag)])[0])


def max_over_ranks(values: Sequence[int]) -> list[int]:
    """Return the element-wise maximum over ranks of equally long lists of integers."""
    if world().size == 1 or not values:
        return list(values)
    t = torch.tensor(list(values), dtype=torch.int64, device=world().device)
    dist.all_reduce(t, op=dist.ReduceOp.MAX)
    return [int(v) for v in t.tolist()]


def mean_over_ranks(values: Sequence[float]) -> list[float]:
    """Return the element-wise mean over ranks, computed in fp64, equal on all ranks."""
    if world().size == 1 or not values:
        return [float(v) for v in values]
    t = torch.tensor(list(values), dtype=torch.float64, device=world().device)
    dist.all_reduce(t)
    return [float(v) / world().size for v in t.tolist()]


def broadcast_object(value: Any) -> Any:
    """Return the main process's `value` on every rank. JSON types only; nothing is pickled."""
    if world().size == 1:
        return value
    raw = json.dumps(value).encode() if is_main() else b""
    length = torch.tensor([len(raw)], dtype=torch.int64, device=world().device)
    dist.broadcast(length, src=0)
    buffer = torch.zeros(int(length.item()), dtype=torch.uint8, device=world().device)
    if is_main():
        buffer.copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
    dist.broadcast(buffer, src=0)
    return json.loads(bytes(buffer.cpu().tolist()))


def broadcast_tensors(tensors: Sequence[Tensor]) -> None:
    """Overwrite each tensor in place with the main process's."""
    if world().size == 1:
        return
    for t in tensors:
        held = t.detach().to(world().device).contiguous()
        dist.broadcast(held, src=0)
        t.detach().copy_(held)
