"""GPUs and links by name, as their makers' data sheets give them.

Rates are dense (no sparsity). What software reaches of them is `Machine.reach`.
"""

from __future__ import annotations

from dataclasses import dataclass

from outmodal.errors import UserError, nearest


@dataclass(frozen=True)
class Gpu:
    """One accelerator.

    Attributes:
        memory: Bytes.
        bf16, fp32: Floating-point operations a second on matrix units (fp32: as torch computes
            fp32 matrix products by default, without tensor cores).
        bandwidth: Bytes a second of its memory.
        peer: Bytes a second to another GPU of the node, one direction.
    """

    name: str
    memory: float
    bf16: float
    fp32: float
    bandwidth: float
    peer: float


_GB, _TB, _TF = 1e9, 1e12, 1e12

GPUS = {
    g.name: g
    for g in (
        Gpu("v100", 32 * _GB, 112 * _TF, 15.7 * _TF, 0.9 * _TB, 150 * _GB),
        Gpu("rtx4090", 24 * _GB, 165 * _TF, 82 * _TF, 1.0 * _TB, 25 * _GB),
        Gpu("l40s", 48 * _GB, 362 * _TF, 91 * _TF, 0.86 * _TB, 25 * _GB),
        Gpu("a100-40", 40 * _GB, 312 * _TF, 19.5 * _TF, 1.55 * _TB, 300 * _GB),
        Gpu("a100", 80 * _GB, 312 * _TF, 19.5 * _TF, 2.0 * _TB, 300 * _GB),
        Gpu("h100", 80 * _GB, 989 * _TF, 67 * _TF, 3.35 * _TB, 450 * _GB),
        Gpu("h200", 141 * _GB, 989 * _TF, 67 * _TF, 4.8 * _TB, 450 * _GB),
        Gpu("b200", 180 * _GB, 2250 * _TF, 75 * _TF, 7.7 * _TB, 900 * _GB),
        Gpu("mi300x", 192 * _GB, 1307 * _TF, 163 * _TF, 5.3 * _TB, 448 * _GB),
        Gpu("cpu", 16 * _GB, 0.2 * _TF, 0.1 * _TF, 20 * _GB, 5 * _GB),
    )
}

LINKS = {
    "ndr": 50 * _GB,  # 400 Gb/s InfiniBand for each GPU
    "hdr": 25 * _GB,
    "edr": 12.5 * _GB,
    "ethernet-100": 12.5 * _GB,
    "ethernet-25": 3.1 * _GB,
    "ethernet-10": 1.25 * _GB,
}
"""Bytes a second between nodes, for each GPU, one direction."""


def find_gpu(name: str) -> Gpu:
    """Return a GPU by name.

    Raises:
        UserError: Names the nearest one.
    """
    if name not in GPUS:
        raise UserError(
            f"unknown GPU '{name}'{nearest(name, GPUS)}; the known ones are {', '.join(GPUS)}"
        )
    return GPUS[name]


def find_link(name: str) -> float:
    """Return bytes a second of an interconnect by name.

    Raises:
        UserError: Names the nearest one.
    """
    if name not in LINKS:
        raise UserError(
            f"unknown interconnect '{name}'{nearest(name, LINKS)}; the known ones are "
            f"{', '.join(LINKS)}"
        )
    return LINKS[name]


@dataclass(frozen=True)
class Machine:
    """What a job asks for.

    Attributes:
        nodes: Nodes.
        per_node: GPUs of each.
        link: Bytes a second between nodes, for each GPU.
        reach: Share of the data sheet's rates that kernels of this kind reach.
        reserve: Bytes of each GPU that are not for tensors: context, NCCL, libraries.
        slack: Share of the rest that the allocator loses to fragments.
    """

    gpu: Gpu
    nodes: int
    per_node: int
    link: float
    reach: float = 0.55
    reserve: float = 2.0 * _GB
    slack: float = 0.08

    @property
    def size(self) -> int:
        """GPUs in all."""
        return self.nodes * self.per_node

    @property
    def usable(self) -> float:
        """Bytes of one GPU that tensors may take."""
        return (self.gpu.memory - self.reserve) * (1 - self.slack)

    @property
    def wire(self) -> float:
        """Bytes a second of a ring over all GPUs: its slowest link counts."""
        return self.gpu.peer if self.nodes == 1 else min(self.gpu.peer, self.link)
