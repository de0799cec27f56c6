"""The process group: where this process stands among those that train together."""

from __future__ import annotations

import atexit
import datetime
import os
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store

from outmodal.errors import UserError
from outmodal.train.rendezvous import meeting, shared_store


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
        UserError: CUDA is asked for and absent, the environment names only some of the
            variables, or the processes do not find each other within the timeout.
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
    timeout = datetime.timedelta(minutes=timeout_minutes)
    store = HashStore() if size == 1 else _shared_store(rank, size, timeout)
    with meeting(store, rank, size, timeout) as own:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=own,
            rank=rank,
            world_size=size,
            timeout=timeout,
        )


def _shared_store(rank: int, size: int, timeout: datetime.timedelta) -> Store:
    global _store
    if _store is None:
        _store = shared_store(rank, size, timeout)
    return _store
