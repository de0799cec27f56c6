"""The ledger of samples that cannot be read: counted, reported, and limited by a budget."""

from __future__ import annotations

import logging
from collections.abc import Iterable
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
    """

    split: str
    shard: str
    index: int
    key: str
    reason: str

    def __str__(self) -> str:
        name = self.key or f"sample {self.index} of '{self.split}'"
        return f"{self.shard} {name} ({self.reason})"


class SkipLedger:
    """Counts each corrupt sample once and raises UserError beyond a budget.

    The budget holds for what this process knows: its own samples and those of its loader
    workers. Over several ranks the run's total is the sum of the ranks' counts.

    Args:
        budget: Corrupt samples to tolerate.
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

    @property
    def count(self) -> int:
        """Corrupt samples so far."""
        return len(self._records)

    def add(self, record: SkipRecord) -> None:
        """Count a sample, unless it was counted before. UserError beyond the budget."""
        if (record.split, record.index) in self._records:
            return
        self._records[(record.split, record.index)] = record
        if self._enforce:
            self._log(record)
            if self.count > self.budget:
                raise UserError(self.summary())

    def extend(self, records: Iterable[SkipRecord]) -> None:
        """Add the records of a loader worker."""
        for record in records:
            self.add(record)

    def drain(self) -> list[SkipRecord]:
        """Return the records that came since the last call."""
        new = list(self._records.values())[self._drained :]
        self._drained = self.count
        return new

    def report(self) -> list[dict[str, str | int]]:
        """Return every record as a JSON object, in the order of discovery."""
        return [asdict(record) for record in self._records.values()]

    def summary(self) -> str:
        """Return one message that names the first corrupt samples and the remedy."""
        first = "; ".join(str(r) for r in list(self._records.values())[:NAMED])
        rest = f"; and {self.count - NAMED} more" if self.count > NAMED else ""
        return (
            f"{self.count} corrupt samples, and data.max_skips={self.budget}: {first}{rest}. "
            f"Run `outmodal data check {self.source}` to find all of them, "
            "mend the data set, or raise data.max_skips"
        )

    def _log(self, record: SkipRecord) -> None:
        """Log the first records one by one, later ones at powers of two."""
        if self.count <= NAMED:
            log.warning("skipped a corrupt sample (%d so far): %s", self.count, record)
        elif self.count & (self.count - 1) == 0:
            log.warning("skipped %d corrupt samples so far, now %s", self.count, record)
