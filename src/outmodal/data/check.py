"""Verifying a data set: every shard against the manifest, every member against its modality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from outmodal.data.check_sample import Expected
from outmodal.data.check_shard import Found, Problem, check_part, parts
from outmodal.data.manifest import MANIFEST, Dataset, ShardInfo
from outmodal.data.tasks import Progress, run_tasks

__all__ = ["CheckReport", "Problem", "ShardReport", "check_dataset", "make_report"]


@dataclass(frozen=True)
class ShardReport:
    """One line of the report.

    Attributes:
        file: File name.
        split: Split that it belongs to.
        samples: Whole samples that were read.
        bytes: What the manifest says.
        problems: How many there are.
    """

    file: str
    split: str
    samples: int
    bytes: int
    problems: int


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        problems: Everything that is wrong, in the manifest's order.
        shards: One entry a shard, in the manifest's order.
    """

    problems: tuple[Problem, ...]
    shards: tuple[ShardReport, ...]

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.problems

    @property
    def samples(self) -> int:
        """Whole samples that were read."""
        return sum(shard.samples for shard in self.shards)

    @property
    def kinds(self) -> dict[str, int]:
        """Problems of each kind, the most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())

    def as_json(self) -> dict[str, Any]:
        """The report in JSON values."""
        return {
            "ok": self.ok,
            "samples": self.samples,
            "kinds": self.kinds,
            "shards": [asdict(shard) for shard in self.shards],
            "problems": [{**asdict(problem), "text": str(problem)} for problem in self.problems],
        }


def check_dataset(
    dataset: Dataset, workers: int = 0, progress: Progress | None = None
) -> CheckReport:
    """Check sizes, sha256, counts, member names, labels, and that every member can be decoded.

    Args:
        dataset: Open it with `open_dataset(path, verify=False)`, so that missing shards are
            listed like everything else. Remote ones are read whole, twice where no cache holds
            them: for the checksum and for the members.
        workers: Processes; 0 works in this one.
        progress: Called with samples as the manifest counts them, after each part of a shard.

    The list is complete, and in the manifest's order, whatever the number of workers.
    """
    shards = all_shards(dataset)
    calls, owner = [], []
    for number, (_, shard) in enumerate(shards):
        place, expected = dataset.shard(shard), Expected.of(dataset, shard)
        for start, stop in parts(shard):
            calls.append((place, expected, shard, start, stop))
            owner.append(number)
    results: list[Found] = [Found((), 0)] * len(calls)
    total, done = sum(shard.samples for _, shard in shards), 0
    for position, result in run_tasks(check_part, calls, workers):
        shard, start, stop = calls[position][2:]
        results[position] = result if result is not None else _lost(shard)
        done += (shard.samples if stop is None else stop) - start
        if progress is not None:
            progress(done, total)
    found = [Found((), 0)] * len(shards)
    for number, result in zip(owner, results, strict=True):
        found[number] += result
    return make_report(dataset, found)


def all_shards(dataset: Dataset) -> list[tuple[str, ShardInfo]]:
    """Return (split, shard) of every shard in the manifest's order."""
    return [
        (name, shard) for name, split in dataset.manifest.splits.items() for shard in split.shards
    ]


def make_report(dataset: Dataset, found: list[Found]) -> CheckReport:
    """Compose the report from what was found in each of `all_shards`."""
    problems = [*_folder_problems(dataset)]
    lines = []
    for (split, shard), result in zip(all_shards(dataset), found, strict=True):
        listed = tuple(dict.fromkeys(result.problems))  # parts may say the same of the shard
        problems.extend(listed)
        lines.append(ShardReport(shard.file, split, result.samples, shard.bytes, len(listed)))
    return CheckReport(tuple(problems), tuple(lines))


def _lost(shard: ShardInfo) -> Found:
    detail = "not checked: a checking process died; check with fewer workers"
    return Found((Problem(shard.file, "not checked", detail),), 0)


def _folder_problems(dataset: Dataset) -> Iterator[Problem]:
    """Find empty splits and, in a folder of this machine, tars that nothing lists."""
    listed: set[str] = set()
    for name, split in dataset.manifest.splits.items():
        listed.update(shard.file for shard in split.shards)
        if not split.samples:
            yield Problem(MANIFEST, "empty split", f"split '{name}' is empty")
    folder = dataset.store.folder
    for path in sorted(folder.glob("*.tar")) if folder is not None else ():
        if path.name not in listed:
            detail = f"lies in the folder, but {MANIFEST} does not list it"
            yield Problem(path.name, "unlisted", detail)
