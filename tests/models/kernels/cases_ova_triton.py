"""Checks of ova_triton, run by test_ova_triton in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from outmodal.models.kernels import common_triton, ova_triton
from outmodal.models.kernels.ova import ova

torch.set_num_threads(1)


@dataclass
class Block:
    """Rows against columns' groups, and everything the primitives take."""

    z: Tensor
    basis: Tensor
    gain: Tensor | None
    form: str
    scale: float = 14.3
    partner: int = 0
    row_live: Tensor | None = None
    col_live: Tensor | None = None

    @property
    def shift(self) -> float:
        return max(self.scale - 70.0, 0.0)

    def args(self) -> tuple[object, ...]:
        """What sums and grads begin with."""
        numbers = torch.tensor([self.scale]), torch.tensor([self.shift])
        place = self.partner, self.row_live, self.col_live
        return (self.z, self.basis, self.gain, *numbers, *place, self.form)

    def inputs(self) -> list[Tensor]:
        """z, basis and gain in fp64, as they are rounded, with gradients."""
        gain = torch.ones(self.basis.shape[1]) if self.gain is None else self.gain
        return [t.double().requires_grad_() for t in (self.z, self.basis, gain)]

    def logits(self, z: Tensor, basis: Tensor, gain: Tensor) -> Tensor:
        """[R, C] fp64."""
        y = torch.einsum("rd,jcd->jrc", z, basis)
        if self.form == "area":
            u, v = 2 - 2 * y[0], 2 - 2 * y[1]
            inner = 1 - y[0] - y[1] + gain[None, :]
            return -self.scale * (u * v - inner**2) / 2
        square = y.square().sum(0)
        if self.form == "projection":
            return self.scale * (square + 1e-12).sqrt()
        return -self.scale * (gain[None, :] * (1 - square).clamp(min=0) + 1e-12).sqrt()

    def masks(self) -> tuple[Tensor, Tensor]:
        """[R, C] live entries off the pairs, and live pairs."""
        rows, cols = len(self.z), self.basis.shape[1]
        live = torch.ones(rows, cols, dtype=torch.bool)
        if self.row_live is not None:
            live &= self.row_live[:, None]
        if self.col_live is not None:
            live &= self.col_live[None, :]
        pair = torch.arange(rows)[:, None] + self.partner == torch.arange(cols)[None, :]
        return live & ~pair, live & pair


def units(*shape: int, seed: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=-1)


def group(
    form: str, j: int, rows: int, cols: int, d: int, dtype: torch.dtype = torch.float32, **more: int
) -> Block:
    """Orthonormal bases for projection and volume, two unit vectors for the area."""
    raw = units(cols, d, j, seed=j).transpose(1, 2) if form == "area" else None
    if raw is None:
        x = torch.randn(cols, d, j, generator=torch.Generator().manual_seed(j))
        basis = torch.linalg.qr(x).Q.permute(2, 0, 1)
    else:
        basis = units(j, cols, d, seed=j)
    gain = None if form == "projection" else torch.rand(cols) * 0.9 + 0.1
    if form == "area":
        gain = (basis[0] * basis[1]).sum(1)
    return Block(units(rows, d, seed=0).to(dtype), basis.to(dtype), gain, form, **more)


def blocks() -> dict[str, Block]:
    found = {
        f"{form} {j}": group(form, j, 70, 90, 20, partner=3)
        for form, j in [("projection", j) for j in range(1, 6)]
        + [("volume", 1), ("volume", 3), ("volume", 5), ("area", 2)]
    }
    for name in ("projection 2", "volume 3", "area 2"):
        g = torch.Generator().manual_seed(4)
        found[f"{name} masked"] = replace(
            found[name],
            partner=-6,
            row_live=torch.rand(70, generator=g) > 0.2,
            col_live=torch.rand(90, generator=g) > 0.2,
        )
    for form, j in (("projection", 3), ("volume", 2), ("area", 2)):
        found[f"{form} bf16"] = group(form, j, 66, 70, 60, torch.bfloat16)
    found["fp16"] = group("projection", 2, 66, 65, 36, torch.float16)
    found["odd"] = group("projection", 2, 130, 67, 37, partner=-40)
    found["one"] = group("projection", 2, 1, 1, 8)
    found["hot"] = group("projection", 2, 70, 70, 16, scale=100.0)
    return found


BLOCKS = blocks()


def error(ours: Tensor, reference: Tensor) -> float:
    """|ours - reference| / |reference|, absolute where the reference is 0."""
    assert ours.shape == reference.shape
    assert ours.dtype == torch.float32
    size = float(reference.norm())
    return float((ours.double() - reference).norm()) / (size if size > 0 else 1.0)


@pytest.fixture(params=BLOCKS)
def block(request: pytest.FixtureRequest) -> Block:
    return BLOCKS[request.param]


