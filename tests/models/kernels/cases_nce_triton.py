"""Checks of nce_triton, run by test_nce_triton in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from outmodal.models.kernels import common_triton, nce_triton
from outmodal.models.kernels.nce import nce

torch.set_num_threads(1)


@dataclass
class Block:
    """Rows against columns, and everything the primitives take."""

    q: Tensor
    k: Tensor
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
        return (self.q, self.k, *numbers, self.partner, self.row_live, self.col_live)

    def logits(self) -> Tensor:
        """[R, C] fp64 of the inputs as they are rounded."""
        return self.scale * self.q.double() @ self.k.double().T

    def masks(self) -> tuple[Tensor, Tensor]:
        """[R, C] live entries off the pairs, and live pairs."""
        rows, cols = len(self.q), len(self.k)
        live = torch.ones(rows, cols, dtype=torch.bool)
        if self.row_live is not None:
            live &= self.row_live[:, None]
        if self.col_live is not None:
            live &= self.col_live[None, :]
        pair = torch.arange(rows)[:, None] + self.partner == torch.arange(cols)[None, :]
        return live & ~pair, live & pair


def units(n: int, d: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=1).to(dtype)


def masked(block: Block, seed: int = 9) -> Block:
    """The block with a fifth of its rows and columns dead, among them a whole first tile row."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.rand(len(block.q), generator=g) > 0.2
    rows[:3] = False
    return replace(block, row_live=rows, col_live=torch.rand(len(block.k), generator=g) > 0.2)


def blocks() -> dict[str, Block]:
    plain = Block(units(150, 60, 0), units(130, 60, 1))
    return {
        "odd": plain,
        "ahead": replace(plain, partner=40),
        "behind": replace(plain, partner=-70),
        "elsewhere": replace(plain, partner=500),
        "before": replace(plain, partner=-151),
        "masked": masked(replace(plain, partner=-3)),
        "odd d": Block(units(65, 37, 2), units(64, 37, 3), partner=1),
        "one row": Block(units(1, 8, 4), units(1, 8, 5)),
        "one row, three columns": Block(units(1, 8, 4), units(3, 8, 5), partner=2),
        "tiles exactly": Block(units(128, 64, 6), units(64, 64, 7)),
        "saturated": Block(units(70, 16, 8), units(70, 16, 8), scale=100.0),
        "bf16": Block(units(70, 60, 10, torch.bfloat16), units(90, 60, 11, torch.bfloat16)),
        "bf16 masked": masked(
            Block(units(70, 60, 10, torch.bfloat16), units(90, 60, 11, torch.bfloat16), partner=9)
        ),
        "fp16": Block(units(70, 60, 12, torch.float16), units(66, 60, 13, torch.float16)),
        "all rows dead": Block(units(9, 8, 1), units(9, 8, 2), row_live=torch.zeros(9).bool()),
    }


BLOCKS = blocks()


def error(ours: Tensor, reference: Tensor) -> float:
    """|ours - reference| / |reference|, absolute where the reference is 0."""
    assert ours.shape == reference.shape
    size = float(reference.norm())
    return float((ours.double() - reference).norm()) / (size if size > 0 else 1.0)


@pytest.fixture(params=BLOCKS)
def block(request: pytest.FixtureRequest) -> Block:
    return BLOCKS[request.param]


def test_interpreted() -> None:
    assert common_triton.INTERPRETING


def test_sums(block: Block) -> None:
    found = nce_triton.sums(*block.args(), totals=True)
    live, _ = block.masks()
    logits = block.logits()
    e = torch.where(live, (logits - block.shift).exp(), 0.0)
    kept = torch.where(live, logits, 0.0)
    assert found.row.dtype == found.col.dtype == torch.float32
    assert error(found.row, e.sum(1)) < 1e-5
    assert error(found.col, e.sum(0)) < 1e-5
    assert found.row_total is not None
    assert found.col_total is not None
    tolerance = 1e-4 * max(1.0, float(kept.sum(1).norm()))  # totals cancel
    assert float((found.row_total - kept.sum(1)).norm()) < tolerance
    assert float((found.col_total - kept.sum(0)).norm()) < tolerance
    assert nce_triton.sums(*block.args(), totals=False).row_total is None


def coefficients(block: Block) -> list[Tensor]:
    """row_coef, col_coef, row_const, col_const, diag: of the sizes that losses have."""
    g = torch.Generator().manual_seed(3)
    live, _ = block.masks()
    e = torch.where(live, (block.logits() - block.shift).exp(), 0.0)
    rows, cols = e.shape
    row = (torch.rand(rows, generator=g) / e.sum(1).clamp(min=1e-30)).float()
    col = (torch.rand(cols, generator=g) / e.sum(0).clamp(min=1e-30)).float()
    consts = torch.rand(rows, generator=g) / cols, torch.rand(cols, generator=g) / rows
    return [row, col, *consts, -torch.rand(rows, generator=g)]


def products(block: Block, g: Tensor) -> tuple[Tensor, Tensor]:
    return block.scale * g @ block.k.double(), block.scale * g.T @ block.q.double()


