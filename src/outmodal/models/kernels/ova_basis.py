"""What stands for a sample's group of vectors in the one-against-all scores: a basis and a gain.

With A [d, J] the group's unit vectors, G = A^T A + ridge * I = L L^T and Q = A L^-T, the length of
z's projection on the group's subspace is |Q^T z|, and the volume that z spans with the group is
sqrt(det(G) * (1 - |Q^T z|^2)): after this step a score costs one product with Q and no solve.

The Gram matrices are tiny but badly conditioned where vectors of a group almost agree, which
aligned modalities do by design; so they are made and factorised in a precision of their own
(fp64 by default). The factorisation is written out over the J vectors: on batches of tiny
matrices this is faster than a library call, and a pivot that vanishes stays finite.

Sources: OVA-IB (Li et al., arXiv 2605.29900), projection score; GRAM (Cicchetti et al., ICLR
2025), volume; TRIANGLE (Cicchetti et al., NeurIPS 2025), area.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outmodal.models.kernels.ova_tiled import EPS, Form

# Samples whose bases are made at a time: the copies in the Gram's precision stay small.
ROWS = 4096


@dataclass(frozen=True)
class Groups:
    """How groups are made of the vectors that face an anchor.

    Attributes:
        present: [n, J] bool; None: all are. An absent vector is a zero column of A with 1 on the
            Gram's diagonal: its basis vector is zero and the gain is that of the others.
        form: The score; the area takes the two vectors as they are.
        ridge: Added to the Gram's diagonal.
        dtype: Precision of the Gram and its factorisation.
    """

    present: Tensor | None
    form: Form
    ridge: float
    dtype: torch.dtype

    def basis(self, rest: Sequence[Tensor]) -> Made:
        """basis [n, J, d] of J tensors [n, d] (zeros where absent) and gain [n]."""
        return self._made(_basis, rest)

    def basis_grads(self, rest: Sequence[Tensor], dbasis: Tensor, dgain: Tensor | None) -> Grads:
        """Gradients by `rest`, J tensors [n, d], given those by basis and gain."""
        return self._grads(_basis, rest, dbasis, dgain)

    def inverse(self, rest: Sequence[Tensor]) -> Made:
        """L^-1 [n, J, J], with which the basis is L^-1 A^T, and gain [n]."""
        return self._made(_inverse_factor, rest)

    def inverse_grads(
        self, rest: Sequence[Tensor], dinverse: Tensor, dgain: Tensor | None
    ) -> Grads:
        """Gradients by `rest`, given those by the inverse and the gain."""
        return self._grads(_inverse_factor, rest, dinverse, dgain)

    def _made(self, make: Maker, rest: Sequence[Tensor]) -> Made:
        parts = [
            make(self, [r[i : i + ROWS] for r in rest], _rows(self.present, i))
            for i in range(0, max(len(rest[0]), 1), ROWS)
        ]
        gains = [gain for _, gain in parts if gain is not None]
        return torch.cat([first for first, _ in parts]), torch.cat(gains) if gains else None

    def _grads(
        self, make: Maker, rest: Sequence[Tensor], dfirst: Tensor, dgain: Tensor | None
    ) -> Grads:
        out = [torch.empty_like(r) for r in rest]
        for i in range(0, len(rest[0]), ROWS):
            rows = slice(i, i + ROWS)
            leaves = [r[rows].detach().requires_grad_() for r in rest]
            with torch.enable_grad():
                first, gain = make(self, leaves, _rows(self.present, i))
            outputs, upstream = [first], [dfirst[rows].to(first.dtype)]
            if gain is not None and dgain is not None:
                outputs, upstream = [first, gain], [*upstream, dgain[rows].to(gain.dtype)]
            found = torch.autograd.grad(outputs, leaves, upstream, materialize_grads=True)
            for whole, part in zip(out, found, strict=True):
                whole[rows] = part
        return out


Made = tuple[Tensor, Tensor | None]
Grads = list[Tensor]
Maker = Callable[[Groups, Sequence[Tensor], "Tensor | None"], Made]


def _rows(present: Tensor | None, first: int) -> Tensor | None:
    return None if present is None else present[first : first + ROWS]


def _basis(groups: Groups, rest: Sequence[Tensor], present: Tensor | None) -> Made:
    """Basis in fp32 (fp64 for fp64) and gain of some samples."""
    out, vectors = _stacked(groups, rest)
    if groups.form == "area":
        return vectors.to(out), (vectors[:, 0] * vectors[:, 1]).sum(1).to(out)
    inverse, gain = _factors(groups, vectors, present)
    basis = torch.bmm(inverse.to(vectors.dtype), vectors).to(out)
    return basis, None if gain is None else gain.to(out)


def _inverse_factor(groups: Groups, rest: Sequence[Tensor], present: Tensor | None) -> Made:
    """Inverse factor and gain of some samples, in the same precision as a basis."""
    out, vectors = _stacked(groups, rest)
    inverse, gain = _factors(groups, vectors, present)
    return inverse.to(out), None if gain is None else gain.to(out)


def _stacked(groups: Groups, rest: Sequence[Tensor]) -> tuple[torch.dtype, Tensor]:
    """The type of results, and vectors [n, J, d] in the Gram's precision or better."""
    out = torch.promote_types(rest[0].dtype, torch.float32)
    return out, torch.stack([r.to(torch.promote_types(out, groups.dtype)) for r in rest], dim=1)


