"""All anchors' losses in one pass, with half the products: for one process, in plain PyTorch.

With y = L^-1 a, a_j = z . e_j, a score needs the raw products of the anchor with the group's
vectors only. Those of anchor m's rows I with modality j's columns J are, transposed, those of
anchor j's rows J with modality m's columns I. So a pair of tiles (I, J), (J, I) takes M (M - 1)
products where one basis an anchor takes twice as many, forward and backward: 4 M (M - 1) N^2 d
operations instead of 8. What it costs is the elementwise y = L^-1 a and its gradient.

Rows of several ranks meet each other's columns only once, in one role: there is nothing to share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from outmodal.models.kernels import ova_tiled
from outmodal.models.kernels.nce_tiled import Sums
from outmodal.models.kernels.ova_anchor import Anchor, Side, Slopes
from outmodal.models.kernels.ova_basis import combine
from outmodal.models.kernels.ova_tiled import LOG2E, Block

# Rows (and columns) of a tile: 2 M (M - 1) planes of it should stay near a core.
CPU_TILE = 512
DEVICE_TILE = 2048


def can_share(anchors: Sequence[Anchor], embeddings: Sequence[Tensor]) -> bool:
    """Whether this file serves these anchors; where not, each has its own pass."""
    first = anchors[0]
    everyone = len(anchors) == len(embeddings)
    plain = first.primitives is ova_tiled and first.form != "area" and first.certain
    return everyone and plain and first.exchange.size == 1 and len(embeddings[0]) > 1


@dataclass(frozen=True)
class Shared:
    """Operands of all anchors, in the order of the modalities.

    Attributes:
        vectors: M tensors [n, d] in the type of the computation; scaled: times scale * log2(e).
        inverses: M tensors [J, J, n], L^-1 of every sample's group.
        blocks: What to do with a tile of each anchor's products.
        shift: As in `ova_tiled.sums`.
    """

    anchors: Sequence[Anchor]
    vectors: list[Tensor]
    scaled: list[Tensor]
    inverses: list[Tensor]
    blocks: list[Block]
    shift: Tensor

    @classmethod
    def of(cls, anchors: Sequence[Anchor], scale: Tensor, embeddings: Sequence[Tensor]) -> Shared:
        vectors = [e.to(scale.dtype) for e in embeddings]
        inverses, blocks = [], []
        for anchor in sorted(anchors, key=lambda a: a.index):
            z, rest = anchor.split(vectors)
            inverse, gain = anchor.groups.inverse(rest)
            inverses.append(inverse.permute(1, 2, 0).contiguous())
            dead = None if anchor.live is None else ~anchor.live
            bits = scale * LOG2E
            blocks.append(Block(z, z, z[None], gain, bits, 0, dead, dead, anchor.form))
        scaled = [v * (scale * LOG2E) for v in vectors]
        ordered = sorted(anchors, key=lambda a: a.index)
        return cls(ordered, vectors, scaled, inverses, blocks, anchors[0].first_shift(scale))

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """(rows, columns) on and above the diagonal."""
        n = len(self.vectors[0])
        size = CPU_TILE if self.vectors[0].device.type == "cpu" else DEVICE_TILE
        for i in range(0, n, size):
            for j in range(i, n, size):
                yield slice(i, min(i + size, n)), slice(j, min(j + size, n))

    def products(self, rows: slice, cols: slice) -> list[list[Tensor]]:
        """[m][j] scaled products [r, c] of m's rows with j's columns; empty for j = m."""
        return [
            [x[rows] @ v[cols].T if i != j else x[:0] for j, v in enumerate(self.vectors)]
            for i, x in enumerate(self.scaled)
        ]

    def positives(self, scale: Tensor) -> list[Tensor]:
        """M tensors [n]: logits of the anchors with their own groups."""
        out = []
        for anchor, inverse, block in zip(self.anchors, self.inverses, self.blocks, strict=True):
            z, rest = anchor.split(self.vectors)
            raw = torch.stack([(z * r).sum(1) for r in rest])
            y = torch.einsum("ijn,jn->ni", inverse, raw)
            out.append(scale * combine(y, block.gain, anchor.form))
        return out

    def sums(self) -> list[Sums]:
        """Sums of every anchor's rows and columns, as of `ova_tiled.sums`."""
        found = []
        for anchor, v in zip(self.anchors, self.vectors, strict=True):
            row, col = torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0])
            totals = anchor.smoothing > 0
            both = (row.clone(), col.clone()) if totals else (None, None)
            found.append(Sums(row, col, *both))
        for rows, cols in self.tiles():
            planes = self.products(rows, cols)
            for m, raw, r, c in _roles(planes, rows, cols):
                x, _ = self.blocks[m].exponents(_solved(self.inverses[m], raw, c), c)
                self.blocks[m].add_sums(x, self.shift, found[m], r, c)
        return found


def _roles(
    planes: list[list[Tensor]], rows: slice, cols: slice
) -> Iterator[tuple[int, list[Tensor], slice, slice]]:
    """(anchor, its planes [r, c] with the others, rows, columns) of a tile and of its mirror."""
    for m in range(len(planes)):
        others = [j for j in range(len(planes)) if j != m]
        yield m, [planes[m][j] for j in others], rows, cols
        if rows != cols:
            yield m, [planes[j][m].T for j in others], cols, rows


def _solved(inverse: Tensor, raw: list[Tensor], cols: slice) -> list[Tensor]:
    """y = L^-1 a of a tile: J new planes [r, c]."""
    out = []
    for i in range(len(raw)):
        y = raw[0] * inverse[i, 0, None, cols]
        for j in range(1, i + 1):
            y.addcmul_(raw[j], inverse[i, j, None, cols])
        out.append(y)
    return out


