"""Nearest neighbours in frozen representations: nothing is trained.

By the cosine, with votes weighted as in Caron et al., "Emerging Properties in Self-Supervised
Vision Transformers" (ICCV 2021), sec. 4.1, after Wu et al. (CVPR 2018): a neighbour of similarity s
votes exp(s / temperature); and with one vote each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor

from outmodal.base import Config
from outmodal.errors import UserError
from outmodal.models.features import unit_norm
from outmodal.models.kernels.nearest import nearest
from outmodal.train.probing import Answers, concatenated, require_answers
from outmodal.train.representations import Encoded, ProbeOn
from outmodal.train.results import Of, Table, five_best
from outmodal.train.shares import by_rows

ROWS_AT_ONCE = 4096


class KnnConfig(Config):
    """Who votes, and with what weight.

    Attributes:
        k: Numbers of neighbours; each gives its own result.
        temperature: Of the weighted votes.
        on: repr (before the projection head) or embedding.
    """

    k: tuple[int, ...] = Field(default=(10, 20), min_length=1)
    temperature: float = Field(default=0.07, gt=0)
    on: ProbeOn = "repr"


def knn(
    table: Table,
    train: tuple[Encoded, Answers],
    test: tuple[Encoded, Answers],
    modalities: Sequence[str],
    config: KnnConfig,
    of: Of,
) -> None:
    """Add "weighted_kK" and "plain_kK" (accuracy, or mean squared error) for every K.

    Features of several modalities are brought to unit length each, and put side by side.

    Args:
        table: Where the rows go.
        train, test: Samples with the answers that are known and to be given.
        modalities: Whose features; samples count that have all of them.
        config: See there.
        of: What the rows are of.

    Raises:
        UserError: A split has no sample with an answer, or the training split fewer than K.
    """
    require_answers("training", train[1])
    require_answers("evaluation", test[1])
    known, asked = (
        _units(encoded, modalities, config.on)[answers.known] for encoded, answers in (train, test)
    )
    most = max(config.k)
    if min(config.k) < 1 or most > len(known):
        raise UserError(
            f"knn.k is {', '.join(map(str, config.k))}, and the training split has {len(known)} "
            f"samples with an answer: give numbers from 1 to {len(known)}"
        )
    similarity, index = neighbours(asked, known, most)
    truth, wanted = train[1].truth[train[1].known], test[1].truth[test[1].known]
    for k in config.k:
        near = truth[index[:, :k]]
        for name, weight in weights(similarity[:, :k], config.temperature).items():
            values = _answer(train[1])(near, weight, wanted, train[1].outputs)
            metric = f"{name}_k{k}"
            table.mean(metric, metric, values, of)


def neighbours(query: Tensor, known: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most similar of [M, d] unit vectors for each of [N, d]: cosines [N, k], descending, and
    indices; of equals the smaller index. Shared by the processes of a group."""

    def part(rows: range) -> list[Tensor]:
        starts = range(rows.start, rows.stop, ROWS_AT_ONCE)
        found = [nearest(query[i : min(i + ROWS_AT_ONCE, rows.stop)], [known], k=k) for i in starts]
        return [torch.cat(column) for column in zip(*found, strict=True)]

    distance, index = by_rows(len(query), ROWS_AT_ONCE, part)
    return 1.0 - distance.double().square() / 2.0, index


def weights(similarity: Tensor, temperature: float) -> dict[str, Tensor]:
    """Votes [N, k] of neighbours by their cosines [N, k], descending; scaled by the first one's,
    which changes nothing."""
    weighted = ((similarity - similarity[:, :1]) / temperature).exp()
    return {"weighted": weighted, "plain": torch.ones_like(weighted)}


def votes(near: Tensor, weight: Tensor, classes: int) -> Tensor:
    """[N, classes] sums of the weights [N, k] of neighbours by their classes [N, k]."""
    return weight.new_zeros((len(near), classes)).scatter_add_(1, near, weight)


def _answer(held: Answers) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    return _squared_error if held.metric == "mse" else _hits


def _hits(near: Tensor, weight: Tensor, truth: Tensor, classes: int) -> Tensor:
    return (five_best(votes(near, weight, classes))[:, 0] == truth).double()


def _squared_error(near: Tensor, weight: Tensor, truth: Tensor, outputs: int) -> Tensor:
    share = weight / weight.sum(dim=1, keepdim=True)
    mean = (near.double() * share[:, :, None]).sum(dim=1)
    return (mean - truth.double()).square().mean(dim=1)


def _units(encoded: Encoded, modalities: Sequence[str], on: ProbeOn) -> Tensor:
    """[N, sum of sizes] of unit length."""
    parts = [unit_norm(concatenated(encoded, [m], on)) for m in modalities]
    return unit_norm(torch.cat(parts, dim=1))
