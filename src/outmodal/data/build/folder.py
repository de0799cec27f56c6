"""A data set from files that lie in folders, or that a CSV file names.

Bytes are copied as they are. Every file is decoded once on the way, as training will decode it:
so the build knows sizes and sample rates, and names the files that are broken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from numpy.random import default_rng
from pydantic import Field, model_validator

from outmodal.base import Config
from outmodal.data.build.common import Add, BuildPlan, Facts, Progress, build_dataset
from outmodal.data.build.folder_kinds import Seen, describe, guess_modalities, merge_seen
from outmodal.data.build.folder_rows import Problems, Row, listed
from outmodal.data.build.folder_table import Columns, read_table
from outmodal.data.build.folder_tree import read_tree
from outmodal.data.manifest import Dataset, Kind, Modality
from outmodal.errors import UserError, nearest

_SPLIT_ORDER = {"train": 0, "val": 1, "test": 2}
_SPLITTING, _ORDER = 1, 2  # first number of a generator's seed: what it is for
_SHARDS, _LARGEST_SHARD = 32, 1000
_FEWEST_CLASSES = 2


class FolderConfig(Config):
    """Where the files are and how they become samples.

    Attributes:
        source: A folder (see `folder_tree` for its form) or a .csv file (see `folder_table`).
        name: Name of the data set; the source's own if it is empty.
        seed: Decides the splits and the order of the samples.
        samples_per_shard: 0 gives at least 32 shards where that is possible, of at most 1,000.
        val_fraction, test_fraction: Shares of each class, for a source without splits; samples
            without a class go to train.
        classes: Class names in the order of their numbers; if empty, the names in the source
            in alphabetical order, or 0, 1, ... if all labels are numbers.
        kinds: Modality -> kind, where the extension does not say it.
        max_broken: Broken files to let pass; training skips them.
        root: Folder that the paths in a CSV file are relative to; its own if None.
        label_column, split_column, key_column: Columns of a CSV file.
        columns: Its modality columns; all others if empty.
        literal_text: Modality columns whose cells hold the text itself; a cell that is the path
            of a file is still read as that file.
    """

    source: Path
    name: str = ""
    seed: int = Field(default=0, ge=0)
    samples_per_shard: int = Field(default=0, ge=0)
    val_fraction: float = Field(default=0.0, ge=0, lt=1)
    test_fraction: float = Field(default=0.2, ge=0, lt=1)
    classes: tuple[str, ...] = ()
    kinds: dict[str, Kind] = Field(default_factory=dict)
    max_broken: int = Field(default=0, ge=0)
    root: Path | None = None
    label_column: str = "label"
    split_column: str = "split"
    key_column: str = "key"
    columns: tuple[str, ...] = ()
    literal_text: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _leaves_training_data(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction and test_fraction must leave something for train")
        return self


def build_folder(
    cfg: FolderConfig, out: Path, workers: int = 0, progress: Progress | None = None
) -> Dataset:
    """Build a data set from files in `out`; see `build_dataset` for resuming and errors.

    Raises UserError that lists what is wrong with the source.
    """
    _refuse_nesting(cfg.source, out)
    return build_dataset(plan_folder(cfg), out, workers, progress)


def plan_folder(cfg: FolderConfig) -> BuildPlan:
    """Scan the source and plan its shards; UserError that lists what is wrong with it."""
    problems = Problems(cfg.source)
    rows = _read(cfg, problems)
    specs = guess_modalities(rows, cfg.kinds, problems)
    classes, labels = number_labels(rows, cfg.classes, problems)
    problems.check()
    splits = split_rows(rows, labels, cfg)
    name = cfg.name or cfg.source.resolve().stem
    return BuildPlan(
        name=name,
        classes=classes,
        splits={split: len(members) for split, members in splits.items()},
        samples_per_shard=cfg.samples_per_shard or _shard_size(splits),
        request={
            "source": "folder",
            **cfg.model_dump(mode="json", exclude={"source", "root", "max_broken"}),
            "name": name,
            "files_sha256": _digest(rows),
        },
        source=FolderSource(rows, labels, splits, specs, cfg.max_broken),
    )


def _refuse_nesting(source: Path, out: Path) -> None:
    """The shards would be taken for a class the next time."""
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} lies inside the source {source}; choose a folder outside of it")


def _read(cfg: FolderConfig, problems: Problems) -> list[Row]:
    if cfg.source.is_dir():
        rows = read_tree(cfg.source, problems)
    elif cfg.source.suffix.lower() == ".csv":
        columns = Columns(
            label=cfg.label_column,
            split=cfg.split_column,
            key=cfg.key_column,
            modalities=cfg.columns,
            literal_text=cfg.literal_text,
        )
        rows = read_table(cfg.source, cfg.root or cfg.source.parent, columns, problems)
    else:
        raise UserError(f"source {cfg.source}: expected an existing folder, or a .csv file")
    if not rows:
        problems.add("no samples found; expected a folder a class with files in it, or a CSV file")
        problems.check()
    return rows


def number_labels(
    rows: Sequence[Row], chosen: tuple[str, ...], problems: Problems
) -> tuple[tuple[str, ...], list[int | None]]:
    """Return the class names, and for each row the number of its class, None without one."""
    present = {row.label for row in rows if row.label}
    numeric = all(label.isascii() and label.isdigit() for label in present)
    names = chosen or _default_classes(present, numeric, problems)
    numbers = {name: number for number, name in enumerate(names)}
    if numeric and not present <= numbers.keys():
        numbers = {label: int(label) for label in present if int(label) < len(names)}
    places: dict[str, list[str]] = {}
    for row in rows:
        if row.label and row.label not in numbers:
            places.setdefault(row.label, []).append(row.place)
    for label, where in places.items():
        more = f" and {len(where) - 1} more" if len(where) > 1 else ""
        problems.add(f"{where[0]}{more}: unknown label '{label}'{nearest(label, names)}")
    if len(present) < _FEWEST_CLASSES:
        problems.add(f"{len(present)} classes ({', '.join(present)}); expected at least two")
    return names, [numbers.get(row.label) for row in rows]


def _default_classes(present: set[str], numeric: bool, problems: Problems) -> tuple[str, ...]:
    if not numeric:
        return tuple(sorted(present))
    numbers = {int(label) for label in present}
    count = max(numbers, default=-1) + 1
    if count > len(numbers):
        missing = next(n for n in range(count) if n not in numbers)
        problems.add(
            f"labels go up to {count - 1}, and no row has {missing}; "
            "number the classes from 0, or name all of them in `classes`"
        )
        return tuple(str(n) for n in sorted(numbers))
    return tuple(str(n) for n in range(count))


def split_rows(
    rows: Sequence[Row], labels: Sequence[int | None], cfg: FolderConfig
) -> dict[str, list[int]]:
    """Return split -> row numbers in a seeded order; splits are drawn if the rows name none."""
    if any(row.split for row in rows):
        names = [row.split for row in rows]
    else:
        names = _draw_splits(labels, cfg)
    ordered = sorted(set(names), key=lambda name: (_SPLIT_ORDER.get(name, 3), name))
    splits = {}
    for position, split in enumerate(ordered):
        members = [row for row, name in enumerate(names) if name == split]
        shuffled = default_rng([_ORDER, cfg.seed, position]).permutation(len(members))
        splits[split] = [members[i] for i in shuffled]
    return splits


def _draw_splits(labels: Sequence[int | None], cfg: FolderConfig) -> list[str]:
    """Draw test and val from every class. Samples without a class go to train.

    A class has at least one sample in train, then in test, then in val, as far as they reach.
    """
    names = ["train"] * len(labels)
    members_of: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        if label is not None:
            members_of.setdefault(label, []).append(row)
    for label, members in sorted(members_of.items()):
        order = default_rng([_SPLITTING, cfg.seed, label]).permutation(len(members))
        test, val = _sizes(len(members), cfg)
        for rank, position in enumerate(order):
            if rank < test + val:
                names[members[position]] = "test" if rank < test else "val"
    for split, fraction in (("test", cfg.test_fraction), ("val", cfg.val_fraction)):
        if fraction and split not in names:
            raise UserError(
                f"{cfg.source}: too few samples a class for a {split} split; "
                f"add samples, or set {split}_fraction to 0"
            )
    return names


def _sizes(samples: int, cfg: FolderConfig) -> tuple[int, int]:
    """Return how many of a class's samples go to test and to val."""
    test = val = 0
    if cfg.test_fraction:
        for_others = 2 if cfg.val_fraction and samples > 2 else 1
        test = min(max(1, round(cfg.test_fraction * samples)), samples - for_others)
    if cfg.val_fraction:
        val = min(max(1, round(cfg.val_fraction * samples)), samples - test - 1)
    return test, val


