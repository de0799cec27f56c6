"""Alignment of moments, raw heads, and the learner's start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from outmodal.errors import UserError
from outmodal.train.methods import cox_init
from outmodal.train.methods.cox_bootstrap import aligned, raw_judges
from outmodal.train.methods.cox_init import initialise
from outmodal.train.methods.cox_sets import Judge
from tests.train.methods.fakes import TinyLearner

G = torch.Generator().manual_seed(0)
U = torch.randn(500, 4, generator=G) @ torch.randn(4, 4, generator=G) + 3.0
Z = torch.randn(400, 4, generator=G) @ torch.randn(4, 4, generator=G) - 1.0
EYE = Judge(torch.eye(4), torch.zeros(4))


def test_standardised_features_have_the_moments_of_the_known() -> None:
    x = aligned(EYE, Z, U, "standardize")(Z)
    assert torch.allclose(x.mean(0), U.mean(0), atol=1e-4)
    assert torch.allclose(x.std(0), U.std(0), rtol=1e-2)
    assert torch.allclose(torch.corrcoef(x.T), torch.corrcoef(Z.T), atol=1e-4)


def test_coral_features_have_the_covariance_of_the_known() -> None:
    x = aligned(EYE, Z, U, "coral")(Z)
    assert torch.allclose(x.mean(0), U.mean(0), atol=1e-4)
    # up to the ridge, which keeps covariances of few samples invertible
    wanted = torch.cov(U.T)
    assert float((torch.cov(x.T) - wanted).abs().max()) < 0.05 * float(wanted.diagonal().max())


def test_without_alignment_the_head_is_the_head() -> None:
    assert aligned(EYE, Z, U, "none") is EYE
    assert aligned(EYE, Z[:0], U, "coral") is EYE


@pytest.mark.parametrize("how", ["standardize", "coral"])
def test_alignment_survives_dead_dimensions_and_few_samples(how: str) -> None:
    flat = Z.clone()
    flat[:, 2] = 1.0
    for z in (flat, Z[:2]):
        assert torch.isfinite(aligned(EYE, z, U, how)(z)).all()  # type: ignore[arg-type]


def test_raw_heads_learn_the_known_features() -> None:
    label = torch.randint(0, 3, (600,), generator=G)
    x = 3 * torch.eye(4)[label] + torch.randn(600, 4, generator=G)
    known, labels = {"a": x, "b": -x}, {"a": label, "b": label}
    heads = raw_judges(known, labels, ("x", "y", "z"), epochs=5, batch=32, seed=1)
    for name, head in zip(known, heads, strict=True):
        assert float((head(known[name]).argmax(1) == label).float().mean()) > 0.85
    again = raw_judges(known, labels, ("x", "y", "z"), epochs=5, batch=32, seed=1)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(heads, again, strict=True))


# --- the learner's start (C17) -----------------------------------------------------------------


class Tower(TinyLearner):
    """A learner with a convolution, a norm and an attention, as a perceptor's tower has."""

    def __init__(self, width: int = 8) -> None:
        super().__init__("touch", 8)
        self.stem = nn.Conv1d(1, width, 3)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2)
        self.position = nn.Parameter(torch.randn(1, width))


def exporting(learner: TinyLearner) -> Callable[[Path], SimpleNamespace]:
    return lambda folder: SimpleNamespace(learner=learner)


def test_linear_layers_and_norms_start_anew_and_the_rest_is_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, learner = Tower(), Tower()
    with torch.no_grad():
        source.norm.weight.fill_(5.0)
    monkeypatch.setattr(cox_init, "load_export", exporting(source))
    head = nn.Linear(16, 4)
    before = head.weight.detach().clone()
    state = torch.get_rng_state()
    initialise(learner, [head], "perceptor_partial", "some/folder", 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(head.weight, before)  # an export of the same seed began with these

    def same(pick: Callable[[Tower], Tensor]) -> bool:
        return torch.equal(pick(learner), pick(source))

    assert same(lambda t: t.stem.weight)
    assert same(lambda t: t.position)
    assert same(lambda t: t.attention.in_proj_weight)
    assert not same(lambda t: t.attention.out_proj.weight)
    assert not same(lambda t: t.backbone[0].weight)
    assert (learner.norm.weight == 1).all()
    assert "not unsupervised" in caplog.text


def test_an_export_of_another_learner_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cox_init, "load_export", exporting(Tower(width=4)))
    with pytest.raises(UserError, match=r"another learner than the one of 'touch'.*same learner"):
        initialise(Tower(), [], "perceptor_partial", "some/folder", 0)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"outmodal\.json|no export|export"):
        initialise(Tower(), [], "perceptor_partial", str(tmp_path), 0)