class Gradients:
    """What is added up over the tiles: by rows' and columns' role, by inverses and gains."""

    def __init__(self, shared: Shared) -> None:
        self.by_rows = [torch.zeros_like(v) for v in shared.vectors]
        self.by_cols = [torch.zeros_like(v) for v in shared.vectors]
        self.inverses = [torch.zeros_like(x) for x in shared.inverses]
        gains = [b.gain for b in shared.blocks]
        self.gains = [None if g is None else torch.zeros_like(g) for g in gains]

    def add(self, shared: Shared, slopes: list[ova_tiled.Slopes]) -> None:
        """All tiles. slopes: of every anchor, in their order."""
        for rows, cols in shared.tiles():
            planes = shared.products(rows, cols)
            by = [[torch.zeros_like(x) for x in row] for row in planes]
            for (m, raw, r, c), (_, into, _, _) in zip(
                _roles(planes, rows, cols), _roles(by, rows, cols), strict=True
            ):
                self._tile(shared, slopes[m], m, raw, into, r, c)
            for m, row in enumerate(by):
                for j, g in enumerate(row):
                    if m != j:
                        self.by_rows[m][rows].addmm_(g, shared.vectors[j][cols])
                        self.by_cols[j][cols].addmm_(g.T, shared.vectors[m][rows])

    def _tile(
        self,
        shared: Shared,
        slopes: ova_tiled.Slopes,
        m: int,
        raw: list[Tensor],
        into: list[Tensor],
        rows: slice,
        cols: slice,
    ) -> None:
        """Gradients by an anchor's planes, added to `into`, and by its groups' factors."""
        block, inverse = shared.blocks[m], shared.inverses[m]
        planes = _solved(inverse, raw, cols)
        x, kept = block.exponents(planes, cols)
        by_gain = block.chain(slopes.tile(block, x, shared.shift, rows, cols), planes, kept, cols)
        gain = self.gains[m]
        if gain is not None and by_gain is not None:
            gain[cols] += by_gain
        for i, h in enumerate(planes):
            for j in range(i + 1):
                into[j].addcmul_(h, inverse[i, j, None, cols])
                self.inverses[m][i, j, cols] += (h * raw[j]).sum(0).div_(block.bits)


class SharedLoss(torch.autograd.Function):
    """Sum of the losses of all anchors, by scale and embeddings."""

    @staticmethod
    def forward(ctx: Any, anchors: Sequence[Anchor], scale: Tensor, *embeddings: Tensor) -> Tensor:
        shared = Shared.of(anchors, scale, embeddings)
        ctx.anchors, ctx.positives, ctx.sides = anchors, shared.positives(scale), []
        total = scale.new_zeros(())
        for anchor, sums, positive in zip(
            shared.anchors, shared.sums(), ctx.positives, strict=True
        ):
            shift = shared.shift.expand(len(positive))
            rows = Side(sums.row, shift, sums.row_total)
            cols = Side(sums.col, shift, sums.col_total) if anchor.both else None
            ctx.sides.append((rows, cols))
            by_col = None if cols is None else anchor.losses(cols, positive)
            total += anchor.mean(anchor.losses(rows, positive), by_col).sum()
        ctx.save_for_backward(scale, *embeddings)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scale, *embeddings = ctx.saved_tensors
        with torch.autocast(scale.device.type, enabled=False):
            shared = Shared.of(ctx.anchors, scale, embeddings)
            weight = upstream.to(scale.dtype) * (0.5 if ctx.anchors[0].both else 1.0)
            slopes = [
                _tile_slopes(anchor, sides, positive, weight, scale)
                for anchor, sides, positive in zip(
                    shared.anchors, ctx.sides, ctx.positives, strict=True
                )
            ]
            found = Gradients(shared)
            found.add(shared, slopes)
            dscale = _by_scale(shared, found) / scale
            total = [r + c for r, c in zip(found.by_rows, found.by_cols, strict=True)]
            for m, anchor in enumerate(shared.anchors):
                others = [j for j in range(len(embeddings)) if j != m]
                rest = [shared.vectors[j] for j in others]
                dinverse = found.inverses[m].permute(2, 0, 1)
                parts = anchor.groups.inverse_grads(rest, dinverse, found.gains[m])
                for j, part in zip(others, parts, strict=True):
                    total[j] += part
        return None, dscale, *(g.to(e.dtype) for g, e in zip(total, embeddings, strict=True))


def _tile_slopes(
    anchor: Anchor, sides: tuple[Side, Side | None], positive: Tensor, weight: Tensor, scale: Tensor
) -> ova_tiled.Slopes:
    row = Slopes.of(anchor, sides[0], positive, weight)
    if sides[1] is None:
        return ova_tiled.Slopes.of(scale, row.coef, None, row.const, None, row.pair)
    col = Slopes.of(anchor, sides[1], positive, weight)
    pair = row.pair + col.pair
    return ova_tiled.Slopes.of(scale, row.coef, col.coef, row.const, col.const, pair)


def _by_scale(shared: Shared, found: Gradients) -> Tensor:
    """scale times the gradient by the scale: see `ova_anchor`."""
    if shared.anchors[0].form == "projection":
        pairs = zip(shared.vectors, found.by_rows, strict=True)
        return torch.stack([(v * g).sum() for v, g in pairs]).sum()
    parts = [
        2 * (block.gain * by).sum()
        for block, by in zip(shared.blocks, found.gains, strict=True)
        if block.gain is not None and by is not None
    ]
    return torch.stack(parts).sum()
