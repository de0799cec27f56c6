"""`nce`: tiles against the plain fp64 form, other people's formulas, edges, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from outmodal.errors import UserError
from outmodal.models.kernels import dispatch, nce_tiled
from outmodal.models.kernels.dispatch import choose
from outmodal.models.kernels.nce import nce

F64 = torch.float64
Result = dict[str, Tensor]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that every test meets borders of tiles and several of them."""
    monkeypatch.setattr(nce_tiled, "CPU_TILE", (48, 96))


def units(n: int, d: int, seed: int, near: Tensor | None = None, cosine: float = 0.0) -> Tensor:
    """[n, d] random unit vectors in fp64, with a given mean cosine to the rows of `near`."""
    g = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(n, d, generator=g, dtype=F64), dim=1)
    if near is None:
        return x
    across = F.normalize(x - (x * near).sum(1, keepdim=True) * near, dim=1)
    return cosine * near + math.sqrt(1 - cosine**2) * across


def run(q: Tensor, k: Tensor, scale: float, impl: str, **options: Any) -> Result:
    """Loss and the gradients of everything that has one, in fp64."""
    leaves = {"q": q.clone().requires_grad_(), "k": k.clone().requires_grad_()}
    for name in ("positives", "bias"):
        if isinstance(options.get(name), Tensor):
            leaves[name] = options.pop(name).clone().requires_grad_()
    dtype = torch.promote_types(q.dtype, torch.float32)
    leaves["scale"] = torch.tensor(scale, dtype=dtype, requires_grad=True)
    loss = nce(**leaves, **options, impl=impl)  # type: ignore[arg-type]
    factor = 2.0**12 if q.dtype is torch.float16 else 1.0  # as a loss scaler does
    (factor * loss).backward()
    grads = {
        name: leaf.grad.to(F64) / factor for name, leaf in leaves.items() if leaf.grad is not None
    }
    return {"loss": loss.detach().to(F64), **grads}


def error(got: Result, expected: Result) -> dict[str, float]:
    """Relative error of each, by the norm."""
    assert got.keys() == expected.keys()
    return {n: float((got[n] - e).norm() / e.norm().clamp(min=1e-30)) for n, e in expected.items()}


def options_of(name: str, n: int, d: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(11)
    present = torch.rand(n, generator=g) > 0.3
    return {
        "both": {},
        "rows": {"both": False},
        "dcl": {"exclude_positive": True},
        "smoothed": {"smoothing": 0.1},
        "weighted": {"weights": torch.rand(n, generator=g)},
        "masked": {"present": present, "smoothing": 0.1, "weights": torch.rand(n, generator=g)},
        "positives": {"both": False, "positives": units(n, d, 12) * 0.9, "smoothing": 0.1},
        "sigmoid": {"form": "sigmoid", "bias": torch.tensor(-4.0, dtype=F64)},
        "sigmoid-masked": {"form": "sigmoid", "present": present},
    }[name]


NAMES = (
    "both", "rows", "dcl", "smoothed", "weighted", "masked", "positives", "sigmoid",
    "sigmoid-masked",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "d", "scale"), [(131, 37, 14.3), (97, 64, 100.0)])
def test_tiles_agree_with_the_plain_form_in_fp64(name: str, n: int, d: int, scale: float) -> None:
    q = units(n, d, 1)
    k = units(n, d, 2, near=q, cosine=0.3)
    options = options_of(name, n, d)
    got, expected = (run(q, k, scale, impl, **options) for impl in ("tiled", "reference"))
    assert max(error(got, expected).values()) < 1e-12


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cosine", [0.3, 0.6], ids=["unsaturated", "nearly-saturated"])
def test_lower_precision_is_only_that_of_the_inputs(
    name: str, dtype: torch.dtype, cosine: float
) -> None:
    n, d = 203, 50
    q = units(n, d, 3)
    k = units(n, d, 4, near=q, cosine=cosine)
    options = options_of(name, n, d)
    rounded = [t.to(dtype).to(F64) for t in (q, k)]
    exact = {k: v.to(dtype).to(F64) if k == "positives" else v for k, v in options.items()}
    expected = run(*rounded, 60.0, "reference", **exact, check=False)
    low = {k: v.to(dtype) if k == "positives" else v for k, v in options.items()}
    low = {k: v.float() if k == "bias" else v for k, v in low.items()}
    got = error(run(q.to(dtype), k.to(dtype), 60.0, "tiled", **low), expected)
    assert got["loss"] < 1e-5
    # gradients leave in the inputs' precision: that rounding is not the kernel's
    eps = {torch.float32: 1e-4, torch.bfloat16: 5e-3, torch.float16: 2e-3}[dtype]
    assert max(got[name] for name in ("q", "k")) < eps
    assert got["scale"] < 1e-4


