"""The one place that knows ranks: the process group, and reductions with the right gradients.

The rule behind every function here: a rank differentiates its own loss, the wrapper averages
gradients over ranks, and the result must be the gradient of the objective on the global batch.
So an autograd-aware gather sums in its backward, and a masked mean divides by the global count.

Without a process group every function is that of a world of one.
"""

from __future__ import annotations

import atexit
import datetime
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

from outmodal.errors import UserError


@dataclass(frozen=True)
class World:
    """Where this process stands among those that train together."""

    rank: int
    size: int
    local_rank: int
    device: torch.device


_ALONE = World(0, 1, 0, torch.device("cpu"))
_world: World = _ALONE
_store: Store | None = None  # rank 0's is the server that others still use: never closed


# --- the process group -----------------------------------------------------------------------


def world() -> World:
    """Return the world of this process: what `open_world` made, else one process on the CPU."""
    return _world


def is_main() -> bool:
    """Return True on the one process that writes files and shows progress."""
    return _world.rank == 0


def open_world(
    device: Literal["auto", "cpu", "cuda"] = "auto",
    timeout_minutes: float = 10.0,
    group: bool = False,
) -> World:
    """Join the processes that were started together (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    Args:
        device: Where tensors live; auto is CUDA where there is one.
        timeout_minutes: A collective that waits longer for another rank raises.
        group: Make a process group for a single process too (DeepSpeed needs one).

    Raises:
        UserError: CUDA is asked for and absent, or the environment names only some of the
            variables.
    """
    global _world
    rank, size, local_rank = _ranks_from_environment()
    where = _device(device, local_rank)
    if (size > 1 or group) and not dist.is_initialized():
        _init_group(where, rank, size, timeout_minutes)
        atexit.register(close_world)
    _world = World(rank, size, local_rank, where)
    return _world


def close_world() -> None:
    """Leave the process group. Happens by itself at exit, after all engines are gone.

    DeepSpeed remembers the first group of a process, so a group is kept from one run to the
    next, and a process that closed it cannot train with ZeRO again.
    """
    global _world
    if dist.is_initialized():
        dist.destroy_process_group()
    _world = _ALONE


def _ranks_from_environment() -> tuple[int, int, int]:
    env = os.environ
    size = int(env.get("WORLD_SIZE", "1"))
    missing = [k for k in ("RANK", "MASTER_ADDR", "MASTER_PORT") if k not in env]
    if size > 1 and missing:
        raise UserError(
            f"WORLD_SIZE={size} but {', '.join(missing)} not set: start with --nproc, torchrun or "
            "srun, or unset WORLD_SIZE"
        )
    rank = int(env.get("RANK", "0")) if size > 1 else 0
    return rank, size, int(env.get("LOCAL_RANK", str(rank)))


def _device(asked: str, local_rank: int) -> torch.device:
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device is 'cuda' but torch sees no GPU: set it to auto or cpu")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _init_group(device: torch.device, rank: int, size: int, timeout_minutes: float) -> None:
    """Each attempt of an elastic launcher gets its own key space: gloo otherwise finds the dead
    attempt's addresses in the store and hangs."""
    timeout = datetime.timedelta(minutes=timeout_minutes)
    store = HashStore() if size == 1 else _shared_store(rank, size, timeout)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore(f"outmodal/{attempt}", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
    )


def _shared_store(rank: int, size: int, timeout: datetime.timedelta) -> Store:
    global _store
    if _store is None:
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        _store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            size,
            is_master=rank == 0 and not agent,
            timeout=timeout,
            wait_for_workers=False,
        )
    return _store


# --- agreement between ranks -----------------------------------------------------------------


def barrier() -> None:
    """Wait for all ranks."""
    agree(False)


def agree(flag: bool) -> bool:
    """Return True on every rank when any rank says True."""
    return bool(max_over_ranks([int(flag)])[0])


def max_over_ranks(values: Sequence[int]) -> list[int]:
    """Return the element-wise maximum over ranks of equally long lists of integers."""
    if _world.size == 1 or not values:
        return list(values)
    t = torch.tensor(list(values), dtype=torch.int64, device=_world.device)
    dist.all_reduce(t, op=dist.ReduceOp.MAX)
    return [int(v) for v in t.tolist()]


def mean_over_ranks(values: Sequence[float]) -> list[float]:
    """Return the element-wise mean over ranks, computed in fp64, equal on all ranks."""
    if _world.size == 1 or not values:
        return [float(v) for v in values]
    t = torch.tensor(list(values), dtype=torch.float64, device=_world.device)
    dist.all_reduce(t)
    return [float(v) / _world.size for v in t.tolist()]