@pytest.mark.parametrize("totals", [True, False])
def test_sums(block: Block, totals: bool) -> None:
    found = ova_triton.sums(*block.args(), totals=totals)
    live, _ = block.masks()
    logits = block.logits(*block.inputs()).detach()
    e = torch.where(live, (logits - block.shift).exp(), 0.0)
    assert error(found.row, e.sum(1)) < 2e-5
    assert error(found.col, e.sum(0)) < 2e-5
    if not totals:
        assert found.row_total is found.col_total is None
        return
    kept = torch.where(live, logits, 0.0)
    assert error(found.row_total, kept.sum(1)) < 2e-5
    assert error(found.col_total, kept.sum(0)) < 2e-5


def reference(block: Block, coefficients: list[Tensor | None]) -> list[Tensor]:
    """Gradients by z, basis and gain, from fp64 autograd of sum(G * logits)."""
    row, col, row_const, col_const, diag = (None if t is None else t.double() for t in coefficients)
    inputs = block.inputs()
    logits = block.logits(*inputs)
    live, pair = block.masks()
    g = (logits.detach() - block.shift).exp() * (row[:, None] + (0 if col is None else col))
    g = g + (0 if row_const is None else row_const[:, None])
    g = g + (0 if col_const is None else col_const)
    g = torch.where(live, g, torch.where(pair, diag[:, None], 0.0))
    grads = torch.autograd.grad((g * logits).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(t) if x is None else x for t, x in zip(inputs, grads, strict=True)]


def coefficients(block: Block, constants: bool, columns: bool) -> list[Tensor | None]:
    """row_coef, col_coef, row_const, col_const, diag: of the sizes that losses have."""
    g = torch.Generator().manual_seed(3)
    live, _ = block.masks()
    logits = block.logits(*block.inputs()).detach()
    e = torch.where(live, (logits - block.shift).exp(), 0.0)
    rows, cols = e.shape
    row = (torch.rand(rows, generator=g) / e.sum(1).clamp(min=1e-30)).float()
    col = (torch.rand(cols, generator=g) / e.sum(0).clamp(min=1e-30)).float()
    consts = torch.rand(rows, generator=g) / cols, torch.rand(cols, generator=g) / rows
    return [
        row,
        col if columns else None,
        *(consts if constants else (None, None)),
        -torch.rand(rows, generator=g),
    ]


@pytest.mark.parametrize(
    ("constants", "columns", "chunk"),
    [(True, True, None), (False, False, torch.float32)],
)
def test_grads(block: Block, constants: bool, columns: bool, chunk: torch.dtype | None) -> None:
    given = coefficients(block, constants, columns)
    dz, dbasis, dgain = ova_triton.grads(*block.args(), *given, chunk_dtype=chunk)
    dz64, dbasis64, dgain64 = reference(block, given)
    exact = chunk is torch.float32 or block.z.dtype is torch.float32
    tolerance = 5e-5 if exact else 5e-3
    assert error(dz, dz64) < tolerance
    assert error(dbasis, dbasis64) < tolerance
    if block.gain is None:
        assert dgain is None
    else:
        assert error(dgain, dgain64) < 5e-5


def test_chunks_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of rows, as at sizes where the limits bind."""
    block = replace(BLOCKS["volume 3 masked"], z=units(200, 20, seed=1), row_live=None)
    given = coefficients(block, True, True)
    whole = ova_triton.sums(*block.args(), totals=True)
    gradients = ova_triton.grads(*block.args(), *given)
    monkeypatch.setattr(common_triton, "CHUNK_ROWS", 64)
    monkeypatch.setattr(common_triton, "CHUNK_BYTES", 3 * 64 * 128 * 4)
    parts = ova_triton.sums(*block.args(), totals=True)
    again = ova_triton.grads(*block.args(), *given)
    for ours, expected in zip([*parts, *again], [*whole, *gradients], strict=True):
        assert error(ours, expected.double()) < 1e-6


@pytest.mark.parametrize(
    ("score", "m", "both"),
    [("projection", 3, False), ("projection", 4, True), ("volume", 3, False), ("area", 3, False)],
)
def test_loss(score: str, m: int, both: bool) -> None:
    """The whole loss by these kernels."""
    present = torch.rand(70, m, generator=torch.Generator().manual_seed(1)) > 0.2
    options = {"score": score, "both": both, "present": present, "smoothing": 0.1}
    results = []
    for impl, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        x = [units(70, 24, seed=s).to(dtype).requires_grad_() for s in range(m)]
        scale = torch.tensor(10.0, dtype=dtype, requires_grad=True)
        loss = ova(x, scale, impl=impl, **options)
        loss.backward()
        results.append([loss.detach(), *(t.grad for t in x), scale.grad])
    for ours, expected in zip(*results, strict=True):
        assert error(ours, expected.double()) < 1e-4
