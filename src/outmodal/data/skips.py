"""The ledger of samples that cannot be read: counted, reported, and limited by a budget."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from outmodal.errors import UserError

log = logging.getLogger(__name__)

NAMED = 10
"""Corrupt samples that a message names."""


@dataclass(frozen=True)
class SkipRecord:
    """One sample that could not be read.

    Attributes:
        split: Split of the data set.
        shard: File name of its shard.
        index: Position in the split.
        key: Key in the shard, "" where damage hides it.
        reason: What is wrong with it.
        source: Which data set of a mixture it belongs to; "" where there is one only.
    """

    split: str
    shard: str
    index: int
    key: str
    reason: str
    source: str = ""

    def __str__(self) -> str:
        name = self.key or f"sample {self.index} of '{self.split}'"
        place = f"{self.source}: " if self.source else ""
        return f"{place}{self.shard} {name} ({self.reason})"


def united(reports: Iterable[Sequence[Mapping[str, str | int]]]) -> list[SkipRecord]:
    """Return the records of several ranks' reports, each sample once, by source and place."""
    found = {
        (str(r["source"]), str(r["split"]), int(r["index"])): SkipRecord(
            str(r["split"]),
            str(r["shard"]),
            int(r["index"]),
            str(r["key"]),
            str(r["reason"]),
            str(r["source"]),
        )
        for report in reports
        for r in report
    }
    return [found[place] for place in sorted(found)]


def per_source(records: Iterable[SkipRecord]) -> dict[str, int]:
    """Return source -> number of its records."""
    return dict(Counter(record.source for record in records))


class SkipLedger:
    """Counts each corrupt sample once and raises UserError beyond a budget. Safe for threads.

    Each data set of a mixture has the budget of its own, so that a bad one does not hide behind a
    large good one. The budget holds for what this process knows: its own samples and those of its
    loader workers. Ranks that meet the same sample count it each; `united` does not.

    Args:
        budget: Corrupt samples to tolerate in each source.
        source: The data set as `outmodal data check` takes it, for the message.
        enforce: False collects only, silently: in a loader worker, whose records the main
            process adds to its own ledger.
    """

    def __init__(self, budget: int, source: str = "DATASET", *, enforce: bool = True) -> None:
        self.budget = budget
        self.source = source
        self._enforce = enforce
        self._records: dict[tuple[str, int], SkipRecord] = {}
        self._drained = 0
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Corrupt samples so far."""
        return len(self._records)

    def add(self, record: SkipRecord) -> None:
        """Count a sample, unless it was counted before. UserError beyond the budget."""
        with self._lock:
            if (record.split, record.index) in self._records:
                return
            self._records[(record.split, record.index)] = record
            self._counts[record.source] += 1
            beyond = self._counts[record.source] > self.budget
        if self._enforce:
            self._log(record)
            if beyond:
                raise UserError(self.summary(record.source))

    def extend(self, records: Iterable[SkipRecord]) -> None:
        """Add the records of a loader worker."""
        for record in records:
            self.add(record)

    def drain(self) -> list[SkipRecord]:
        """Return the records that came since the last call."""
        with self._lock:
            new = list(self._records.values())[self._drained :]
            self._drained += len(new)
        return new

    def report(self) -> list[dict[str, str | int]]:
        """Return every record as a JSON object, in the order of discovery."""
        with self._lock:
            return [asdict(record) for record in self._records.values()]

    def summary(self, source: str = "") -> str:
        """Return one message that names the first corrupt samples of a source and the remedy."""
        with self._lock:
            records = [r for r in self._records.values() if r.source == source]
        first = "; ".join(str(r) for r in records[:NAMED])
        rest = f"; and {len(records) - NAMED} more" if len(records) > NAMED else ""
        return (
            f"{len(records)} corrupt samples, and data.max_skips={self.budget}: {first}{rest}. "
            f"Run `outmodal data check {source or self.source}` to find all of them, "
            "mend the data set, or raise data.max_skips"
        )

    def _log(self, record: SkipRecord) -> None:
        """Log the first records one by one, later ones at powers of two."""
        if self.count <= NAMED:
            log.warning("skipped a corrupt sample (%d so far): %s", self.count, record)
        elif self.count & (self.count - 1) == 0:
            log.warning("skipped %d corrupt samples so far, now %s", self.count, record)
