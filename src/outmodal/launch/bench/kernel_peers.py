"""What the kernels are compared with: other projects' losses from their own wheels, and small
functions of stock operations.

A wheel is looked for among the installed distributions and only its one file with the loss is
executed: importing the whole package would ask for dependencies that the loss does not have.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from importlib import metadata
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from outmodal.models.perceptors.compiler import lacks_compiler

Loss = Callable[..., Tensor]
WHEELS = {"open_clip": "open_clip_torch", "inf_cl": "inf-cl"}
CHUNK = 1024


class Missing(Exception):
    """A peer cannot be measured here; says why, and what would bring it."""


def open_clip_loss(compiled: bool, device: torch.device) -> Loss:
    """(q, k, scale) -> open_clip's ClipLoss of one process."""
    loss: Loss = distribution_file("open_clip", "open_clip/loss.py").ClipLoss()
    return compile_here(loss, device) if compiled else loss


def inf_cl_loss(n: int, d: int, device: torch.device) -> Loss:
    """(q, k, scale) -> both directions of inf-cl's fused loss."""
    if device.type != "cuda":
        raise Missing("needs CUDA: its kernels are Triton's, with inline assembly")
    if n % 64 or d % 256:
        raise Missing("needs n a multiple of 64 and d of 256")
    distribution("inf_cl")
    module: Any = importlib.import_module("inf_cl")

    def loss(q: Tensor, k: Tensor, scale: Tensor) -> Tensor:
        one, two = (module.cal_flash_loss(a, b, scale=scale) for a, b in ((q, k), (k, q)))
        total: Tensor = (one.mean() + two.mean()) / 2
        return total

    return loss


def distribution(peer: str) -> metadata.Distribution:
    """The installed wheel of a peer, or Missing with the command that brings it."""
    try:
        return metadata.distribution(WHEELS[peer])
    except metadata.PackageNotFoundError:
        raise Missing(f"not installed: pip install --no-deps {WHEELS[peer]}") from None


def distribution_file(peer: str, file: str) -> ModuleType:
    """Execute one file of a peer's wheel as a module of its own."""
    path = str(distribution(peer).locate_file(file))
    spec = importlib.util.spec_from_file_location(f"_bench_{peer}", path)
    if spec is None or spec.loader is None:
        raise Missing(f"its wheel has no {file}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (FileNotFoundError, ImportError) as error:
        raise Missing(f"{file} of its wheel does not load ({error})") from error
    return module


def compile_here(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """torch.compile for fixed shapes, or Missing with what it lacks."""
    if reason := lacks_compiler(device):
        raise Missing(reason)
    compiled: Callable[..., Any] = torch.compile(function, dynamic=False)
    return compiled


# --- chunks of stock operations ----------------------------------------------------------------


def chunked_nce(device: torch.device) -> Loss:
    """(q, k, scale) -> both directions in compiled chunks, each done again in backward."""
    part = compile_here(_cross_entropies, device)

    def loss(q: Tensor, k: Tensor, scale: Tensor) -> Tensor:
        total = q.new_zeros((), dtype=torch.float32)
        for rows, columns in ((q, k), (k, q)):
            for i in range(0, len(q), CHUNK):
                total = total + _again(part, rows[i : i + CHUNK], columns, scale, _at(i, q))
        return total / (2 * len(q))

    return loss


def chunked_ova(device: torch.device) -> Loss:
    """(embeddings, scale) -> projection score of every anchor by QR, chunks as in chunked_nce."""
    part = compile_here(_projection_cross_entropies, device)

    def loss(embeddings: Sequence[Tensor], scale: Tensor) -> Tensor:
        n = len(embeddings[0])
        total = embeddings[0].new_zeros((), dtype=torch.float32)
        for m, anchor in enumerate(embeddings):
            rest = [e.float() for j, e in enumerate(embeddings) if j != m]
            basis = torch.linalg.qr(torch.stack(rest, 2))[0].to(anchor.dtype)
            for i in range(0, n, CHUNK):
                total = total + _again(part, anchor[i : i + CHUNK], basis, scale, _at(i, anchor))
        return total / (n * len(embeddings))

    return loss


def chunked_cdist(z: Tensor, v: Sequence[Tensor]) -> Tensor:
    """[N] index of the smallest mean of torch.cdist over v, a chunk of rows at a time."""
    best = []
    for rows in torch.split(z, CHUNK):
        distance = torch.cdist(rows, v[0])
        for part in v[1:]:
            distance += torch.cdist(rows, part)
        best.append(distance.argmin(1))
    return torch.cat(best)


def _at(i: int, like: Tensor) -> Tensor:
    return torch.arange(i, min(i + CHUNK, len(like)), device=like.device)


def _again(part: Callable[..., Any], *args: Tensor) -> Tensor:
    out: Tensor = checkpoint(part, *args, use_reentrant=False)
    return out


def _cross_entropies(rows: Tensor, columns: Tensor, scale: Tensor, target: Tensor) -> Tensor:
    logits = scale * (rows @ columns.T).float()
    return F.cross_entropy(logits, target, reduction="sum")


def _projection_cross_entropies(
    rows: Tensor, basis: Tensor, scale: Tensor, target: Tensor
) -> Tensor:
    dots = torch.einsum("rd,cdj->rcj", rows, basis).float()
    scores = ((dots * dots).sum(2) + 1e-12).sqrt()
    return F.cross_entropy(scale * scores, target, reduction="sum")
