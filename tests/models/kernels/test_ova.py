"""One-against-all losses against references that are written from the definitions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from outmodal.models.kernels import ova as module
from outmodal.models.kernels import ova_shared, ova_tiled
from outmodal.models.kernels.ova import group_scores, min_gram_eigenvalue, ova
from tests.models.kernels.ranks import Threaded, on_ranks

torch.set_num_threads(1)
SCORES = ("projection", "volume", "area")
RIDGE = 1e-5


def vectors(count: int, n: int, d: int, seed: int = 0, spread: float = 1.0) -> list[Tensor]:
    """fp64 vectors of any length; spread < 1 gives the modalities of a sample something common."""
    g = torch.Generator().manual_seed(seed)
    common = torch.randn(n, d, generator=g, dtype=torch.float64)
    own = [torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(count)]
    return [((1 - spread) * common + spread * x).requires_grad_() for x in own]


def unit(raw: Sequence[Tensor]) -> list[Tensor]:
    return [normalize(x, dim=1) for x in raw]


def one_score(z: Tensor, group: list[Tensor], score: str, ridge: float) -> Tensor:
    """Score of one vector with one group, from the definition: projector, determinant, sides."""
    if score == "area":
        u, v = z - group[0], z - group[1]
        return -(u @ u * (v @ v) - (u @ v) ** 2) / 2
    if not group:
        return z.sum() * 0
    a = torch.stack(group, 1)
    gram = a.T @ a + ridge * torch.eye(len(group), dtype=a.dtype)
    if score == "projection":
        return (z @ (a @ torch.linalg.inv(gram) @ a.T) @ z + 1e-12).sqrt()
    top = torch.cat([(z @ z)[None], a.T @ z])
    whole = torch.cat([top[None], torch.cat([(a.T @ z)[:, None], gram], 1)])
    return -(torch.linalg.det(whole).clamp(min=0) + 1e-12).sqrt()


def expected(
    units: list[Tensor],
    scale: Tensor | float,
    score: str,
    *,
    both: bool = False,
    present: Tensor | None = None,
    exclude_positive: bool = False,
    smoothing: float = 0.0,
    ridge: float = RIDGE,
    anchors: Sequence[int] | None = None,
) -> Tensor:
    """The loss, by loops over anchors, samples and candidates."""
    n, count = len(units[0]), len(units)
    there = torch.ones(n, count, dtype=torch.bool) if present is None else present
    least = 3 if score == "area" else 2
    losses = []
    for m in range(count) if anchors is None else anchors:
        live = [i for i in range(n) if there[i, m] and there[i].sum() >= least]
        groups = [[units[o][i] for o in range(count) if o != m and there[i, o]] for i in live]
        rows = [[one_score(units[m][i], g, score, ridge) for g in groups] for i in live]
        if not live:
            continue
        logits = scale * torch.stack([torch.stack(r) for r in rows])
        one = cross_entropies(logits, exclude_positive, smoothing)
        two = cross_entropies(logits.T, exclude_positive, smoothing) if both else one
        losses.append((one + two) / 2)
    return torch.cat(losses).mean() if losses else sum(u.sum() for u in units) * 0


def cross_entropies(logits: Tensor, exclude_positive: bool, smoothing: float) -> Tensor:
    positive = logits.diagonal()
    count = len(logits)
    if count == 1:
        return positive * 0
    if exclude_positive:
        others = ~torch.eye(count, dtype=torch.bool)
        norm = logits[others].view(count, count - 1).logsumexp(1)
    else:
        norm = logits.logsumexp(1)
    return norm - (1 - smoothing) * positive - smoothing * logits.mean(1)


@contextmanager
def worked(shared: bool, tile: tuple[int, int]) -> Iterator[None]:
    """With tiles of this size, and products of two anchors shared where they can be or never."""
    with (
        mock.patch.object(ova_tiled, "CPU_TILE", tile),
        mock.patch.object(ova_shared, "CPU_TILE", tile[0]),
        mock.patch.object(
            module, "can_share", ova_shared.can_share if shared else lambda *_: False
        ),
    ):
        yield


def close(found: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float) -> None:
    for a, b in zip(found, wanted, strict=True):
        error = float((a.detach().double() - b.detach().double()).norm())
        assert error <= tolerance * float(b.detach().norm()) + 1e-12, (error, b)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_matches_the_definition(data: st.DataObject) -> None:
    draw = data.draw
    score = draw(st.sampled_from(SCORES))
    count = 3 if score == "area" else draw(st.integers(2, 6))
    n, d = draw(st.integers(1, 9)), draw(st.integers(count, 19))
    raw = vectors(count, n, d, draw(st.integers(0, 99)), draw(st.sampled_from([1.0, 0.4])))
    scale = torch.tensor(draw(st.sampled_from([1.0, 14.3, 100.0])), dtype=torch.float64)
    scale.requires_grad_()
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    present = torch.rand(n, count, generator=g) < 0.75 if draw(st.booleans()) else None
    options = {
        "both": draw(st.booleans()),
        "present": present,
        "exclude_positive": draw(st.booleans()),
        "smoothing": draw(st.sampled_from([0.0, 0.1])),
        "anchors": draw(st.sampled_from([None, (0,), (1, 0)])),
    }
    wanted = expected(unit(raw), scale, score, **options)
    by = torch.autograd.grad(wanted, [scale, *raw], allow_unused=True, materialize_grads=True)
    with worked(draw(st.booleans()), (draw(st.integers(1, 9)), draw(st.integers(1, 9)))):
        for impl in ("tiled", "reference"):
            loss = ova(unit(raw), scale, score=score, impl=impl, signed_pair=False, **options)
            grads = torch.autograd.grad(
                loss, [scale, *raw], allow_unused=True, materialize_grads=True
            )
            close([loss], [wanted], 1e-8)
            # The root's epsilon and the ridge cost digits where scores are close to 0.
            flat = [torch.cat([x.flatten() for x in g]) for g in (grads, by)]
            close(flat[:1], flat[1:], 1e-5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("both", [False, True])
def test_gradcheck(score: str, both: bool, shared: bool) -> None:
    raw = vectors(3, 4, 3, seed=3)
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    present = torch.ones(4, 3, dtype=torch.bool)
    if score != "area":
        present[1, 2] = present[3, 0] = False

    def loss(s: Tensor, *x: Tensor) -> Tensor:
        return ova(unit(x), s, score=score, both=both, present=present, smoothing=0.1, impl="tiled")

    with worked(shared, (3, 2)):
        assert torch.autograd.gradcheck(loss, (scale, *raw))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("score", SCORES)
def test_fp32_is_close_to_fp64(score: str, shared: bool) -> None:
    raw = vectors(3, 67, 45, seed=5, spread=0.7)
    s64 = torch.tensor(14.3, dtype=torch.float64, requires_grad=True)
    s32 = s64.detach().float().requires_grad_()
    exact = ova(unit(raw), s64, score=score, impl="reference", both=True)
    single = [u.detach().float().requires_grad_() for u in unit(raw)]
    with worked(shared, (32, 16)):
        loss = ova(single, s32, score=score, impl="tiled", both=True)
    assert loss.dtype == torch.float32
    close([loss], [exact], 1e-5)
    units = [u.detach().requires_grad_() for u in unit(raw)]
    wanted = torch.autograd.grad(
        ova(units, s64, score=score, impl="reference", both=True), [s64, *units]
    )
    close(torch.autograd.grad(loss, [s32, *single]), wanted, 1e-4)


def test_bf16_is_computed_in_fp32() -> None:
    half = [u.detach().bfloat16().requires_grad_() for u in unit(vectors(3, 40, 32, spread=0.6))]
    same = [h.detach().double().requires_grad_() for h in half]
    loss = ova(half, 20.0, impl="tiled")
    assert loss.dtype == torch.float32
    wanted = ova(same, 20.0, impl="reference", check=False)
    close([loss], [wanted], 1e-5)
    grads = torch.autograd.grad(loss, half)
    assert grads[0].dtype == torch.bfloat16
    close(grads, torch.autograd.grad(wanted, same), 5e-3)


@pytest.mark.parametrize("score", SCORES)
def test_autocast_changes_nothing(score: str) -> None:
    units = [u.detach().float() for u in unit(vectors(3, 9, 8))]
    plain = ova(units, 10.0, score=score)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ova(units, 10.0, score=score), plain)


# Ranks


@pytest.mark.parametrize(("impl", "ring"), [("tiled", True), ("tiled", False), ("reference", True)])
@pytest.mark.parametrize(("score", "count"), [("projection", 4), ("volume", 3), ("area", 3)])
def test_ranks_with_uneven_rows_equal_one(impl: str, ring: bool, score: str, count: int) -> None:
    sizes = (3, 6, 1)
    raw = unit(vectors(count, sum(sizes), 8, seed=2))
    present = torch.rand(sum(sizes), count, generator=torch.Generator().manual_seed(1)) < 0.8
    options = {"score": score, "both": True, "smoothing": 0.1, "impl": impl}

    def work(exchange: Threaded, rank: int) -> tuple[Tensor, ...]:
        rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        mine = [u.detach()[rows].requires_grad_() for u in raw]
        # So large a scale takes several passes, which all ranks have to agree on.
        scale = torch.tensor(300.0, dtype=torch.float64, requires_grad=True)
        loss = ova(mine, scale, present=present[rows], exchange=exchange, **options)
        loss.backward()
        zero = torch.zeros_like
        return loss.detach(), scale.grad, *(zero(x) if x.grad is None else x.grad for x in mine)

    parts = on_ranks(3, work, ring)
    scale = torch.tensor(300.0, dtype=torch.float64, requires_grad=True)
    leaves = [u.detach().requires_grad_() for u in raw]
    whole = ova(leaves, scale, present=present, **options)
    wanted = torch.autograd.grad(whole, [scale, *leaves])
    close([sum(p[0] for p in parts) / 3, sum(p[1] for p in parts) / 3], [whole, wanted[0]], 1e-10)
    for m in range(count):
        # Each rank's loss counts `size` times its share: gradients are averaged over ranks.
        close([torch.cat([p[2 + m] for p in parts]) / 3], [wanted[1 + m]], 1e-9)


# Properties


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 12), st.integers(1, 9), st.integers(0, 99))
def test_two_modalities_score_by_the_cosine(n: int, d: int, seed: int) -> None:
    a, b = (u.detach() for u in unit(vectors(2, n, d, seed)))
    cosines = a @ b.T
    found = group_scores(a, [b], signed_pair=False, ridge=0, ridge_floor=0)
    torch.testing.assert_close(found, cosines.abs(), atol=1e-6, rtol=1e-9)
    assert torch.equal(group_scores(a, [b]), cosines)
    both = [cross_entropies(5 * x, False, 0.0).mean() for x in (cosines, cosines.T)]
    torch.testing.assert_close(ova([a, b], 5.0), sum(both) / 2)


def test_a_signed_pair_with_absent_modalities() -> None:
    a, b = unit(vectors(2, 8, 5))
    present = torch.rand(8, 2, generator=torch.Generator().manual_seed(0)) < 0.7
    kept = present.all(1)
    torch.testing.assert_close(ova([a, b], 5.0, present=present), ova([a[kept], b[kept]], 5.0))


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 6), st.integers(0, 99))
def test_scores_of_groups_are_projectors_volumes_and_areas(count: int, seed: int) -> None:
    z, *rest = (u.detach() for u in unit(vectors(count, 4, 9, seed)))
    for score in SCORES if count == 3 else SCORES[:2]:
        found = group_scores(z, rest, score=score)
        for i in range(4):
            for j in range(4):
                wanted = one_score(z[i], [r[j] for r in rest], score, RIDGE)
                assert abs(float(found[i, j] - wanted)) < 1e-6


@pytest.mark.parametrize("anchors", [(0,), (1,), (1, 0)])
def test_anchors_of_a_signed_pair(anchors: tuple[int, ...]) -> None:
    pair = [u.detach() for u in unit(vectors(2, 7, 5))]
    logits = 5 * pair[anchors[0]] @ pair[1 - anchors[0]].T
    rows, cols = (cross_entropies(x, False, 0.0).mean() for x in (logits, logits.T))
    wanted = rows if len(anchors) == 1 else (rows + cols) / 2
    torch.testing.assert_close(ova(pair, 5.0, anchors=anchors), wanted)
    torch.testing.assert_close(ova(pair, 5.0, anchors=anchors, both=True), (rows + cols) / 2)


def test_scores_of_groups_with_absent_vectors() -> None:
    z, a, b = (u.detach() for u in unit(vectors(3, 4, 9)))
    present = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    broken = [torch.where(p[:, None], x, torch.nan) for x, p in zip((a, b), present.T, strict=True)]
    found = group_scores(z, broken, present=present)
    alone = [group_scores(z, [x], signed_pair=False) for x in (a, b)]
    wanted = [group_scores(z, [a, b])[:, 0], alone[0][:, 1], alone[1][:, 2], 1e-6 * torch.ones(4)]
    torch.testing.assert_close(found, torch.stack([w.double() for w in wanted], 1))


def test_the_volume_is_the_rest_times_what_the_projection_leaves() -> None:
    z, *rest = (u.detach() for u in unit(vectors(4, 6, 9)))
    length = group_scores(z, rest, ridge=0, ridge_floor=0)
    volume = group_scores(z, rest, score="volume", ridge=0, ridge_floor=0)
    a = torch.stack(rest, 2)
    wanted = torch.linalg.det(a.transpose(1, 2) @ a) * (1 - length.square())
    torch.testing.assert_close(volume.square(), wanted, atol=1e-10, rtol=1e-9)


def test_the_loss_takes_the_scores_of_groups() -> None:
    units = [u.detach() for u in unit(vectors(3, 7, 9))]
    for score in SCORES:
        losses = []
        for m in range(3):
            rest = [u for i, u in enumerate(units) if i != m]
            logits = 9 * group_scores(units[m], rest, score=score)
            losses.append(cross_entropies(logits, False, 0.0).mean())
        torch.testing.assert_close(ova(units, 9.0, score=score), sum(losses) / 3)


def test_independent_modalities_leave_nothing_to_win() -> None:
    units = [u.detach().float() for u in unit(vectors(3, 64, 16))]
    assert float(ova(units, 1.0)) >= math.log(64) - 0.05


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("gap", [1e-2, 1e-6, 1e-12, 0.0])
@pytest.mark.parametrize("score", SCORES)
def test_groups_that_agree_have_finite_gradients(gap: float, score: str, shared: bool) -> None:
    z, a, noise = (u.detach() for u in unit(vectors(3, 32, 16)))
    noise = normalize(noise - (noise * a).sum(1, keepdim=True) * a, dim=1)
    b = (1 - gap) * a + math.sqrt(1 - (1 - gap) ** 2) * noise
    units = [x.float().requires_grad_() for x in (z, a, b)]
    scale = torch.tensor(10.0, requires_grad=True)
    with worked(shared, (16, 16)):
        loss = ova(units, scale, score=score)
        grads = torch.autograd.grad(loss, [scale, *units])
    assert math.isfinite(float(loss.detach()))
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    # The floor of the ridge bounds them: the unbounded ones are 1e3 times the usual at 1e-7.
    assert max(float(g.norm()) for g in grads[1:]) < 100


def test_all_modalities_equal_in_every_sample() -> None:
    one = unit(vectors(1, 12, 6))[0].detach().float()
    for score in SCORES:
        units = [one.clone().requires_grad_() for _ in range(3)]
        loss = ova(units, 100.0, score=score)
        loss.backward()
        assert math.isfinite(float(loss.detach()))
        assert all(bool(torch.isfinite(u.grad).all()) for u in units)


def test_the_smallest_eigenvalue_is_that_of_a_group() -> None:
    a, b, c = (u.detach() for u in unit(vectors(3, 5, 6)))
    grams = [torch.stack([x, y], 1) for x, y in ((a, b), (b, c), (a, c))]
    wanted = min(float(torch.linalg.eigvalsh(g @ g.transpose(1, 2)).min()) for g in grams)
    assert float(min_gram_eigenvalue([a, b, c])) == pytest.approx(wanted)
    assert float(min_gram_eigenvalue([a, a, c])) == pytest.approx(0, abs=1e-12)
    absent = torch.tensor([[False, True, True]] * 5)
    two = float(min_gram_eigenvalue([a, a, c], absent))
    assert two == pytest.approx(1 - float((a * c).sum(1).abs().max()))
