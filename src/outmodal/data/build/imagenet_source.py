"""What the builders of ImageNet and its evaluation sets share: shards, counts, and their report."""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from numpy.random import default_rng

from outmodal.data.build.common import Add, Facts, ShardJob
from outmodal.data.build.imagenet_captions import Captions
from outmodal.data.build.imagenet_picture import Recipe, Tally, joined
from outmodal.data.build.imagenet_tree import File
from outmodal.data.manifest import Modality
from outmodal.errors import UserError

REPORT = "build-report.json"
"""File beside the manifest that says what became of the source's pictures."""

IMAGE, TEXT = "image", "text"
_ORDER = 1  # first number of a generator's seed: what it is for
_SHOWN = 10
_log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One sample: where its picture is, and what else it holds."""

    file: str
    key: str
    label: int
    caption: str | None = None

    def members(self, ext: str, picture: bytes) -> dict[str, bytes]:
        """What is stored of it."""
        held = {f"{IMAGE}.{ext}": picture, "cls": b"%d" % self.label}
        if self.caption is not None:
            held[f"{TEXT}.txt"] = self.caption.encode()
        return held


@dataclass
class Notes:
    """What is to be said of a build beside its pictures.

    Attributes:
        warnings: Sentences.
        facts: More entries of the report.
    """

    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def expect(self, what: str, count: int, expected: int) -> None:
        """Warn where a count is not the published one."""
        if count != expected:
            self.warnings.append(f"{what}: {count:,}, and {expected:,} in the published set")


def digest_of(names: Sequence[str]) -> str:
    """The sha256 of names: a request that has changed is told without a thousand of them."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def shuffled(count: int, seed: int, position: int) -> Sequence[int]:
    """A seeded order of 0..count-1, another one for each split."""
    order: list[int] = default_rng([_ORDER, seed, position]).permutation(count).tolist()
    return order


class PictureSource(ABC):
    """Counts what the shards report; the jobs are a subclass's.

    Args:
        recipe: How pictures are stored.
        max_broken: Pictures that may be skipped.
        counts: Split -> pictures of the source.
        notes: What else the report says.
        captions: Where captions come from, None without any.
    """

    def __init__(
        self,
        recipe: Recipe,
        max_broken: int,
        counts: Mapping[str, int],
        notes: Notes,
        captions: Captions | None,
    ) -> None:
        self.recipe, self.max_broken, self.counts = recipe, max_broken, dict(counts)
        self.notes, self.captions = notes, captions
        self._broken: list[tuple[str, str]] = []

    @abstractmethod
    def job(self, split: str, start: int, stop: int) -> ShardJob:
        """Return the job for the samples [start, stop) of `split`."""

    def caption(self, key: str, file: str) -> str | None:
        """The caption of a sample, None without one."""
        return None if self.captions is None else self.captions.find(key, file)

    def modalities(self, facts: Sequence[Facts]) -> dict[str, Modality]:
        """Return what the samples hold."""
        held = {IMAGE: Modality(kind="image", ext=self.recipe.ext, channels=3)}
        if self.captions is not None:
            held[TEXT] = Modality(kind="text", ext="txt")
        return held

    def watch(self, facts: Facts) -> None:
        """Raise UserError as soon as more pictures are broken than may be."""
        self._broken += [(file, reason) for file, reason in facts[IMAGE]["skipped"]]
        if len(self._broken) <= self.max_broken:
            return
        listed = "".join(f"\n  {file}: {reason}" for file, reason in self._broken[:_SHOWN])
        more = len(self._broken) - _SHOWN
        raise UserError(
            f"{len(self._broken)} pictures cannot be decoded, and --max_broken lets "
            f"{self.max_broken} pass:{listed}" + (f"\n  and {more} more" if more > 0 else "") + "\n"
            "restore them; or raise --max_broken to leave them out, and run the same command "
            "again: finished shards are kept"
        )

    def beside(self, facts: Sequence[Facts]) -> dict[str, bytes]:
        """Return the report; its warnings are also logged."""
        tally = joined([fact[IMAGE] for fact in facts])
        notes = self.notes
        warnings = [*notes.warnings, *self._about_captions(tally)]
        if tally.skipped:
            some = f"{tally.skipped[0][0]}: {tally.skipped[0][1]}"
            warnings.append(f"pictures left out: {len(tally.skipped)} ({some}; see {REPORT})")
        for warning in warnings:
            _log.warning("%s", warning)
        content = {
            "pictures": self.counts,
            "done": dict(sorted(tally.done.items())),
            "skipped": [{"file": file, "reason": reason} for file, reason in tally.skipped],
            **({} if self.captions is None else {"captions": tally.captions}),
            **notes.facts,
            "warnings": warnings,
        }
        return {REPORT: f"{json.dumps(content, indent=1)}\n".encode()}

    def _about_captions(self, tally: Tally) -> list[str]:
        if self.captions is None:
            return []
        stored = sum(tally.done.values())
        if stored and not tally.captions:
            raise UserError(
                f"none of the {self.captions.lines:,} captions of --captions {self.captions.path} "
                "belongs to a picture of the source: its 'file' is the picture's path or name, "
                "its 'key' the sample's name in the shards"
            )
        missing = stored - tally.captions
        return [f"samples without a caption: {missing:,} of {stored:,}"] if missing else []


class TreeSource(PictureSource):
    """Hands each shard its files.

    Args:
        root: The source.
        files: Split -> its pictures in the order of their keys.
        seed: Decides the order of the samples.
        rest: As of `PictureSource`.
        alike: Whether all splits have one order: they hold the same pictures.
    """

    def __init__(
        self,
        root: Path,
        files: Mapping[str, Sequence[File]],
        seed: int,
        *rest: Any,
        alike: bool = False,
    ) -> None:
        super().__init__(*rest)
        self._root, self._files = root, files
        self._order = {
            split: shuffled(len(held), seed, 0 if alike else position)
            for position, (split, held) in enumerate(files.items())
        }

    def job(self, split: str, start: int, stop: int) -> TreeShard:
        """Return the job for the samples [start, stop) of `split`."""
        held = [self._files[split][i] for i in self._order[split][start:stop]]
        rows = [Row(f.path, f.key, f.label, self.caption(f.key, f.path)) for f in held]
        return TreeShard(self._root, tuple(rows), self.recipe)


@dataclass(frozen=True)
class TreeShard:
    """One shard: its rows, whose files lie under `root`."""

    root: Path
    rows: tuple[Row, ...]
    recipe: Recipe

    def write(self, add: Add) -> Facts:
        """Store the pictures that can be read, and count what was done for that."""
        tally = Tally()
        for row in self.rows:
            store(row, _read(self.root / row.file), tally, self.recipe, add)
        return {IMAGE: tally.to_json()}


def store(row: Row, data: bytes, tally: Tally, recipe: Recipe, add: Add) -> None:
    """Add a sample, unless its picture cannot be decoded; count either."""
    picture = tally.add(data, row.file, recipe)
    if picture is not None:
        tally.captions += row.caption is not None
        add(row.key, row.members(recipe.ext, picture))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