def test_it_is_the_cross_entropy_of_torch_both_ways() -> None:
    q, k = units(70, 20, 5), units(70, 20, 6)
    logits, target = 20 * q @ k.T, torch.arange(70)
    for smoothing in (0.0, 0.1):
        rows = F.cross_entropy(logits, target, label_smoothing=smoothing)
        columns = F.cross_entropy(logits.T, target, label_smoothing=smoothing)
        got = nce(q, k, 20.0, smoothing=smoothing)
        torch.testing.assert_close(got, (rows + columns) / 2)
        torch.testing.assert_close(nce(q, k, 20.0, both=False, smoothing=smoothing), rows)


def test_smoothing_is_over_live_columns_only() -> None:
    q, k = units(40, 20, 5), units(40, 20, 6)
    present = torch.arange(40) % 3 > 0
    got = nce(q, k, 20.0, smoothing=0.1, present=present)
    torch.testing.assert_close(got, nce(q[present], k[present], 20.0, smoothing=0.1))


def test_sigmoid_form_is_that_of_siglip() -> None:
    q, k = units(60, 20, 7), units(60, 20, 8)
    sign = 2 * torch.eye(60, dtype=F64) - 1
    expected = -F.logsigmoid(sign * (10 * q @ k.T - 10)).sum() / 60
    torch.testing.assert_close(nce(q, k, 10.0, form="sigmoid", bias=-10.0), expected)


def test_positives_replace_the_diagonal() -> None:
    q, k, p = units(60, 20, 7), units(60, 20, 8), units(60, 20, 9)
    logits = 15 * q @ k.T
    logits.diagonal().copy_(15 * (q * p).sum(1))
    expected = F.cross_entropy(logits, torch.arange(60))
    torch.testing.assert_close(nce(q, k, 15.0, both=False, positives=p), expected)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 7),
    d=st.integers(1, 4),
    scale=st.sampled_from([0.5, 8.0, 900.0]),
    both=st.booleans(),
    dcl=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.2]),
    weighted=st.booleans(),
    mask=st.none() | st.lists(st.booleans(), min_size=7, max_size=7),
    sigmoid=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_gradients_are_derivatives(
    n: int,
    d: int,
    scale: float,
    both: bool,
    dcl: bool,
    smoothing: float,
    weighted: bool,
    mask: list[bool] | None,
    sigmoid: bool,
    seed: int,
) -> None:
    g = torch.Generator().manual_seed(seed)
    raw = [torch.randn(n, d, generator=g, dtype=F64).requires_grad_() for _ in range(3)]
    s = torch.tensor(scale, dtype=F64, requires_grad=True)
    bias = torch.tensor(-1.0, dtype=F64, requires_grad=sigmoid)
    rest: dict[str, Any] = {"weights": torch.rand(n, generator=g) if weighted else None}
    rest["present"] = None if mask is None else torch.tensor(mask[:n])
    if not sigmoid:
        rest |= {"both": both, "exclude_positive": dcl, "smoothing": smoothing}

    def loss(a: Tensor, b: Tensor, p: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        q, k, positives = (F.normalize(t, dim=1) for t in (a, b, p))
        if sigmoid:
            return nce(q, k, scale, form="sigmoid", bias=bias, **rest)
        return nce(q, k, scale, positives=None if both else positives, **rest)

    inputs = (*raw, s, bias)
    # a step of 1e-6 in a logit of 900 is no small one
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-7, atol=1e-4, rtol=2e-3, fast_mode=False)


