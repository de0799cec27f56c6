"""One rank of test_nearest.py; a job of the fork server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from outmodal.train import gather
from outmodal.train.nearest import nearest_over_ranks

SIZES = ((37, 53), (1, 9), (5, 1), (0, 4), (4, 0))


def searches() -> dict[str, Tensor]:
    """Results of a few searches, some with fewer rows than ranks, none, and ties."""
    found = {}
    for rows, columns in SIZES:
        g = torch.Generator().manual_seed(rows)
        z = torch.randn(rows, 6, generator=g)
        v = [torch.randn(columns, 6, generator=g).repeat(2, 1) for _ in range(2)]
        for aggregate in ("mean_norm", "rms"):
            d, i = nearest_over_ranks(z, v, aggregate=aggregate, tile=(3, 4), block=7)
            found |= {f"{rows}/{columns}/{aggregate}/d": d, f"{rows}/{columns}/{aggregate}/i": i}
    return found


def main(job: Mapping[str, Any]) -> None:
    """Search; the last rank writes what it got to `job["out"]`."""
    torch.set_num_threads(1)
    world = gather.open_world("cpu")
    found = searches()
    if world.rank == world.size - 1:
        save_file(found, job["out"])
    gather.barrier()
