"""A mixture: several data sets that are streamed as one.

    data:
      mix:
        - {path: photos}
        - {path: sketches, weight: 3}
        - {path: films, split: all, classes: {kitty: cat}}
      temperature: 2

To all readers a mixture is one data set: its shards are those of the sources one after another,
an index counts through them, its modalities are the sources' (a sample lacks what its source
lacks), and labels are numbered anew. So passes, selections and labels work as everywhere; only
the order of an epoch over the training split differs (see `mixture_plan`).

An epoch has as many samples as all sources together. Where shares are not by samples, a small
source comes up several times in it and of a large one only a part: `epoch.EpochUse` says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from outmodal.data.manifest import Dataset, Manifest, Modality, ShardInfo, SplitInfo
from outmodal.data.mixture_config import SourceConfig
from outmodal.data.mixture_union import united_classes, united_modalities
from outmodal.data.store import ShardFile, ShardPlace, Store
from outmodal.errors import UserError

_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Source:
    """One data set of a mixture.

    Attributes:
        name: Its name in messages and metrics; no two sources share one.
        dataset: The data set.
        config: What the configuration says of it.
        classes: Number in the mixture's classes of each of its own.
        splits: Split of the mixture -> its own split.
    """

    name: str
    dataset: Dataset
    config: SourceConfig
    classes: tuple[int, ...]
    splits: Mapping[str, str]

    def shards(self, split: str) -> tuple[ShardInfo, ...]:
        """Return its shards of one of the mixture's splits, as its own manifest has them."""
        own = self.splits.get(split)
        return () if own is None else self.dataset.manifest.splits[own].shards

    def renamed(self, info: ShardInfo) -> ShardInfo:
        """Return a shard under the name that it has in the mixture."""
        return info.model_copy(update={"file": f"{self.name}.{info.file}"})


@dataclass(frozen=True)
class MixtureStore:
    """The files of all sources, as a `Store`: SOURCE.FILE stands for FILE of that source."""

    sources: tuple[Source, ...]

    @property
    def where(self) -> str:
        """The data sets, for messages."""
        return f"mixture of {' and '.join(s.dataset.where for s in self.sources)}"

    @property
    def folder(self) -> None:
        """A mixture has no folder of its own."""

    def read_bytes(self, name: str) -> bytes:
        """See Store.read_bytes."""
        store, file = self._find(name)
        return store.read_bytes(file)

    def open(self, name: str) -> ShardFile:
        """See Store.open."""
        store, file = self._find(name)
        return store.open(file)

    def size(self, name: str) -> int:
        """See Store.size."""
        store, file = self._find(name)
        return store.size(file)

    def shard(self, name: str, size: int, sha256: str) -> ShardPlace:
        """See Store.shard."""
        store, file = self._find(name)
        return store.shard(file, size, sha256)

    def _find(self, name: str) -> tuple[Store, str]:
        source, _, file = name.partition(".")
        for one in self.sources:
            if one.name == source:
                return one.dataset.store, file
        raise FileNotFoundError(name)


