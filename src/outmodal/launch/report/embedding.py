"""A map of a run's features on the page.

t-SNE (van der Maaten and Hinton, JMLR 2008) as scikit-learn has it, and not UMAP: it shows the
neighbourhoods that retrieval and classification depend on, starts from the principal components,
so that a seed and one thread repeat a map, and needs no compiler at run time, as UMAP's packages
do. Neither map keeps distances between far groups; the page says so, and gives the gap between
modalities as numbers from the full space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from outmodal.launch.report.measure import Measured
from outmodal.models.features import unit_norm

POINTS = 600
"""Points of a map, over all modalities together."""

_PERPLEXITY = 30.0
_ITERATIONS = 500
_FEWEST = 5


@dataclass(frozen=True)
class Map:
    """Points of one run in the plane.

    Attributes:
        xy: [P, 2], within -1..1.
        modality: [P] position in `modalities`.
        label: [P] class, -1 where unknown.
        sample: [P] position within what was measured.
        modalities: Names.
    """

    xy: NDArray[np.float64]
    modality: NDArray[np.int64]
    label: NDArray[np.int64]
    sample: NDArray[np.int64]
    modalities: tuple[str, ...]


def embedding_map(measured: Measured, seed: int = 0) -> Map | None:
    """Lay unit vectors of all modalities out in one plane, the same samples of each where they
    have it; None where there are too few, or spaces of different sizes."""
    sizes = {z.shape[1] for z in measured.features.values()}
    if len(sizes) != 1:
        return None
    chosen = _chosen(measured, seed)
    vectors, modality, sample = [], [], []
    for number, (name, z) in enumerate(measured.features.items()):
        rows = chosen[measured.present[name].numpy()[chosen]]
        vectors.append(unit_norm(z[torch.from_numpy(rows)]).numpy())
        modality.append(np.full(len(rows), number))
        sample.append(rows)
    flat, places = np.concatenate(vectors), np.concatenate(sample)
    if len(flat) < _FEWEST or not np.isfinite(flat).all():
        return None
    return Map(
        _laid_out(flat, seed),
        np.concatenate(modality),
        measured.label.numpy()[places],
        places,
        tuple(measured.features),
    )


def _chosen(measured: Measured, seed: int) -> NDArray[np.int64]:
    most = max(1, POINTS // max(1, len(measured.features)))
    if measured.samples <= most:
        return np.arange(measured.samples)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(measured.samples, most, replace=False))


def _laid_out(vectors: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
    fit = TSNE(
        perplexity=perplexity,
        init="pca",
        learning_rate="auto",
        max_iter=_ITERATIONS,
        random_state=seed,
    )
    with threadpool_limits(limits=1):  # sums in one order; and threads only wait for each other
        xy: NDArray[np.float64] = fit.fit_transform(vectors).astype(np.float64)
    xy -= xy.mean(axis=0)
    return xy / max(float(np.abs(xy).max()), 1e-12)
