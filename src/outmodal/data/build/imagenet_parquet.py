"""ImageNet from Parquet files, in the form in which the `datasets` library exports pictures.

    train-00000-of-00294.parquet     columns image {bytes, path} and label; names of the classes,
    validation-00000-of-00014.parquet    if they are there, in the schema's metadata

A row group can only be read whole, so a shard is made of whole row groups, in a seeded order, with
their rows mixed. Where the rows lie sorted by class, it takes a part of several times as many.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray

from outmodal.data.build.common import Add, BuildPlan, Facts
from outmodal.data.build.imagenet import CLASSES, PICTURES, ImagenetConfig, plan_of
from outmodal.data.build.imagenet_captions import Captions
from outmodal.data.build.imagenet_names import distinct, read_plain_names, wnid_in
from outmodal.data.build.imagenet_picture import Recipe, Tally
from outmodal.data.build.imagenet_source import IMAGE, Notes, PictureSource, Row, store
from outmodal.data.build.imagenet_tree import Scan, key_of, ordered
from outmodal.errors import UserError

_SPLITS = {"train": "train", "validation": "val", "val": "val", "valid": "val"}
_NAMED = re.compile(r"[a-z]+")
_PIECES, _ROWS = 2, 3  # first number of a generator's seed: what it is for
_SORTED_PARTS = 8
_BATCH = 64  # rows decompressed together
_NO_LABEL = -1
INSTALL = "pip install 'outmodal[parquet]'"


@dataclass(frozen=True)
class Group:
    """A row group: where it is, and the numbers of its file's and its own first row in a split."""

    file: int
    group: int
    begin: int
    first: int
    rows: int


@dataclass
class Split:
    """What the files of a split hold.

    Attributes:
        files: Its files.
        groups: Their row groups, in order.
        labels: [rows] classes.
        paths: [rows] names of the pictures' files, "" where they have none.
    """

    files: list[Path] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


def plan_parquet(cfg: ImagenetConfig, files: Sequence[Path]) -> BuildPlan:
    """Read labels and names from the files, and plan the shards.

    Raises:
        UserError: pyarrow is not installed, a file is damaged or lacks a column, or nothing names
            the classes.
    """
    splits, notes = _splits(cfg, files), Notes()
    names = _names_in(files[0], cfg)
    if "train" not in splits:
        raise UserError(
            f"--source {cfg.source}: no file train*.parquet among {len(files)} (the first is "
            f"{files[0].name}): name the files of the training split so"
        )
    classes, wnids = _classes(cfg, names, splits["train"])
    for split, held in splits.items():
        _check_labels(held, len(classes), split)
    notes.expect("classes", len(classes), CLASSES)
    for split, expected in PICTURES.items():
        rows = len(splits[split].labels) if split in splits else 0
        notes.expect(f"pictures in {split}", rows, expected)
    captions = Captions(cfg.captions) if cfg.captions else None
    source = ParquetSource(cfg, splits, notes, captions)
    return plan_of(cfg, source, classes, wnids, _digest(splits))


class ParquetSource(PictureSource):
    """Hands each shard rows of few row groups."""

    def __init__(
        self, cfg: ImagenetConfig, splits: dict[str, Split], notes: Notes, captions: Captions | None
    ) -> None:
        counts = {split: len(held.labels) for split, held in splits.items()}
        super().__init__(cfg.recipe, cfg.max_broken, counts, notes, captions)
        self._splits, self._cfg, self._scan = splits, cfg, Scan()
        self._order = {s: _order(held, cfg.seed, i) for i, (s, held) in enumerate(splits.items())}
        self._keys = {split: self._keys_of(split, held) for split, held in splits.items()}
        notes.facts |= {"renamed": self._scan.renamed}

    def job(self, split: str, start: int, stop: int) -> ParquetShard:
        """Return the job for the samples [start, stop) of `split`."""
        held, keys = self._splits[split], self._keys[split]
        position = list(self._splits).index(split)
        mixing = default_rng([_ROWS, self._cfg.seed, position, start])
        chosen = mixing.permutation(self._order[split][start:stop])
        firsts = np.array([group.first for group in held.groups])
        wanted: dict[int, list[tuple[int, int]]] = {}
        rows = []
        for place, row in enumerate(chosen.tolist()):
            at = int(np.searchsorted(firsts, row, side="right")) - 1
            wanted.setdefault(at, []).append((row - held.groups[at].first, place))
            key, path = keys[row], held.paths[row]
            group = held.groups[at]
            name = f"{held.files[group.file].name}, row {row - group.begin} ({path})"
            rows.append(Row(name, key, held.labels[row], self.caption(key, path)))
        reads = tuple(
            (held.files[held.groups[at].file], held.groups[at].group, tuple(sorted(places)))
            for at, places in sorted(wanted.items())
        )
        return ParquetShard(reads, tuple(rows), self._cfg.image_column, self.recipe)

    def _keys_of(self, split: str, held: Split) -> list[str]:
        """The keys of all rows: the names of their files, or their numbers."""
        named = (
            (f"{n:09d}", 0, 0, key_of("", path) if path else f"{split}_{n:08d}")
            for n, path in enumerate(held.paths)
        )
        keys = [""] * len(held.paths)
        for file in ordered(named, self._scan):
            keys[int(file.path)] = file.key
        return keys


