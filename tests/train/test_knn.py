"""Nearest neighbours: scikit-learn's, and the weighted votes by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_squared_error
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from torch import Tensor

from outmodal.errors import UserError
from outmodal.models.features import unit_norm
from outmodal.train.intervals import Bootstrap
from outmodal.train.knn import KnnConfig, knn, neighbours
from outmodal.train.probing import answers
from outmodal.train.representations import Encoded
from outmodal.train.results import Of, Table


def encoded(x: dict[str, Tensor], label: Tensor, target: Tensor | None = None) -> Encoded:
    present = {m: torch.ones(len(label), dtype=torch.bool) for m in x}
    return Encoded(x, {m: unit_norm(e) for m, e in x.items()}, present, label, target)


def blobs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % 4
    centre = torch.randn(4, 6, generator=torch.Generator().manual_seed(9))
    return centre[label] + torch.randn(count, 6, generator=generator), label


def metrics(
    train: Encoded, test: Encoded, config: KnnConfig, predict: str = "auto"
) -> dict[str, float]:
    table = Table(Bootstrap())
    sides = [(side, answers(side, "x", 4, predict)) for side in (train, test)]
    knn(table, sides[0], sides[1], train.modalities, config, Of())
    return table.done(0).metrics


def test_plain_votes_are_those_of_scikit_learn() -> None:
    (x, y), (asked, truth) = blobs(120, 0), blobs(60, 1)
    found = metrics(encoded({"a": x}, y), encoded({"a": asked}, truth), KnnConfig(k=(1, 5, 20)))
    for k in (1, 5, 20):
        peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(x.numpy(), y.numpy())
        expected = peer.score(asked.numpy(), truth.numpy())
        assert found[f"plain_k{k}"] == pytest.approx(expected)
    assert found["plain_k1"] == found["weighted_k1"]


def test_weighted_votes_by_hand() -> None:
    (x, y), (asked, truth) = blobs(120, 0), blobs(60, 1)
    config = KnnConfig(k=(15,), temperature=0.1)
    found = metrics(encoded({"a": x}, y), encoded({"a": asked}, truth), config)
    peer = KNeighborsClassifier(
        15, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1)
    ).fit(x.numpy(), y.numpy())
    assert found["weighted_k15"] == pytest.approx(peer.score(asked.numpy(), truth.numpy()))


def test_regression_takes_the_mean_of_the_neighbours() -> None:
    x, asked = blobs(80, 0)[0], blobs(40, 1)[0]
    targets = [torch.stack([e[:, 0], e.sum(dim=1)], dim=1) for e in (x, asked)]
    none = torch.full((80,), -1)
    found = metrics(
        encoded({"a": x}, none, targets[0]),
        encoded({"a": asked}, none[:40], targets[1]),
        KnnConfig(k=(7,)),
    )
    peer = KNeighborsRegressor(7, metric="cosine", algorithm="brute")
    said = peer.fit(x.numpy(), targets[0].numpy()).predict(asked.numpy())
    assert found["plain_k7"] == pytest.approx(
        mean_squared_error(targets[1].numpy(), said), rel=1e-5
    )


def test_several_modalities_weigh_alike() -> None:
    """What one modality's scale is does not matter."""
    (x, y), (asked, truth) = blobs(80, 0), blobs(40, 1)
    noise = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    pairs = [
        (
            encoded({"a": x, "b": scale * noise}, y),
            encoded({"a": asked, "b": scale * noise[:40]}, truth),
        )
        for scale in (1.0, 1e4)
    ]
    assert metrics(*pairs[0], KnnConfig()) == metrics(*pairs[1], KnnConfig())


def test_ties_go_to_the_earlier_one() -> None:
    known = unit_norm(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    similarity, index = neighbours(known[:1], known, 3)
    assert index.tolist() == [[0, 1, 2]]
    assert similarity[0].tolist() == pytest.approx([1, 1, 0], abs=1e-6)


def test_more_neighbours_than_samples() -> None:
    (x, y), (asked, truth) = blobs(12, 0), blobs(4, 1)
    message = r"knn.k is 5, 13, and the training split has 12 samples.*from 1 to 12"
    with pytest.raises(UserError, match=message):
        metrics(encoded({"a": x}, y), encoded({"a": asked}, truth), KnnConfig(k=(5, 13)))
