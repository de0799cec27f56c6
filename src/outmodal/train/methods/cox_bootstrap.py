"""COX's bootstrap without labels (U1): heads of the known features, applied to aligned z.

At that point the learner is random and nothing connects its features to the known ones; the paper
(sec. 3.4) does not say where the first class signal comes from. An alignment of moments is all that
unpaired data allow: `boot_align`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from outmodal.errors import UserError
from outmodal.train.methods.cox_config import BootAlign
from outmodal.train.methods.cox_sets import Judge, refit
from outmodal.train.selection import mix_seeds

_RIDGE = 1e-3  # of the mean variance: a covariance of few samples has no inverse
_FLAT = 1e-6  # deviations below count as this: a dead dimension is not blown up


def raw_judges(
    known: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    classes: Sequence[str],
    *,
    epochs: int,
    batch: int,
    seed: int,
) -> list[Judge]:
    """Linear heads h_k on the known features u_k themselves, from zero.

    Args:
        known: Known modality -> [N, d].
        labels: Known modality -> [N], -1 where absent.
        classes: Class names.
        epochs, batch, seed: See `refit`.

    Raises:
        UserError: A modality that no labelled sample has, or a class without any.
    """
    judges = []
    for k, (name, u) in enumerate(known.items()):
        _check_labels(name, labels[name], classes)
        zero = Judge(torch.zeros(len(classes), u.shape[1]), torch.zeros(len(classes)))
        own_seed = mix_seeds(seed, k)
        judges.append(refit(zero, u, labels[name], epochs=epochs, batch=batch, seed=own_seed))
    return judges


def _check_labels(name: str, label: Tensor, classes: Sequence[str]) -> None:
    if not bool((label >= 0).any()):
        raise UserError(
            f"no training sample has both a label and '{name}', one of method.known: leave it out "
            "of method.known, or add samples"
        )
    counts = torch.bincount(label[label >= 0], minlength=len(classes)).tolist()
    empty = [c for c, n in zip(classes, counts, strict=True) if n == 0]
    if empty:
        raise UserError(
            f"no training sample of class {', '.join(repr(c) for c in empty)} has both a label and "
            f"'{name}', so its head cannot know it: add samples, or remove the class from the data "
            "set"
        )


def aligned(judge: Judge, z: Tensor, u: Tensor, how: BootAlign) -> Judge:
    """A head of u that first brings z to the moments of u; exact, as the map is affine.

    Args:
        judge: On features like u.
        z: [N, d] features of the unknown modality.
        u: [M, d] known features; of which samples does not matter, only their moments do.
        how: standardize: mean and deviation of each dimension. coral: mean and covariance (Sun,
            Feng, Saenko: "Return of Frustratingly Easy Domain Adaptation", AAAI 2016). none: z as
            it is.

    Returns:
        W, b such that W z + b are the head's logits on the aligned z.
    """
    if how == "none" or not len(z) or not len(u):
        return judge
    z, u = z.double(), u.double()
    matrix = _deviations(z, u) if how == "standardize" else _covariances(z, u)
    shift = u.mean(dim=0) - matrix @ z.mean(dim=0)
    weight = judge.weight.double()
    return Judge((weight @ matrix).float(), (weight @ shift + judge.bias.double()).float())


def _deviations(z: Tensor, u: Tensor) -> Tensor:
    ratio = u.std(dim=0, unbiased=False) / z.std(dim=0, unbiased=False).clamp_min(_FLAT)
    return torch.diag(ratio)


def _covariances(z: Tensor, u: Tensor) -> Tensor:
    """Whitens z and colours it as u, each by the symmetric root of its covariance."""
    return _root(u, 0.5) @ _root(z, -0.5)


def _root(x: Tensor, power: float) -> Tensor:
    centred = x - x.mean(dim=0)
    covariance = centred.T @ centred / len(x)
    ridge = _RIDGE * covariance.diagonal().mean().clamp_min(_FLAT**2)
    values, vectors = torch.linalg.eigh(covariance)
    scaled = (values.clamp_min(0) + ridge).pow(power)
    root: Tensor = vectors * scaled @ vectors.T
    return root
