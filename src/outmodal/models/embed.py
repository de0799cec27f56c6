"""Running perceptors once over a data set, and keeping their features as a data set.

    OUT/train-000000.tar, ..., OUT/dataset.json    the features; the manifest is written last
    OUT/.embed/request.json                        what was asked for; it stays
    OUT/.embed/train-000000.tar.json               record of a finished shard, until the end

The same request gives the same bytes, whether one process made them or several, and whether they
ran through or were killed and repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from outmodal.data.claim import claimed, writing
from outmodal.data.manifest import (
    MANIFEST,
    Dataset,
    Manifest,
    Modality,
    ShardInfo,
    SplitInfo,
    open_dataset,
    write_manifest,
)
from outmodal.data.skips import SkipLedger, SkipRecord
from outmodal.errors import UserError, nearest
from outmodal.models.embed_common import CommonInputs
from outmodal.models.embed_record import (
    WORK,
    finish,
    kept_record,
    read_record,
)
from outmodal.models.embed_shard import Place, ShardMaker
from outmodal.models.perceptors import Perceptor

_WHAT = "the features"

DType = Literal["float32", "float16"]
Progress = Callable[[int, int], None]
"""Called with (samples done, samples in total) at the start and after every shard."""


class Team(Protocol):
    """The processes that make one data set of features together."""

    def main(self, act: Callable[[], Any]) -> Any:
        """Run `act` on one process; return its JSON-able result on all, when it is there."""
        ...

    def share(self, items: Sequence[int], act: Callable[[int], Any]) -> Iterator[list[Any]]:
        """Run `act` on each item on some process.

        Yields on all processes the JSON-able results of the next items, in order, as they come.
        """
        ...


class Alone:
    """A team of one process."""

    def main(self, act: Callable[[], Any]) -> Any:
        """See Team.main."""
        return act()

    def share(self, items: Sequence[int], act: Callable[[int], Any]) -> Iterator[list[Any]]:
        """See Team.share."""
        for item in items:
            yield [act(item)]


def embed_dataset(
    dataset: Dataset,
    perceptors: Sequence[Perceptor],
    keep: Sequence[str],
    out: Path,
    dtype: DType = "float32",
    batch: int = 256,
    progress: Progress | None = None,
    max_skips: int = 100,
    team: Team | None = None,
) -> Dataset:
    """Write the data set whose perceived modalities are vectors, or go on with one begun.

    Splits, shards, keys, classes, targets and json members stay as they are; modalities that
    are neither perceived nor kept are left out. A sample that lacks a modality lacks its vector.

    Args:
        dataset: The data set to read.
        perceptors: Frozen encoders, at most one a modality.
        keep: Modalities to pass through byte for byte.
        out: Folder; a finished data set of the same request is opened and returned.
        dtype: Type of the stored vectors, which have unit length.
        batch: Inputs encoded together.
        progress: Called at the start and after each shard.
        max_skips: Corrupt inputs to tolerate; each counts as a missing modality.
        team: The processes that share the work; all of them call this with equal arguments. None
            is this one alone.

    Raises:
        UserError: An unknown modality, a broken shard, too many corrupt inputs, an `out` that
            holds something else or cannot be written.
    """
    by_modality = _check_request(dataset, perceptors, keep, dtype, batch)
    team = team or Alone()
    maker = ShardMaker(dataset, by_modality, keep, out, np.dtype(dtype), batch)
    request = _request(dataset, by_modality, keep, dtype, batch)
    total = sum(split.samples for split in dataset.manifest.splits.values())
    report = progress or (lambda done, total: None)
    with writing(out, _WHAT), _claimed_by_one(team, out, request):
        if not team.main(lambda: (out / MANIFEST).exists()):
            work = _Work(maker, SkipLedger(max_skips, dataset.where), team)
            work.run(lambda done: report(done, total))
            team.main(lambda: _complete(work.shards(), maker))
        report(total, total)
    return open_dataset(out)


@contextmanager
def _claimed_by_one(team: Team, out: Path, request: Mapping[str, Any]) -> Iterator[None]:
    """Hold `out` on the team's main process while all of them work in it."""
    with ExitStack() as held:

        def take() -> None:
            held.enter_context(claimed(out, WORK, request))

        team.main(_naming(out, take))
        yield


def _naming(out: Path, act: Callable[..., Any]) -> Callable[..., Any]:
    """`act` with failures of the file system as UserErrors, which a team knows to pass on."""

    def run(*args: Any) -> Any:
        with writing(out, _WHAT):
            return act(*args)

    return run