@pytest.mark.parametrize("chunk", [None, torch.float32])
@pytest.mark.parametrize("constants", [True, False])
def test_grads(block: Block, constants: bool, chunk: torch.dtype | None) -> None:
    row, col, row_const, col_const, diag = coefficients(block)
    consts = (row_const, col_const) if constants else (None, None)
    found = nce_triton.grads(*block.args(), row, col, *consts, diag, chunk_dtype=chunk)
    live, pair = block.masks()
    g = (block.logits() - block.shift).exp() * (row.double()[:, None] + col.double()[None, :])
    if constants:
        g = g + row_const.double()[:, None] + col_const.double()[None, :]
    g = torch.where(live, g, torch.where(pair, diag.double()[:, None], 0.0))
    exact = chunk is torch.float32 or block.q.dtype is torch.float32
    for ours, reference in zip(found, products(block, g), strict=True):
        assert ours.dtype == torch.float32
        assert error(ours, reference) < (2e-5 if exact else 5e-3)


def test_columns_without_coefficients() -> None:
    block = BLOCKS["masked"]
    row, _, row_const, _, diag = coefficients(block)
    found = nce_triton.grads(*block.args(), row, None, row_const, None, diag)
    live, pair = block.masks()
    g = (block.logits() - block.shift).exp() * row.double()[:, None] + row_const.double()[:, None]
    g = torch.where(live, g, torch.where(pair, diag.double()[:, None], 0.0))
    for ours, reference in zip(found, products(block, g), strict=True):
        assert error(ours, reference) < 2e-5


@pytest.mark.parametrize("bias", [-10.0, 0.5])
def test_sigmoid(block: Block, bias: float) -> None:
    args = list(block.args())
    args[3] = torch.tensor([bias])
    live, pair = block.masks()
    signed = torch.where(pair, -1.0, 1.0) * (block.logits() + bias)
    each = torch.where(live | pair, -torch.nn.functional.logsigmoid(-signed), 0.0)
    assert error(nce_triton.sigmoid_sums(*args), each.sum(1)) < 1e-5

    upstream = torch.rand(len(block.q), generator=torch.Generator().manual_seed(5))
    g = torch.where(live | pair, signed.sigmoid(), 0.0) * torch.where(pair, -1.0, 1.0)
    g = g * upstream.double()[:, None]
    dq, dk, dbias = nce_triton.sigmoid_grads(*args, upstream)
    tolerance = 2e-5 if block.q.dtype is torch.float32 else 5e-3
    for ours, reference in zip((dq, dk), products(block, g), strict=True):
        assert error(ours, reference) < tolerance
    assert error(dbias, g.sum(1)) < 2e-5


def test_chunks_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of rows, as at sizes where the limits bind."""
    block = masked(replace(BLOCKS["odd"], partner=-5))
    row, col, _, _, diag = coefficients(block)
    whole = nce_triton.sums(*block.args(), totals=False)
    gradients = nce_triton.grads(*block.args(), row, col, None, None, diag)
    monkeypatch.setattr(common_triton, "CHUNK_ROWS", 64)
    monkeypatch.setattr(common_triton, "CHUNK_BYTES", 64 * 192 * 4)
    parts = nce_triton.sums(*block.args(), totals=False)
    assert error(parts.row, whole.row.double()) < 1e-6
    assert error(parts.col, whole.col.double()) < 1e-6
    again = nce_triton.grads(*block.args(), row, col, None, None, diag)
    for ours, reference in zip(again, gradients, strict=True):
        assert error(ours, reference.double()) < 1e-6


def test_no_columns() -> None:
    block = Block(units(3, 8, 0), units(0, 8, 1))
    found = nce_triton.sums(*block.args(), totals=True)
    assert not found.row.any()
    assert found.col.shape == (0,)
    dq, dk = nce_triton.grads(
        *block.args(), torch.ones(3), torch.ones(0), None, None, torch.ones(3)
    )
    assert not dq.any()
    assert dk.shape == (0, 8)


def test_rounding_to_tf32_is_to_the_nearest() -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    rounded = common_triton.tf32(x)
    assert not (rounded.view(torch.int32) & 0x1FFF).any()
    assert float(((rounded - x) / x).abs().max()) <= 2.0**-11
    assert abs(float(((rounded - x) * x.sign()).mean())) < 1e-5
    assert torch.equal(common_triton.tf32(rounded), rounded)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_loss(form: str, both: bool) -> None:
    """The whole loss by these kernels, with everything that changes what they are asked for."""
    present = torch.rand(90, generator=torch.Generator().manual_seed(1)) > 0.2
    weights = torch.rand(90, generator=torch.Generator().manual_seed(2))
    options = {"both": both, "form": form, "present": present, "weights": weights}
    if form == "softmax":
        options["smoothing"] = 0.1
    results = []
    for impl, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        q, k = (units(90, 60, seed).to(dtype).requires_grad_() for seed in (0, 1))
        scale = torch.tensor(14.3, dtype=dtype, requires_grad=True)
        loss = nce(q, k, scale, impl=impl, bias=-3.0 if form == "sigmoid" else None, **options)
        loss.backward()
        results.append([loss.detach(), q.grad, k.grad, scale.grad])
    for ours, reference in zip(*results, strict=True):
        assert error(ours, reference.double()) < 3e-5
