"""How much frozen representations tell: a small network trained on them, and only on them.

The protocol of "One vs All Information Bottleneck for Multi-Modal Alignment" (arXiv 2605.29900):
the encoders stay as they are, the representations of the given modalities are concatenated, and
a perceptron of four layers predicts the class (cross-entropy) or a target (squared error).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from outmodal.base import Config
from outmodal.errors import UserError
from outmodal.train.representations import Encoded, ProbeOn

ROWS_AT_ONCE = 4096


class ProbeConfig(Config):
    """What is trained on the representations, and for how long.

    Attributes:
        kind: mlp (ReLU between its layers) or linear.
        on: repr (before the projection head) or embedding (the unit vector after it).
        predict: The class or the regression target; auto takes the class where there are any.
        layers, hidden: Linear layers of the mlp, and their width.
        epochs, batch, lr, weight_decay: Of Adam at a constant learning rate.
        seed: Decides initial weights and the order of the samples.
    """

    kind: Literal["mlp", "linear"] = "mlp"
    on: ProbeOn = "repr"
    predict: Literal["auto", "class", "target"] = "auto"
    layers: int = Field(default=4, ge=2)
    hidden: int = Field(default=256, ge=1)
    epochs: int = Field(default=50, ge=1)
    batch: int = Field(default=64, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Answers:
    """What a probe has to say of each sample.

    Attributes:
        truth: [N] int64 classes, or [N, k] targets.
        known: [N] bool, False where the sample has no answer.
        outputs: Classes, or k.
    """

    truth: Tensor
    known: Tensor
    outputs: int

    @property
    def metric(self) -> str:
        """ "accuracy" of classes, "mse" of targets."""
        return "mse" if self.truth.is_floating_point() else "accuracy"

    def loss(self, out: Tensor, rows: Tensor) -> Tensor:
        """Cross-entropy or mean squared error of outputs [B, outputs] for these samples."""
        if self.metric == "mse":
            return F.mse_loss(out, self.truth[rows])
        return F.cross_entropy(out, self.truth[rows])


def answers(encoded: Encoded, split: str, classes: int, predict: str = "auto") -> Answers:
    """The classes or targets of a split.

    Raises:
        UserError: No sample of the split has what is asked for.
    """
    labelled = encoded.label >= 0
    by_class = predict == "class" or (predict == "auto" and bool(labelled.any()))
    if by_class and bool(labelled.any()):
        return Answers(encoded.label, labelled, classes)
    if not by_class and encoded.target is not None:
        known = encoded.target.isfinite().all(dim=1)
        return Answers(encoded.target, known, encoded.target.shape[1])
    what = {"auto": "labels and no targets", "class": "labels", "target": "targets"}[predict]
    raise UserError(
        f"split '{split}' has no {what}, so there is nothing a probe could learn: add `.cls` or "
        "`.target.npy` members, choose another split, or use --task retrieve"
    )


def probe(
    train: tuple[Tensor, Answers], test: tuple[Tensor, Answers], config: ProbeConfig
) -> float:
    """Train a probe on features [N, d] with the answers of the same rows, and score it on others.

    Returns:
        See `score`.

    Raises:
        UserError: A split has no row with an answer.
    """
    require_answers("training", train[1])
    return score(fit(*train, config), *test)


def score(network: nn.Module, x: Tensor, held: Answers) -> float:
    """Accuracy in 0..1, or mean squared error, over the rows of features [N, d] with an answer.

    Raises:
        UserError: There is no such row.
    """
    return float(judged(predicted(network, x, held), held).mean())


def predicted(network: nn.Module, x: Tensor, held: Answers) -> Tensor:
    """[n, outputs] of the network for the rows of features [N, d] with an answer.

    Raises:
        UserError: There is no such row.
    """
    require_answers("evaluation", held)
    rows = held.known.nonzero()[:, 0]
    with torch.no_grad():
        return torch.cat([network(x[part]) for part in torch.split(rows, ROWS_AT_ONCE)])


def judged(out: Tensor, held: Answers) -> Tensor:
    """[n] fp64: hits, or squared errors (their mean over a target's entries), of `predicted`."""
    truth = held.truth[held.known]
    if held.metric == "mse":
        return (out - truth).double().square().mean(dim=1)
    return (out.argmax(dim=1) == truth).double()


def require_answers(split: str, held: Answers) -> None:
    """Raise UserError where no row has an answer."""
    if not bool(held.known.any()):
        raise UserError(
            f"no sample of the {split} split has all of these modalities and an answer: choose "
            "other modalities"
        )


def fit(x: Tensor, held: Answers, config: ProbeConfig) -> nn.Sequential:
    """Train a probe on features [N, d]; the same arguments give the same weights."""
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = _network(x.shape[1], held.outputs, config).to(x.device)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    usable = held.known.nonzero()[:, 0]
    for rows in _batches(usable, config, generator):
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(held.loss(network(x[rows]), rows))
        optimizer.step()
    return network.eval()


def concatenated(
    encoded: Encoded, modalities: Sequence[str], on: ProbeOn, fill: Sequence[Tensor] | None = None
) -> Tensor:
    """[N, sum of sizes] features of these modalities side by side.

    Args:
        fill: For each modality [d], what stands for it where a sample lacks it; None is zeros.
    """
    features = encoded.features(on)
    parts = []
    for i, m in enumerate(modalities):
        stand_in = features[m].new_zeros(()) if fill is None else fill[i]
        parts.append(torch.where(encoded.present[m][:, None], features[m], stand_in))
    return torch.cat(parts, dim=1)


def _network(inputs: int, outputs: int, config: ProbeConfig) -> nn.Sequential:
    if config.kind == "linear":
        return nn.Sequential(nn.Linear(inputs, outputs))
    widths = [inputs, *[config.hidden] * (config.layers - 1), outputs]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _batches(usable: Tensor, config: ProbeConfig, generator: torch.Generator) -> Iterator[Tensor]:
    """Every sample once an epoch, in a new order."""
    for _ in range(config.epochs):
        order = usable[torch.randperm(len(usable), generator=generator).to(usable.device)]
        yield from torch.split(order, config.batch)
