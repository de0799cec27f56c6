"""Alignment of moments, raw heads, and the learner's start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from outmodal.data.inputs import ImageInput, TokenInput
from outmodal.errors import UserError
from outmodal.models.heads import ProjectionHead
from outmodal.models.learners import TextLearner, ViTLearner
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


def exporting(
    learner: TinyLearner, head: ProjectionHead | None = None
) -> Callable[[Path], SimpleNamespace]:
    return lambda folder: SimpleNamespace(learner=learner, head=head)


def behind() -> tuple[ProjectionHead, nn.Linear]:
    return ProjectionHead(16, 4), nn.Linear(4, 3)


def test_linear_layers_and_norms_start_anew_and_the_rest_is_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, learner = Tower(), Tower()
    with torch.no_grad():
        source.norm.weight.fill_(5.0)
    monkeypatch.setattr(cox_init, "load_export", exporting(source))
    projection, classifier = behind()
    before = [p.detach().clone() for p in (*projection.parameters(), *classifier.parameters())]
    state = torch.get_rng_state()
    initialise(learner, projection, classifier, "perceptor_partial", "some/folder", 0)
    assert torch.equal(torch.get_rng_state(), state)
    # an export of the same seed began with these
    assert not torch.equal(projection.layers[0].weight, before[0])
    assert not torch.equal(classifier.weight, before[2])

    def same(pick: Callable[[Tower], Tensor]) -> bool:
        return torch.equal(pick(learner), pick(source))

    assert same(lambda t: t.stem.weight)
    assert same(lambda t: t.position)
    assert same(lambda t: t.attention.in_proj_weight)
    assert not same(lambda t: t.attention.out_proj.weight)
    assert not same(lambda t: t.backbone[0].weight)
    assert (learner.norm.weight == 1).all()
    assert "not unsupervised" in caplog.text


@pytest.mark.parametrize(
    "config",
    [
        ViTLearner(
            modality="image",
            size="custom",
            width=16,
            depth=1,
            heads=2,
            patch=4,
            input=ImageInput(size=(8, 8)),
        ),
        TextLearner(
            modality="text",
            size="custom",
            width=16,
            depth=1,
            heads=2,
            input=TokenInput(length=6, vocab_size=20),
        ),
    ],
    ids=["vit", "bert"],
)
def test_attention_keeps_its_inward_projections_in_any_transformer(
    config: ViTLearner | TextLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released code's attention holds them as one bare parameter, which it does not renew."""
    torch.manual_seed(0)
    source, learner = config.build(), config.build()
    monkeypatch.setattr(cox_init, "load_export", exporting(source))  # type: ignore[arg-type]
    initialise(learner, *behind(), "perceptor_partial", "some/folder", 0)
    theirs = source.state_dict()
    same = {n for n, t in learner.state_dict().items() if torch.equal(t, theirs[n])}
    inward = {n for n in theirs if n.split(".")[-2] in ("query", "key", "value", "q_proj")}
    inward |= {n for n in theirs if n.split(".")[-2] in ("k_proj", "v_proj")}
    assert len(inward) == 6
    assert inward <= same
    renewed = {n.split(".")[-2] for n in set(theirs) - same}
    assert "dense" in renewed or "fc1" in renewed


def test_a_whole_perceptor_keeps_its_projection_but_not_its_classifier(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, learner = Tower(), Tower()
    head, (projection, classifier) = ProjectionHead(16, 4), behind()
    before = classifier.weight.detach().clone()
    monkeypatch.setattr(cox_init, "load_export", exporting(source, head))
    initialise(learner, projection, classifier, "perceptor", "some/folder", 0)
    x = torch.randn(5, 8)
    assert torch.equal(projection(learner(x)), head(source(x)))
    assert not torch.equal(classifier.weight, before)
    assert "not unsupervised" in caplog.text


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (None, "has no projection"),
        (ProjectionHead(16, 5), "projects to 5 numbers.*method.dim 5"),
        (ProjectionHead(16, 4, "mlp"), "projection is 'mlp'.*linear"),
    ],
)
def test_a_projection_that_does_not_fit_is_refused(
    head: ProjectionHead | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cox_init, "load_export", exporting(Tower(), head))
    with pytest.raises(UserError, match=message):
        initialise(Tower(), *behind(), "perceptor", "some/folder", 0)


def test_an_export_of_another_learner_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cox_init, "load_export", exporting(Tower(width=4)))
    with pytest.raises(UserError, match=r"another learner than the one of 'touch'.*same learner"):
        initialise(Tower(), *behind(), "perceptor_partial", "some/folder", 0)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"outmodal\.json|no export|export"):
        initialise(Tower(), *behind(), "perceptor_partial", str(tmp_path), 0)
