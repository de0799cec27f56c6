"""The problems of `outmodal bench kernels`: random inputs, and who can solve them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from outmodal.launch.bench import kernel_peers as peers
from outmodal.launch.bench.kernel_peers import Missing
from outmodal.models.kernels.nce import nce
from outmodal.models.kernels.nearest import nearest
from outmodal.models.kernels.ova import ova

Op = Literal["nce", "ova", "nearest"]
OPS: tuple[Op, ...] = ("nce", "ova", "nearest")
PEERS: dict[Op, tuple[str, ...]] = {
    "nce": ("open_clip", "open_clip_compiled", "chunked_compile", "inf_cl"),
    "ova": ("chunked_compile",),
    "nearest": ("cdist",),
}
OURS = "outmodal"
SETS = 4
"""Sets of inputs taken in turns on a GPU, so that its cache does not hold them."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCALE = 1 / 0.07


@dataclass(frozen=True)
class Sizes:
    """A problem: n rows of width d; m modalities of ova; k sets of mo columns of nearest."""

    op: Op
    n: int
    d: int
    m: int = 3
    k: int = 3
    mo: int = 0
    dtype: str = "fp32"
    device: str = "cpu"

    def flops(self) -> float:
        """Operations by convention: what the best known order of products needs, 8 N^2 d for nce,
        whatever an alternative really does."""
        pairs = {
            "nce": 8 * self.n * self.n,
            "ova": 8 * self.n * self.n * self.m * (self.m - 1),
            "nearest": 2 * self.n * self.mo * self.k,
        }[self.op]
        return float(pairs) * self.d

    def text(self) -> str:
        """In one line."""
        more = {"nce": "", "ova": f", m={self.m}", "nearest": f", mo={self.mo}, k={self.k}"}
        return f"{self.op} n={self.n}, d={self.d}{more[self.op]}, {self.dtype}"


@dataclass
class Inputs:
    """Leaves of one set: the embeddings, and the scale."""

    embeddings: list[Tensor]
    scale: Tensor

    def forget(self) -> None:
        """Drop gradients, so that nobody adds to anybody's."""
        for leaf in (*self.embeddings, self.scale):
            leaf.grad = None


@dataclass
class Problem:
    """Inputs and the calls that solve them.

    Attributes:
        sets: Of inputs, to be taken in turns.
        losses: By alternative, a function of one set; ours first.
        missing: By alternative, why it cannot run here.
    """

    sizes: Sizes
    sets: list[Inputs]
    losses: dict[str, Callable[[Inputs], Tensor]]
    missing: dict[str, str] = field(default_factory=dict)

    def call(self, name: str) -> Callable[[], Tensor]:
        """Forward and, for a loss, backward, with the next set of inputs each time."""
        turns = _endless(self.sets)
        loss = self.losses[name]

        def run() -> Tensor:
            inputs = next(turns)
            inputs.forget()
            out = loss(inputs)
            if out.requires_grad:
                out.backward()  # type: ignore[no-untyped-call]
            return out.detach()

        return run


def make_problem(sizes: Sizes, names: Sequence[str], seed: int = 0, sets: int = 1) -> Problem:
    """Draw inputs; find out which of `names` can solve them here."""
    problem = Problem(sizes, [draw(sizes, seed + i) for i in range(sets)], {})
    for name in names:
        try:
            problem.losses[name] = _solver(sizes, name)
        except Missing as reason:
            problem.missing[name] = str(reason)
    return problem


def draw(sizes: Sizes, seed: int, scale: float = SCALE, cosine: float = 0.3) -> Inputs:
    """Unit vectors of which those of one sample have about `cosine` with each other."""
    generator = torch.Generator().manual_seed(seed)
    device, dtype = torch.device(sizes.device), DTYPES[sizes.dtype]

    def some(rows: int) -> Tensor:
        x = torch.randn(rows, sizes.d, generator=generator)
        return F.normalize(x, dim=1)

    if sizes.op == "nearest":
        vectors = [some(sizes.n), *(some(sizes.mo) for _ in range(sizes.k))]
    else:
        shared = some(sizes.n)
        count = 2 if sizes.op == "nce" else sizes.m
        share, own = cosine**0.5, (1 - cosine) ** 0.5
        vectors = [F.normalize(share * shared + own * some(sizes.n), dim=1) for _ in range(count)]
    learn = sizes.op != "nearest"
    leaves = [x.to(device, dtype).requires_grad_(learn) for x in vectors]
    return Inputs(leaves, torch.tensor(scale, device=device, requires_grad=learn))


def _endless(sets: Sequence[Inputs]) -> Iterator[Inputs]:
    while True:
        yield from sets


def _solver(sizes: Sizes, name: str) -> Callable[[Inputs], Tensor]:
    solvers = {"nce": _nce_solver, "ova": _ova_solver, "nearest": _nearest_solver}
    return solvers[sizes.op](sizes, name)


def _nce_solver(sizes: Sizes, name: str) -> Callable[[Inputs], Tensor]:
    device = torch.device(sizes.device)
    if name == OURS:
        return lambda x: nce(x.embeddings[0], x.embeddings[1], x.scale, check=False)
    makers: dict[str, Callable[[], peers.Loss]] = {
        "open_clip": lambda: peers.open_clip_loss(False, device),
        "open_clip_compiled": lambda: peers.open_clip_loss(True, device),
        "chunked_compile": lambda: peers.chunked_nce(device),
        "inf_cl": lambda: peers.inf_cl_loss(sizes.n, sizes.d, device),
    }
    loss = makers[name]()
    half = sizes.dtype != "fp32" and name.startswith("open_clip")

    def solve(x: Inputs) -> Tensor:
        # under autocast as its training runs: products in half, cross-entropy in full precision
        with torch.autocast(device.type, DTYPES[sizes.dtype], enabled=half):
            return loss(x.embeddings[0], x.embeddings[1], x.scale)

    return solve


def _ova_solver(sizes: Sizes, name: str) -> Callable[[Inputs], Tensor]:
    if name == OURS:
        return lambda x: ova(x.embeddings, x.scale, check=False)
    loss = peers.chunked_ova(torch.device(sizes.device))
    return lambda x: loss(x.embeddings, x.scale)


def _nearest_solver(sizes: Sizes, name: str) -> Callable[[Inputs], Tensor]:
    if name == OURS:
        return lambda x: nearest(x.embeddings[0], x.embeddings[1:])[1][:, 0]
    return lambda x: peers.chunked_cdist(x.embeddings[0], x.embeddings[1:])


def options() -> dict[str, Any]:
    """Names of operations and of their peers."""
    return {"op": OPS, "peers": sorted({p for names in PEERS.values() for p in names})}