def _shard_size(splits: Mapping[str, Sequence[int]]) -> int:
    largest = max(len(members) for members in splits.values())
    return min(_LARGEST_SHARD, max(1, largest // _SHARDS))


def _digest(rows: Sequence[Row]) -> str:
    """Return the sha256 of the rows with each file's size and time of change."""
    digest = hashlib.sha256()
    for row in rows:
        files = {}
        for name, path in sorted(row.files.items()):
            try:
                status = path.stat()
            except OSError as error:
                raise UserError(f"{row.place}: {path} cannot be read: {error.strerror}") from None
            files[name] = [path.name, status.st_size, status.st_mtime_ns]
        content = [row.key, row.label, row.split, files, dict(row.texts)]
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()


class FolderSource:
    """The source: hands each shard its rows, and joins what the shards saw in the files."""

    def __init__(
        self,
        rows: Sequence[Row],
        labels: Sequence[int | None],
        splits: Mapping[str, Sequence[int]],
        specs: Mapping[str, Modality],
        max_broken: int,
    ) -> None:
        self.rows, self.labels, self.splits = rows, labels, splits
        self.specs, self.max_broken = specs, max_broken

    def job(self, split: str, start: int, stop: int) -> FolderShard:
        """Return the job for the samples [start, stop) of `split`."""
        chosen = self.splits[split][start:stop]
        return FolderShard(tuple((self.rows[i], self.labels[i]) for i in chosen), dict(self.specs))

    def modalities(self, facts: Sequence[Facts]) -> dict[str, Modality]:
        """Return the modalities; UserError if more files are broken than may be."""
        seen = merge_seen(facts)
        broken = [problem for part in seen.values() for problem in part.broken]
        if len(broken) > self.max_broken:
            raise UserError(
                f"{len(broken)} of the files cannot be decoded, {self.max_broken} may be "
                f"(max_broken): {listed(broken)}\nrepair or remove them, or let them pass with "
                "max_broken: training skips them"
            )
        return describe(self.specs, seen)


@dataclass(frozen=True)
class FolderShard:
    """One shard: its rows with the number of their class."""

    rows: tuple[tuple[Row, int | None], ...]
    specs: dict[str, Modality]

    def write(self, add: Add) -> Facts:
        """Copy the files into the shard, and return what they are like."""
        seen = {name: Seen() for name in self.specs}
        for row, label in self.rows:
            members: dict[str, bytes] = {}
            for name, data, source in _contents(row):
                seen[name].look(self.specs[name], data, source)
                members[f"{name}.{self.specs[name].ext}"] = data
            if label is not None:
                members["cls"] = str(label).encode()
            add(row.key, members)
        return {name: part.to_json() for name, part in seen.items()}


def _contents(row: Row) -> list[tuple[str, bytes, str]]:
    """Return (modality, bytes, where they are from) of every member of a row."""
    found: list[tuple[str, bytes, str]] = []
    for name, path in row.files.items():
        try:
            found.append((name, path.read_bytes(), str(path)))
        except OSError as error:
            raise UserError(f"{row.place}: {path} cannot be read: {error.strerror}") from None
    for name, text in row.texts.items():
        found.append((name, text.encode(), f"{row.place}, {name}"))
    return found