def _check_request(
    dataset: Dataset,
    perceptors: Sequence[Perceptor],
    keep: Sequence[str],
    dtype: str,
    batch: int,
) -> dict[str, Perceptor]:
    """Return modality -> perceptor, or raise UserError."""
    by_modality: dict[str, Perceptor] = {}
    for perceptor in perceptors:
        name = perceptor.modality
        dataset.modality(name)
        if name in by_modality:
            raise UserError(f"two perceptors for modality '{name}': leave one of them out")
        if name in keep:
            raise UserError(
                f"modality '{name}' cannot be both embedded and kept: leave it out of keep"
            )
        by_modality[name] = perceptor
    for name in keep:
        dataset.modality(name)
    if not by_modality:
        raise UserError("no perceptor given: name at least one")
    if dtype not in ("float32", "float16"):
        raise UserError(f"dtype '{dtype}'{nearest(dtype, ['float32', 'float16'])}")
    if batch < 1:
        raise UserError(f"batch must be at least 1, got {batch}")
    return by_modality


def _request(
    dataset: Dataset,
    perceptors: Mapping[str, Perceptor],
    keep: Sequence[str],
    dtype: str,
    batch: int,
) -> dict[str, object]:
    """Everything that decides the bytes."""
    return {
        "dataset": dataset.fingerprint(),
        "perceptors": {m: p.identity for m, p in sorted(perceptors.items())},
        "precision": {m: p.precision for m, p in sorted(perceptors.items())},
        "inputs": {
            m: p.transform.config.model_dump(mode="json") for m, p in sorted(perceptors.items())
        },
        "keep": sorted(keep),
        "dtype": dtype,
        "batch": batch,
    }


def _manifest(
    dataset: Dataset,
    perceptors: Mapping[str, Perceptor],
    keep: Sequence[str],
    shards: Mapping[str, ShardInfo],
) -> Manifest:
    modalities: dict[str, Modality] = {}
    for name, spec in dataset.manifest.modalities.items():
        if name in perceptors:
            p = perceptors[name]
            modalities[name] = Modality(
                kind="vector", ext="npy", shape=(p.dim,), perceptor=p.identity
            )
        elif name in keep:
            modalities[name] = spec
    return dataset.manifest.model_copy(
        update={
            "modalities": modalities,
            "splits": {
                name: SplitInfo(
                    samples=split.samples,
                    shards=tuple(shards[s.file] for s in split.shards if s.samples),
                )
                for name, split in dataset.manifest.splits.items()
            },
        }
    )


def _complete(shards: Mapping[str, ShardInfo], maker: ShardMaker) -> None:
    """Write the manifest and clear away what was needed until now."""
    with writing(maker.out, _WHAT):
        kept = sorted(maker.passed)
        write_manifest(maker.out, _manifest(maker.dataset, maker.perceptors, kept, shards))
        finish(maker.out)


class _Work:
    """Everything between the claim and the manifest."""

    def __init__(self, maker: ShardMaker, ledger: SkipLedger, team: Team) -> None:
        self.maker, self.ledger, self.team = maker, ledger, team
        self.places = list(_places(maker.dataset))

    def run(self, report: Callable[[int], None]) -> None:
        """Make every shard that is not there yet."""
        missing = self.team.main(_naming(self.maker.out, self._missing))
        gone = set(missing)
        for number, place in enumerate(self.places):
            if number not in gone:
                self._count(read_record(self.maker.out, place.info.file).skips)
        done = sum(p.info.samples for n, p in enumerate(self.places) if n not in gone)
        report(done)
        known = self._common() if missing else {}

        def make(number: int) -> list[dict[str, Any]]:
            return list(self.maker.make(self.places[number], known, self.ledger).skips)

        made = iter(missing)
        for results in self.team.share(missing, _naming(self.maker.out, make)):
            for skips in results:
                self._count(skips)
                done += self.places[next(made)].info.samples
            report(done)

    def shards(self) -> dict[str, ShardInfo]:
        """Source's file name -> shard that was made of it."""
        files = [place.info.file for place in self.places]
        return {file: read_record(self.maker.out, file).shard for file in files}

    def _missing(self) -> list[int]:
        return [n for n, p in enumerate(self.places) if kept_record(self.maker.out, p.info) is None]

    def _common(self) -> dict[str, dict[str, bytes]]:
        """Encode what several shards hold."""
        common = CommonInputs(self.maker, self.places)
        self._all(range(len(self.places)), common.scan)
        self._all(common.assign(), common.encode)
        return common.table()

    def _all(self, items: Sequence[int], act: Callable[[int], Any]) -> None:
        for _ in self.team.share(items, _naming(self.maker.out, act)):
            pass

    def _count(self, skips: Sequence[Mapping[str, Any]]) -> None:
        self.ledger.extend(SkipRecord(**skip) for skip in skips)


def _places(dataset: Dataset) -> Iterator[Place]:
    for name, split in dataset.manifest.splits.items():
        first = 0
        for info in split.shards:
            if info.samples:
                yield Place(name, first, info)
            first += info.samples