# --- edges -----------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["tiled", "reference"])
@pytest.mark.parametrize("options", [{}, {"exclude_positive": True, "smoothing": 0.1}])
@pytest.mark.parametrize("alone", ["one row", "one present"])
def test_a_row_without_negatives_costs_nothing(
    impl: str, options: dict[str, Any], alone: str
) -> None:
    n = 1 if alone == "one row" else 9
    present = None if n == 1 else torch.arange(n) == 4
    q, k = units(n, 6, 1).float(), units(n, 6, 2).float()
    got = run(q, k, 30.0, impl, present=present, **options)
    assert all(not t.any() for t in got.values())


@pytest.mark.parametrize("impl", ["tiled", "reference"])
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_nobody_present_is_zero_and_stays_in_the_graph(impl: str, form: str) -> None:
    q, k = units(5, 6, 1), units(5, 6, 2)
    present = torch.zeros(5, dtype=torch.bool)
    got = run(q, k, 30.0, impl, present=present, form=form)
    assert got.keys() == {"loss", "q", "k", "scale"}
    assert all(not t.any() for t in got.values())


@pytest.mark.parametrize("impl", ["tiled", "reference"])
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_what_absent_rows_hold_is_never_read(impl: str, form: str) -> None:
    q, k = units(30, 6, 1), units(30, 6, 2)
    present = torch.arange(30) % 4 > 0
    clean = run(q, k, 10.0, impl, present=present, form=form)
    q[~present], k[~present] = torch.nan, torch.inf
    soiled = run(q, k, 10.0, impl, present=present, form=form)
    for name, expected in clean.items():
        assert torch.equal(soiled[name], expected)
    assert not clean["q"][~present].any()


def test_a_saturated_loss_is_small_and_exact() -> None:
    q = units(64, 128, 1)
    k = units(64, 128, 2, near=q, cosine=0.95)
    expected = run(q, k, 100.0, "reference")
    assert 0 < expected["loss"] < 1e-15
    got = run(q.float(), k.float(), 100.0, "tiled")
    # fp32 logits near 100 are good to 1e-5, and so is the exponential of their difference
    assert max(error(got, expected).values()) < 1e-3


def test_duplicated_rows_share_their_probability() -> None:
    q = units(1, 8, 1).expand(50, 8).contiguous().float()
    got = run(q, q, 100.0, "tiled")
    assert float(got["loss"]) == pytest.approx(math.log(50), rel=1e-5)
    assert float(got["q"].norm()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, F64])
@pytest.mark.parametrize("scale", [100.0, 1500.0])
def test_sums_that_underflow_are_redone_exactly(dtype: torch.dtype, scale: float) -> None:
    n, d = 120, 12
    q = units(n, d, 1)
    k = units(n, d, 2, near=q, cosine=0.2)
    centre = units(1, d, 3)
    q[:5], k[:5] = -centre, centre  # far from everything that is left of these clouds
    q[5:], k[5:] = (F.normalize(t[5:] * 0.3 + s * centre) for t, s in ((q, -1), (k, 1)))
    q, k = q.to(dtype), k.to(dtype)
    logits = scale * q.double() @ k.double().T
    assert (logits.amax(1) - max(scale - 70, 0) < -60).any()  # else nothing underflows here
    expected = run(q.double(), k.double(), scale, "reference", check=False)
    got = run(q, k, scale, "tiled", check=False)
    errors = error(got, expected)
    assert errors["loss"] < 1e-5
    assert errors["scale"] < (1e-4 if scale < 1000 else 1e-3)
    assert max(errors.values()) < (1e-2 if dtype is torch.float16 else 2e-4)


def test_fp16_inputs_do_not_overflow() -> None:
    q = units(200, 16, 1).half()
    loss = nce(q, q, 60000.0)
    assert torch.isfinite(loss)
    assert loss.dtype is torch.float32


def test_autocast_changes_nothing() -> None:
    q, k = units(80, 16, 1).float(), units(80, 16, 2).float()
    plain = run(q, k, 50.0, "tiled")
    with torch.autocast("cpu", torch.bfloat16):
        inside = run(q, k, 50.0, "tiled")
    assert all(torch.equal(inside[name], t) for name, t in plain.items())


