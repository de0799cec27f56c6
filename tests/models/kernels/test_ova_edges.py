"""`ova`: little or nothing there, sums that underflow, memory, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from outmodal.errors import UserError
from outmodal.models.kernels.ova import group_scores, ova
from tests.models.kernels.test_ova import SCORES, close, unit, vectors, worked


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("exclude_positive", [False, True])
def test_one_sample_has_nothing_to_learn(score: str, exclude_positive: bool) -> None:
    units = [u.detach().requires_grad_() for u in unit(vectors(3, 1, 6))]
    scale = torch.tensor(3.0, requires_grad=True)
    loss = ova(units, scale, score=score, exclude_positive=exclude_positive, both=True)
    grads = torch.autograd.grad(loss, [scale, *units])
    assert float(loss.detach()) == 0
    assert all(not g.any() for g in grads)


def test_no_sample_at_all() -> None:
    units = [torch.zeros(0, 6, requires_grad=True) for _ in range(3)]
    loss = ova(units, 3.0)
    loss.backward()
    assert float(loss.detach()) == 0


@pytest.mark.parametrize("score", ["projection", "volume"])
def test_a_modality_in_no_sample_is_left_out(score: str) -> None:
    units = [u.detach().requires_grad_() for u in unit(vectors(4, 9, 6))]
    present = torch.ones(9, 4, dtype=torch.bool)
    present[:, 2] = False
    loss = ova(
        [*units[:2], torch.full_like(units[2], torch.nan), units[3]],
        5.0,
        score=score,
        present=present,
    )
    without = ova([units[0], units[1], units[3]], 5.0, score=score)
    torch.testing.assert_close(loss, without)
    # Absent values are never read, and get exact zeros.
    loss = ova(units, 5.0, score=score, present=present)
    loss.backward()
    assert not units[2].grad.any()


def test_nothing_present_is_a_zero_with_zero_gradients() -> None:
    for score in SCORES:
        units = [u.detach().requires_grad_() for u in unit(vectors(3, 4, 6))]
        present = torch.eye(3, dtype=torch.bool)[[0, 1, 2, 0]]  # one modality a sample: no pair
        loss = ova(units, 5.0, score=score, present=present, both=True)
        loss.backward()
        assert float(loss.detach()) == 0
        assert all(not u.grad.any() for u in units)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("scale", [100.0, 1000.0])
def test_saturated_and_underflowing_rows_keep_their_digits(score: str, scale: float) -> None:
    raw = unit(vectors(3, 40, 4, seed=7, spread=0.2))
    far = [u.detach().clone() for u in raw]
    far[0][:5] = -far[0][:5]
    for m in (1, 2):
        far[m][7] = -far[m][7]
    units = [u.float().requires_grad_() for u in far]
    exact = [u.detach().double().requires_grad_() for u in units]
    loss = ova(units, scale, score=score, both=True, exclude_positive=True, impl="tiled")
    wanted = ova(exact, scale, score=score, both=True, exclude_positive=True, impl="reference")
    # Not better than the rounding of fp32 logits, whose size is the scale's.
    assert abs(float(loss) - float(wanted)) <= 1e-5 * abs(float(wanted)) + 3e-6 * scale
    grads, by = torch.autograd.grad(loss, units), torch.autograd.grad(wanted, exact)
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    if score != "volume":  # a volume of 0 is 1e-3 in fp32
        close(grads, by, 1e-2)


@pytest.mark.parametrize("shared", [False, True])
def test_memory_does_not_grow_with_the_square(shared: bool) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(t, Tensor):
                    self.numbers = max(self.numbers, t.untyped_storage().nbytes() // 8)
            return out

    n = 1000
    units = [u.detach().float().requires_grad_() for u in unit(vectors(3, n, 8))]
    with worked(shared, (128, 256)), Largest() as seen:
        ova(units, 10.0, both=True).backward()
    assert seen.numbers < n * n / 20


# Errors


def test_errors_name_the_modality_and_the_remedy() -> None:
    a, b, c = (u.detach().float() for u in unit(vectors(3, 6, 5)))
    names = ("rgb", "speech", "touch")
    bad = b.clone()
    bad[2, 1] = torch.nan
    with pytest.raises(UserError, match=r"'speech'.*NaN"):
        ova([a, bad, c], 5.0, names=names)
    with pytest.raises(UserError, match=r"'touch'.*normalize"):
        ova([a, b, 3 * c], 5.0, names=names)
    with pytest.raises(UserError, match=r"'speech' has 5 rows"):
        ova([a, b[:5], c], 5.0, names=names)
    with pytest.raises(UserError, match="got 1"):
        ova([a], 5.0, names=("rgb",))
    with pytest.raises(UserError, match="got 7"):
        ova([a] * 7, 5.0)
    with pytest.raises(UserError, match=r"rgb, speech.*exactly 3, got 2"):
        ova([a, b], 5.0, score="area", names=names[:2])
    with pytest.raises(UserError, match="did you mean 'volume'"):
        ova([a, b], 5.0, score="volumes")
    for wrong in (0.0, math.inf, torch.tensor(-3.0), torch.tensor(math.nan)):
        with pytest.raises(UserError, match="positive finite number"):
            ova([a, b, c], wrong)
    with pytest.raises(UserError, match="smoothing"):
        ova([a, b], 1.0, smoothing=1.0)
    with pytest.raises(UserError, match=r"anchors.*from 0 to 1"):
        ova([a, b], 1.0, anchors=(2,))
    with pytest.raises(UserError, match="present"):
        ova([a, b], 1.0, present=torch.ones(6, 3, dtype=torch.bool))


@pytest.mark.parametrize("impl", ["tiled", "reference"])
@pytest.mark.parametrize("score", SCORES)
def test_nan_is_no_loss_of_zero_where_nobody_looked(score: str, impl: str) -> None:
    units = [u.detach() for u in unit(vectors(3, 6, 5))]
    units[1] = torch.full_like(units[1], torch.nan)
    assert ova(units, 5.0, score=score, impl=impl, check=False).isnan()


def test_groups_of_another_width_are_refused() -> None:
    a, b = torch.ones(3, 4), torch.ones(5, 3)
    with pytest.raises(UserError, match=r"anchors have shape \[3, 4\].*\[5, 3\]"):
        group_scores(a, [b, b])


def test_errors_of_pairs_name_the_modality_too() -> None:
    a, b = (u.detach().float() for u in unit(vectors(2, 6, 5)))
    with pytest.raises(UserError, match="'speech'"):
        ova([a, 2 * b], 5.0, names=("rgb", "speech"))


def test_fp16_does_not_overflow() -> None:
    units = [u.detach().half().requires_grad_() for u in unit(vectors(3, 30, 12, spread=0.3))]
    loss = ova(units, 1000.0, both=True)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert all(bool(torch.isfinite(u.grad).all()) for u in units)