def broadcast_object(value: Any) -> Any:
    """Return the main process's `value` on every rank. JSON types only; nothing is pickled."""
    if _world.size == 1:
        return value
    raw = json.dumps(value).encode() if is_main() else b""
    length = torch.tensor([len(raw)], dtype=torch.int64, device=_world.device)
    dist.broadcast(length, src=0)
    buffer = torch.zeros(int(length.item()), dtype=torch.uint8, device=_world.device)
    if is_main():
        buffer.copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
    dist.broadcast(buffer, src=0)
    return json.loads(bytes(buffer.cpu().tolist()))


def broadcast_tensors(tensors: Sequence[Tensor]) -> None:
    """Overwrite each tensor in place with the main process's."""
    if _world.size == 1:
        return
    for t in tensors:
        held = t.detach().to(_world.device).contiguous()
        dist.broadcast(held, src=0)
        t.detach().copy_(held)


# --- gathering -------------------------------------------------------------------------------


def all_gather_flat(t: Tensor) -> Tensor:
    """Gather equally shaped tensors: [...] on each rank -> [world, ...] in rank order."""
    if _world.size == 1:
        return t.detach()[None]
    held = t.detach().to(_world.device).contiguous()
    out = held.new_empty((_world.size, *held.shape))
    dist.all_gather(list(out.unbind(0)), held)
    return out


def own_part(parts: Tensor) -> Tensor:
    """Return this rank's entry of the leading axis: [world, ...] -> [...]."""
    return parts[_world.rank]


def all_gather_pieces(t: Tensor) -> list[Tensor]:
    """Rows of each rank in rank order, without gradient. Row counts may differ."""
    if _world.size == 1:
        return [t.detach()]
    held = t.detach().to(_world.device)
    if held.dtype is torch.bool:
        return [piece.bool() for piece in all_gather_pieces(held.to(torch.uint8))]
    counts = [int(c) for c in all_gather_flat(torch.tensor([held.shape[0]])).flatten().tolist()]
    padded = held.new_zeros((max(counts), *held.shape[1:]))
    padded[: held.shape[0]] = held
    return [part[:n] for part, n in zip(all_gather_flat(padded), counts, strict=True)]


def all_gather_rows(t: Tensor) -> Tensor:
    """Concatenate rows of all ranks in rank order, without gradient. Row counts may differ."""
    return torch.cat(all_gather_pieces(t))


def all_gather_objects(value: Any) -> list[Any]:
    """Return every rank's `value` in rank order, on every rank. JSON types only."""
    raw = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    return [json.loads(bytes(piece.cpu().tolist())) for piece in all_gather_pieces(raw)]


class _Gather(torch.autograd.Function):
    """Concatenation over ranks whose backward is the reduce-scatter of the sum."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        ctx.rows = t.shape[0]
        return all_gather_flat(t).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        if dist.get_backend() == "nccl":
            own = grad.new_empty((ctx.rows, *grad.shape[1:]))
            dist.reduce_scatter_tensor(own, grad)
            return own
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad.narrow(0, _world.rank * ctx.rows, ctx.rows)


def gather_with_grad(t: Tensor) -> Tensor:
    """Concatenate [B, ...] of all ranks to [world * B, ...] with gradient to every rank's rows.

    All ranks must hold the same number of rows, as they do for training batches.
    """
    if _world.size == 1:
        return t
    out: Tensor = _Gather.apply(t)  # type: ignore[no-untyped-call]
    return out


def row_offset(rows: int) -> int:
    """Return where this rank's `rows` rows begin in what the gathers return."""
    return _world.rank * rows


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of the selected rows of the *global* batch, as a term of this rank's loss.

    Args:
        values: [B] per-row losses of this rank.
        mask: [B] bool, the rows that count; None is all of them.

    Returns:
        Scalar `sum of this rank's rows * world / global count`: its mean over ranks is the
        mean over the global batch, and so is its gradient's. Zero attached to the graph where
        no rank selects a row (so that collectives in the backward stay in step).
    """
    chosen = values if mask is None else values[mask]
    count = torch.tensor([chosen.shape[0]], dtype=torch.int64, device=values.device)
    if _world.size > 1:
        dist.all_reduce(count)
    total = int(count.item())
    return chosen.sum() * (_world.size / total if total else 0.0)


def global_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of the selected rows over all ranks, detached and equal everywhere; 0 without rows."""
    chosen = (values if mask is None else values[mask]).detach().double()
    both = torch.stack([chosen.sum(), chosen.new_tensor(float(chosen.shape[0]))])
    if _world.size > 1:
        dist.all_reduce(both)
    return (both[0] / both[1].clamp(min=1)).float()


def seeded_normal(rows: int, dim: int, *seeds: int) -> Tensor:
    """This rank's rows of one standard normal draw for the global batch, on the CPU.

    Args:
        rows: Rows of this rank (the same number on every rank).
        dim: Width.
        seeds: Any integers; equal ones give equal draws on every machine and world size.
    """
    digest = hashlib.sha256(",".join(str(int(s)) for s in seeds).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    draw = torch.randn(rows * _world.size, dim, generator=generator)
    return draw.narrow(0, row_offset(rows), rows)
