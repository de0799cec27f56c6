"""The data set of a run with vectors in place of what its perceptors perceive."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from outmodal.data.cache import cache_dir
from outmodal.data.manifest import Dataset
from outmodal.data.mixture import Mixture
from outmodal.errors import UserError
from outmodal.models.embed import Progress as Report
from outmodal.models.embed import embed_dataset
from outmodal.models.perceptors import (
    Perceptor,
    PerceptorBase,
    known_identities,
    load_perceptor,
)
from outmodal.train import gather
from outmodal.train.progress import Progress
from outmodal.train.team import WorldTeam


def with_features(
    dataset: Dataset, configs: Sequence[PerceptorBase], read: Collection[str]
) -> Dataset:
    """Return the data set whose perceived modalities are vectors; all ranks work on it.

    Features are computed once and kept in the cache, under a name that says what made them.

    Args:
        dataset: What the run names.
        configs: Its perceptors, without those whose features the data set holds.
        read: Modalities to keep as they are, where no perceptor reads them.
    """
    if not configs:
        return dataset
    if isinstance(dataset, Mixture):
        return _of_each(dataset, configs, read)
    perceptors = [load_perceptor(cfg, dataset) for cfg in configs]
    kept = sorted(set(read) - {p.modality for p in perceptors})
    label = f"features of {', '.join(p.modality for p in perceptors)}"
    with Progress(0, shown=gather.is_main()) as progress:

        def report(done: int, total: int) -> None:
            progress.reach(label, done, total)

        return embed_together(dataset, perceptors, kept, _place(dataset, perceptors, kept), report)


def _of_each(mixture: Mixture, configs: Sequence[PerceptorBase], read: Collection[str]) -> Mixture:
    """Each data set of a mixture by itself, by the perceptors of what it has."""
    for cfg in configs:
        mixture.modality(cfg.reads())
    derived = []
    for source in mixture.sources:
        held = source.dataset.manifest.modalities
        own = [cfg for cfg in configs if cfg.reads() in held]
        derived.append(with_features(source.dataset, own, {*read} & held.keys()))
    return mixture.with_datasets(derived)


def embed_together(
    dataset: Dataset,
    perceptors: Sequence[Perceptor],
    keep: Sequence[str],
    out: Path,
    report: Report,
    **options: object,
) -> Dataset:
    """`embed_dataset` on all ranks, each on its own device."""
    for p in perceptors:
        p.to(gather.world().device)
    team = WorldTeam()
    return embed_dataset(dataset, perceptors, keep, out, progress=report, team=team, **options)  # type: ignore[arg-type]


def _place(dataset: Dataset, perceptors: Sequence[Perceptor], kept: Sequence[str]) -> Path:
    request = {
        "dataset": dataset.fingerprint(),
        "perceptors": sorted(f"{p.modality} {p.identity} {p.precision}" for p in perceptors),
        "inputs": {p.modality: p.transform.config.model_dump(mode="json") for p in perceptors},
        "keep": list(kept),
    }
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "features" / digest[:24]


def unmade(dataset: Dataset, configs: Sequence[PerceptorBase]) -> list[PerceptorBase]:
    """Return the perceptors whose features the data set does not hold yet.

    Raises:
        UserError: It holds features of a perceptor's modality that another one made.
    """
    if not any(spec.perceptor for spec in dataset.manifest.modalities.values()):
        return list(configs)
    return [cfg for cfg in configs if not _holds(dataset, cfg)]


def _holds(dataset: Dataset, cfg: PerceptorBase) -> bool:
    name = cfg.reads()
    spec = dataset.manifest.modalities.get(name)
    if spec is None or spec.perceptor is None:
        return False
    identities = known_identities(cfg)
    if spec.perceptor not in identities:
        raise UserError(
            f"'{name}' of {dataset.where} holds vectors by {spec.perceptor}, and the perceptor of "
            f"this run is {' or '.join(identities)}: features of two perceptors do not mix. Leave "
            "the perceptor out, or name the data set that the features were made of"
        )
    return True