@dataclass(frozen=True)
class ParquetShard:
    """One shard.

    Attributes:
        reads: (file, row group, (row in it, place in the shard) ...).
        rows: The samples in their order.
        column: Of the pictures.
        recipe: How pictures are stored.
    """

    reads: tuple[tuple[Path, int, tuple[tuple[int, int], ...]], ...]
    rows: tuple[Row, ...]
    column: str
    recipe: Recipe

    def write(self, add: Add) -> Facts:
        """Store the pictures that can be read, and count what was done for that."""
        pictures = [b""] * len(self.rows)
        for path, group, wanted in self.reads:
            places = dict(wanted)
            for at, data in enumerate(_pictures(path, group, self.column)):
                if at in places:
                    pictures[places[at]] = data
        tally = Tally()
        for row, data in zip(self.rows, pictures, strict=True):
            store(row, data, tally, self.recipe, add)
        return {IMAGE: tally.to_json()}


def _pictures(path: Path, group: int, column: str) -> Iterator[bytes]:
    """The pictures of a row group in order, few in memory at a time."""
    with _reading(path) as file:
        batches = file.iter_batches(batch_size=_BATCH, row_groups=[group], columns=[column])
        for batch in batches:
            for value in batch.column(0):
                held = value.as_py()
                held = held.get("bytes") if isinstance(held, dict) else held
                yield held if isinstance(held, bytes) else b""


class _reading:
    """Opens a Parquet file; what its reader raises inside becomes a UserError."""

    def __init__(self, path: Path) -> None:
        self._path, self._parquet = path, _library()
        self._errors = (importlib.import_module("pyarrow").ArrowException, OSError, KeyError)

    def __enter__(self) -> Any:
        try:
            self._file = self._parquet.ParquetFile(self._path)
        except self._errors as error:
            raise self._damaged(error) from None
        return self._file

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        self._file.close()
        if isinstance(error, self._errors):
            raise self._damaged(error) from None

    def _damaged(self, error: BaseException) -> UserError:
        return UserError(f"{self._path} is not a readable Parquet file ({error}): copy it again")


def _library() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(
            f"Parquet files are read with pyarrow, which is not installed: {INSTALL}"
        ) from None


def _splits(cfg: ImagenetConfig, files: Sequence[Path]) -> dict[str, Split]:
    """The splits that the files' names say, train first; files of a test split are left out."""
    found: dict[str, Split] = {}
    for path in files:
        word = _NAMED.match(path.name.lower())
        split = _SPLITS.get(word[0] if word else "") or _SPLITS.get(path.parent.name.lower())
        if split is not None:
            _take(found.setdefault(split, Split()), path, cfg)
    return {split: found[split] for split in ("train", "val") if split in found}