def test_gradients_add_up_where_both_sides_are_one_tensor() -> None:
    q = units(20, 6, 1).requires_grad_()
    nce(q, q, 5.0, impl="tiled").backward()
    tiled, q.grad = q.grad, None
    nce(q, q, 5.0, impl="reference").backward()
    torch.testing.assert_close(tiled, q.grad)


def test_memory_does_not_hold_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else [out]:
                if isinstance(t, Tensor):
                    largest = max(largest, t.untyped_storage().nbytes())
            return out

    q, k = (units(4096, 4, s).float().requires_grad_() for s in (1, 2))
    with Watch():
        nce(q, k, 10.0).backward()
    assert largest <= 4 * nce_tiled.CPU_TILE[0] * nce_tiled.CPU_TILE[1]


# --- bad input -------------------------------------------------------------------------------


def test_what_is_no_unit_vector_is_named() -> None:
    q, k = units(6, 4, 1), units(6, 4, 2)
    with pytest.raises(UserError, match=r"'speech'.*length 3.*normalize"):
        nce(q, torch.cat([k[:2], 3 * k[2:3], k[3:]]), 10.0, names=("image", "speech"))
    for bad in (torch.nan, torch.inf):
        broken = q.clone()
        broken[4, 1] = bad
        with pytest.raises(UserError, match=r"'image'.*row 4.*NaN or infinite"):
            nce(broken, k, 10.0, names=("image", "speech"))
        nce(broken, k, 10.0, check=False)


def test_rounded_unit_vectors_are_unit_vectors() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for d in (1, 2, 3, 700):
            nce(units(50, d, 1).to(dtype), units(50, d, 2).to(dtype), 10.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": units(5, 4, 1)}, "'speech' has 5 rows, 'image' has 6"),
        ({"k": units(6, 3, 1)}, "'speech' has 3 dimensions, 'image' has 4"),
        ({"k": units(6, 4, 1)[0]}, "'speech'.*rows, dim"),
        ({"k": torch.ones(6, 4, dtype=torch.int64)}, "'speech'.*int64"),
        ({"scale": 0.0}, "scale of 'image' and 'speech' must be a positive"),
        ({"scale": math.nan}, "scale of 'image' and 'speech' must be a positive"),
        ({"weights": -torch.ones(6)}, "weights of 'image' and 'speech'"),
        ({"weights": torch.ones(5)}, r"weights of 'image' and 'speech' must be \[6\]"),
        ({"present": torch.ones(5, dtype=torch.bool)}, r"'image'.*bool \[6\].*\[5\]"),
        ({"present": torch.ones(6)}, r"'image'.*bool \[6\].*float32"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"positives": units(6, 4, 3)}, "both=False"),
        ({"form": "sigmoid", "smoothing": 0.1}, "sigmoid form"),
        ({"form": "sigmiod"}, "did you mean 'sigmoid'"),
        ({"impl": "tilde"}, "did you mean 'tiled'"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    given = {"q": units(6, 4, 1), "k": units(6, 4, 2), "scale": 10.0, "names": ("image", "speech")}
    with pytest.raises(UserError, match=message):
        nce(**{**given, **change})


# --- dispatch --------------------------------------------------------------------------------


def test_without_a_gpu_tiles_are_chosen() -> None:
    q = units(3, 2, 1)
    assert choose("auto", q) == "tiled"
    assert choose("reference", q) == "reference"


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "lacks_triton", lambda: "Triton is not installed")
    with pytest.raises(UserError, match=r"not installed; `pip install 'triton>=3.6'`"):
        choose("triton", units(3, 2, 1))
    monkeypatch.setattr(dispatch, "lacks_triton", lambda: "")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="CUDA tensors"):
        choose("triton", units(3, 2, 1))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("triton", units(3, 2, 1)) == "triton"


@pytest.mark.parametrize("impl", ["tiled", "reference"])
@pytest.mark.parametrize("side", [0, 1])
def test_nan_is_no_loss_of_zero_where_nobody_looked(impl: Any, side: int) -> None:
    pair = [torch.nn.functional.normalize(torch.randn(5, 8), dim=1) for _ in range(2)]
    pair[side] = torch.full((5, 8), torch.nan)
    assert torch.isnan(nce(pair[0], pair[1], 10.0, impl=impl, check=False))