@dataclass(frozen=True)
class Mixture(Dataset):
    """Several data sets as one; made by `open_mixture`.

    Attributes:
        sources: The data sets.
        train_split: Name of the split whose epochs are mixed.
        temperature: T; by samples, a source is drawn in proportion to samples ** (1 / T).
    """

    sources: tuple[Source, ...] = ()
    train_split: str = "train"
    temperature: float = 1.0

    def modality_in(self, info: ShardInfo, name: str) -> Modality | None:
        """See Dataset.modality_in."""
        united = self.modality(name)
        own = self._owner(info).dataset.manifest.modalities.get(name)
        return own and own.model_copy(update={"sample_rate": united.sample_rate})

    def classes_in(self, info: ShardInfo) -> int:
        """See Dataset.classes_in."""
        return len(self._owner(info).classes)

    def label(self, info: ShardInfo, raw: int) -> int:
        """See Dataset.label."""
        return self._owner(info).classes[raw]

    def own_labels(self, split: str) -> NDArray[np.int64]:
        """See Dataset.own_labels."""
        from outmodal.data.labels import read_labels  # asks this method first

        self.split(split)
        parts = [np.empty(0, np.int64)]
        for source in self._filled(split):
            raw = read_labels(source.dataset, source.splits[split])
            numbers = np.array([*source.classes, -1], np.int64)  # the last one is no class
            parts.append(numbers[raw])
        return np.concatenate(parts)

    def source_of(self, split: str, shard: int) -> str:
        """See Dataset.source_of."""
        return self._owner(self.split(split).shards[shard]).name

    def groups(self, split: str) -> tuple[tuple[ShardInfo, ...], ...]:
        """See Dataset.groups."""
        self.split(split)
        return tuple(tuple(map(s.renamed, s.shards(split))) for s in self._filled(split))

    def weights(self, samples: Sequence[int]) -> list[float]:
        """Return how often each source is drawn, to any scale, given the samples to draw from.

        0 for a source without any.
        """
        found = []
        for source, count in zip(self.sources, samples, strict=True):
            config = source.config
            if config.proportion is not None:
                found.append(config.proportion if count else 0.0)
            else:
                found.append(config.weight * count ** (1 / self.temperature) if count else 0.0)
        return found

    def with_datasets(self, datasets: Sequence[Dataset]) -> Mixture:
        """Return the same mixture of data sets derived from its own, as of features."""
        named = [(s.name, s.config, d) for s, d in zip(self.sources, datasets, strict=True)]
        return _unite(named, self.train_split, self.temperature)

    @property
    def root(self) -> Path:
        """UserError: a mixture has no folder."""
        raise UserError(
            f"{self.where}: this needs one folder, and a mixture has none: name one of its data "
            "sets instead"
        )

    @cached_property
    def _fingerprint(self) -> str:
        sources = [
            {
                "data": s.dataset.fingerprint(),
                "classes": s.classes,
                "splits": dict(sorted(s.splits.items())),
                "weight": s.config.weight,
                "proportion": s.config.proportion,
            }
            for s in self.sources
        ]
        content = {
            "sources": sources,
            "temperature": self.temperature,
            "train_split": self.train_split,
            "manifest": self.manifest.model_dump(mode="json", exclude_none=True),
        }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _owner(self, info: ShardInfo) -> Source:
        return self._by_name[info.file.partition(".")[0]]

    @cached_property
    def _by_name(self) -> dict[str, Source]:
        return {source.name: source for source in self.sources}

    def _filled(self, split: str) -> list[Source]:
        """The sources that have samples in a split."""
        return [s for s in self.sources if any(info.samples for info in s.shards(split))]


def open_mixture(
    configs: Sequence[SourceConfig],
    train_split: str,
    temperature: float,
    open_one: Callable[[str], Dataset],
) -> Mixture:
    """Open the data sets of a mixture, and unite them.

    The split `train_split` holds each source's own split of that name, or the one that its
    configuration names; every other split those of the sources that have it, except for samples
    that some source trains on.

    Args:
        configs: The sources.
        train_split: Split whose epochs are mixed.
        temperature: See `Mixture`.
        open_one: Opens one data set by its path.

    Raises:
        UserError: A data set twice, one without the split, or data sets that do not fit.
    """
    datasets = [open_one(config.path) for config in configs]
    _check_once([d.where for d in datasets])
    names = _names([d.manifest.name for d in datasets])
    return _unite(list(zip(names, configs, datasets, strict=True)), train_split, temperature)


def _check_once(places: Sequence[str]) -> None:
    twice = [place for place, count in Counter(places).items() if count > 1]
    if twice:
        raise UserError(
            f"data.mix names {twice[0]} twice: name it once, and give it a larger weight (or "
            "proportion) if it is to come up more often"
        )


def _names(wanted: Sequence[str]) -> list[str]:
    """Names that hold no dot and differ: the data sets' own, with a number where they clash."""
    names: list[str] = []
    for raw in wanted:
        base = _UNFIT.sub("-", raw).strip("-_") or "data"
        name, number = base, 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names


def _unite(
    named: Sequence[tuple[str, SourceConfig, Dataset]], train_split: str, temperature: float
) -> Mixture:
    classes, maps = united_classes(
        [(name, d.manifest.classes, config.classes) for name, config, d in named]
    )
    sources = tuple(
        Source(name, d, config, own, _splits(d, config, train_split))
        for (name, config, d), own in zip(named, maps, strict=True)
    )
    splits = {split: None for source in sources for split in source.splits}
    manifest = Manifest(
        name="+".join(name for name, _, _ in named),
        classes=classes,
        modalities=united_modalities({name: d for name, _, d in named}),
        splits={split: _joined(sources, split) for split in splits},
    )
    return Mixture(MixtureStore(sources), manifest, sources, train_split, temperature)


def _splits(dataset: Dataset, config: SourceConfig, train_split: str) -> dict[str, str]:
    """Split of the mixture -> the source's own, which is there and has samples for training."""
    trained = config.split or train_split
    dataset.split(trained)
    others = [s for s in dataset.manifest.splits if s not in (trained, train_split)]
    return {train_split: trained, **{split: split for split in others}}


def _joined(sources: Sequence[Source], split: str) -> SplitInfo:
    shards = tuple(s.renamed(info) for s in sources for info in s.shards(split))
    return SplitInfo(samples=sum(info.samples for info in shards), shards=shards)
