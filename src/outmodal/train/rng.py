"""Generator states of this process as plain tensors, gathered over ranks: nothing is pickled."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outmodal.train import gather


def seed_everything(*words: int) -> None:
    """Seed torch, numpy and python from a sequence of integers."""
    seed = int(np.random.SeedSequence(list(words)).generate_state(1, np.uint64)[0])
    torch.manual_seed(seed >> 1)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


def local_state() -> dict[str, Tensor]:
    """States of this process's generators."""
    drawn: Any = np.random.get_state(legacy=True)
    _, keys, position, has_gauss, gauss = drawn
    version, numbers, next_gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*keys.tolist(), position, has_gauss, _bits(gauss)]),
        "python": torch.tensor(
            [version, *numbers, int(next_gauss is not None), _bits(next_gauss or 0.0)]
        ),
    }
    if gather.world().device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(gather.world().device)
    return state


def gathered_state() -> dict[str, Tensor]:
    """{"torch": [world, n], ...}: states of all ranks. Collective."""
    return {name: gather.all_gather_flat(t).cpu() for name, t in local_state().items()}


def restore(state: Mapping[str, Tensor], seed: int, step: int) -> None:
    """Restore this rank's states; on another number of ranks every rank is seeded anew."""
    world = gather.world()
    if not state or state["torch"].shape[0] != world.size:
        seed_everything(seed, step, world.rank)
        return
    own = {name: gather.own_part(t).clone() for name, t in state.items()}
    torch.set_rng_state(own["torch"])
    *keys, position, has_gauss, gauss = own["numpy"].tolist()
    np.random.set_state(
        ("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, _float(gauss))
    )
    version, *numbers, has_next, next_gauss = own["python"].tolist()
    random.setstate((version, tuple(numbers), _float(next_gauss) if has_next else None))
    if world.device.type == "cuda" and "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"], world.device)


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _float(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])