def _take(held: Split, path: Path, cfg: ImagenetConfig) -> None:
    """Add the rows of a file to a split."""
    with _reading(path) as file:
        for column in (cfg.image_column, cfg.label_column):
            if column not in file.schema_arrow.names:
                raise UserError(
                    f"{path} has no column '{column}' (it has {', '.join(file.schema_arrow.names)}"
                    "): name the columns with --image_column and --label_column"
                )
        inner = getattr(file.schema_arrow.field(cfg.image_column).type, "names", None) or []
        leaf = [f"{cfg.image_column}.path"] if "path" in inner else []
        table = file.read(columns=[cfg.label_column, *leaf])
        labels = table.column(cfg.label_column).to_pylist()
        paths = table.column(cfg.image_column).to_pylist() if leaf else [None] * len(labels)
        begin, at = len(held.labels), len(held.files)
        first = begin
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            held.groups.append(Group(at, group, begin, first, rows))
            first += rows
    held.files.append(path)
    held.labels += [_NO_LABEL if label is None else label for label in labels]
    held.paths += [(p or {}).get("path") or "" for p in paths]


def _names_in(path: Path, cfg: ImagenetConfig) -> tuple[str, ...]:
    """The names of the classes in a file's metadata, () where there are none."""
    with _reading(path) as file:
        held = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        found = json.loads(held)["info"]["features"][cfg.label_column]["names"]
    except (ValueError, KeyError, TypeError):
        return ()
    return tuple(str(name) for name in found) if isinstance(found, list) else ()


def _classes(
    cfg: ImagenetConfig, names: tuple[str, ...], train: Split
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Names of the classes and their WordNet ids, where names of files tell these."""
    wnids = _wnids(train)
    if cfg.names is not None:
        names, given = read_plain_names(cfg.names)
        if given is not None and wnids is not None and given[: len(wnids)] != wnids:
            at = next(
                i for i, pair in enumerate(zip(given, wnids, strict=False)) if len({*pair}) > 1
            )
            raise UserError(
                f"--names {cfg.names}: class {at} is {given[at]}, and pictures of label {at} are "
                f"called {wnids[at]}: give the names in the order of the labels"
            )
        wnids = given or wnids
    names = names or wnids or ()
    if not names:
        raise UserError(
            f"nothing names the classes of {cfg.source}: its files have no names in their "
            "metadata, and its pictures no WordNet ids; give one name a line with --names"
        )
    if wnids is not None and len(wnids) == len(names):
        return distinct(wnids, names), wnids
    return names, None


def _wnids(train: Split) -> tuple[str, ...] | None:
    """The WordNet id in the names of the pictures of each label; None unless all agree."""
    found: dict[int, set[str | None]] = {}
    for label, path in zip(train.labels, train.paths, strict=True):
        found.setdefault(label, set()).add(wnid_in(path))
    ids = [found.get(label, {None}) for label in range(len(found))]
    if any(len(held) != 1 or None in held for held in ids):
        return None
    wnids = tuple(str(next(iter(held))) for held in ids)
    return wnids if len(set(wnids)) == len(wnids) else None


def _check_labels(held: Split, classes: int, split: str) -> None:
    for row, label in enumerate(held.labels):
        if not 0 <= label < classes:
            at = next(g for g in reversed(held.groups) if g.first <= row)
            raise UserError(
                f"{held.files[at.file]}: label {label} of '{held.paths[row]}' ({split}) is none of "
                f"the {classes} classes: name all of them with --names, or mend the export"
            )


def _order(held: Split, seed: int, position: int) -> NDArray[np.int64]:
    """The rows of a split, those of one piece of a row group together, pieces in seeded order."""
    labels = np.array(held.labels)
    spans = [labels[g.first : g.first + g.rows] for g in held.groups]
    mixed = sum(len(np.unique(s)) * 4 > min(len(s), len(np.unique(labels))) for s in spans)
    parts = 1 if mixed * 2 > len(spans) else _SORTED_PARTS
    rng = default_rng([_PIECES, seed, position])
    pieces = [
        piece
        for g in held.groups
        for piece in np.array_split(g.first + rng.permutation(g.rows), parts)
        if len(piece)
    ]
    return np.concatenate([pieces[i] for i in rng.permutation(len(pieces))])


def _digest(splits: dict[str, Split]) -> str:
    whole = hashlib.sha256()
    for split, held in splits.items():
        files = [[path.name, path.stat().st_size] for path in held.files]
        whole.update(json.dumps([split, files, held.labels, held.paths]).encode())
    return whole.hexdigest()