def _factors(groups: Groups, vectors: Tensor, present: Tensor | None) -> Made:
    lower = cholesky(gram(vectors, present, groups.ridge).to(groups.dtype))
    if groups.form == "projection":
        return _inverse(lower), None
    diagonal = torch.stack([row[-1] for row in lower], dim=1)
    return _inverse(lower), diagonal.prod(1).square()


def gram(vectors: Tensor, present: Tensor | None, ridge: float) -> Tensor:
    """[n, J, J] inner products of vectors [n, J, d]; on the diagonal plus ridge, 1 where absent."""
    product = torch.bmm(vectors, vectors.transpose(1, 2))
    extra = torch.full_like(product[:, :, 0], ridge)
    if present is not None:
        extra = torch.where(present, extra, torch.ones_like(extra))
    return product + torch.diag_embed(extra)


def cholesky(matrices: Tensor) -> list[list[Tensor]]:
    """Lower factor of [n, J, J] positive matrices with a diagonal near 1, as a list of its rows.

    A pivot below the precision's epsilon is taken as epsilon, with no gradient through it: what
    it stands for is rounding noise.
    """
    floor = torch.finfo(matrices.dtype).eps
    lower: list[list[Tensor]] = []
    for i in range(matrices.shape[1]):
        row: list[Tensor] = []
        for j in range(i):
            dot = sum((row[k] * lower[j][k] for k in range(j)), torch.zeros_like(matrices[:, 0, 0]))
            row.append((matrices[:, i, j] - dot) / lower[j][j])
        pivot = matrices[:, i, i] - sum((x * x for x in row), torch.zeros_like(matrices[:, 0, 0]))
        lower.append([*row, pivot.clamp(min=floor).sqrt()])
    return lower


def _inverse(lower: list[list[Tensor]]) -> Tensor:
    """[n, J, J] inverse of a lower triangular matrix given by rows."""
    zero = torch.zeros_like(lower[0][0])
    rows: list[list[Tensor]] = []
    for i, row in enumerate(lower):
        done = [-sum((row[k] * rows[k][j] for k in range(j, i)), zero) / row[i] for j in range(i)]
        rows.append([*done, row[i].reciprocal(), *[zero] * (len(lower) - i - 1)])
    return torch.stack([torch.stack(r, dim=1) for r in rows], dim=1)


def min_gram_eigenvalue(
    embeddings: Sequence[Tensor],
    present: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Smallest eigenvalue of any sample's Gram matrix of the vectors that face an anchor.

    Near 0, two modalities of a sample agree so well that a subspace is barely defined and only the
    ridge bounds the gradient: worth a place in the log.

    Args:
        embeddings: M tensors [n, d] of unit vectors.
        present: [n, M] bool; an absent vector counts as orthogonal to all.
        dtype: Precision.

    Returns:
        Scalar in [0, 1] up to rounding, detached; 1 for n = 0.
    """
    with torch.no_grad():
        vectors = torch.stack([e.detach().to(dtype) for e in embeddings], dim=1)
        if present is not None:
            vectors = torch.where(present[:, :, None], vectors, torch.zeros_like(vectors))
        whole = gram(vectors, present, 0.0)
        lowest = whole.new_ones(())
        for m in range(len(embeddings)):
            others = [i for i in range(len(embeddings)) if i != m]
            block = whole[:, others][:, :, others]
            if len(block):
                lowest = torch.minimum(lowest, torch.linalg.eigvalsh(block).amin())
        return lowest


def combine(products: Tensor, gain: Tensor | None, form: Form) -> Tensor:
    """Scores [...] from products [..., J] of a row with a basis, and gain [...].

    See ova_tiled for the formulas; with the sign that makes larger better.
    """
    if form == "area":
        assert gain is not None
        p, q = products[..., 0], products[..., 1]
        return (1 - p - q + gain).square() / 2 - 2 * (1 - p) * (1 - q)
    square = products.square().sum(-1)
    if form == "projection":
        return (square + EPS).sqrt()
    assert gain is not None
    return -(gain * (1 - square).clamp(min=0) + EPS).sqrt()
