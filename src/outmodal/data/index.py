"""A manifest for tars that another tool wrote: `<key>.<modality>.<ext>`, `<key>.cls`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from re import compile as pattern

import numpy as np
from pydantic import ValidationError

from outmodal.data.decode import DecodeError, read_npy
from outmodal.data.describe import describe
from outmodal.data.labels import LABEL, parse_label
from outmodal.data.manifest import (
    MANIFEST,
    RESERVED,
    Kind,
    Manifest,
    Modality,
    ShardInfo,
    SplitInfo,
    read_manifest,
    write_manifest,
)
from outmodal.data.shard_index_file import label_array, write_index
from outmodal.data.shards import ShardDamage, read_shard, scan_shard
from outmodal.data.store_local import LocalShard
from outmodal.data.store_remote import SCHEMES
from outmodal.data.whole_shard import hash_shard
from outmodal.errors import UserError

EXTENSIONS: Mapping[str, Kind] = {
    **dict.fromkeys(("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "ppm", "pgm"), "image"),
    **dict.fromkeys(("mp4", "webm", "mkv", "avi", "mov", "gif"), "video"),
    **dict.fromkeys(("wav", "flac", "ogg", "opus", "mp3"), "audio"),
    "txt": "text",
}
"""File extension -> kind. Arrays (npy) are told apart by their axes."""

MOST_CLASSES = 1_000_000
"""Labels above this are refused when the number of classes is taken from the labels."""

ARRAY = "npy"

_KEPT = ("height", "width", "channels", "sample_rate")
_MEMBER = pattern(r"[a-z0-9][a-z0-9_-]*\.[a-z0-9]+")
_NUMBERED = pattern(r"(?P<split>.*?)[-_.]?(shard)?[-_.]?\d+([-_]of[-_]\d+)?")
_UNFIT = pattern(r"[^A-Za-z0-9_-]+")
_log = logging.getLogger(__name__)


def index_folder(
    root: Path,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Read every tar in `root`, write `root/dataset.json` and index files, and return the first.

    A split is a file's name without its number: train-000000.tar belongs to "train", and
    00000.tar too. What a manifest that lies there already says of the name, the classes and
    the modalities is kept. Without classes they are called by their numbers.

    Args:
        root: The folder.
        name: Name of the data set; the folder's by default.
        classes: Names of the classes, in the order of the labels.
        progress: Called with (tars done, tars in total) after every tar.

    Raises:
        UserError: Lists every tar that is damaged and every member that does not fit the form.
    """
    old = _old_manifest(root)
    survey = _Survey(tuple(classes) if classes is not None else old.classes if old else ())
    splits: dict[str, list[ShardInfo]] = {}
    paths = _tars(root)
    for done, path in enumerate(paths, 1):
        info = survey.shard(path)
        if info is not None:
            splits.setdefault(_split_name(path), []).append(info)
        if progress is not None:
            progress(done, len(paths))
    modalities = survey.modalities(old.modalities if old else {})
    if not survey.problems and not any(info.samples for held in splits.values() for info in held):
        survey.problems.append("none of the tars holds a sample")
    if survey.problems:
        raise UserError(f"{root}: cannot be indexed:\n" + "\n".join(survey.problems))
    manifest = Manifest(
        name=name or (old.name if old else root.resolve().name),
        classes=survey.classes or tuple(str(n) for n in range(survey.top_label + 1)),
        modalities=modalities,
        splits={
            split: SplitInfo(samples=sum(s.samples for s in shards), shards=tuple(shards))
            for split, shards in splits.items()
        },
    )
    write_manifest(root, manifest)
    return manifest


def _tars(root: Path) -> list[Path]:
    scheme = root.parts[0].removesuffix(":") if root.parts else ""
    if scheme in ("file", *SCHEMES):
        raise UserError(
            f"{root}: is an address; index the folder, then copy {MANIFEST} and the index files "
            "there with the shards"
        )
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder that holds the tars")
    paths = sorted(root.glob("*.tar"))
    if not paths:
        packed = sorted(p.name for p in root.iterdir() if ".tar." in p.name or p.suffix == ".tgz")
        hint = f"; unpack {packed[0]} to a plain .tar first" if packed else ""
        raise UserError(f"{root}: holds no .tar{hint}")
    return paths


def _old_manifest(root: Path) -> Manifest | None:
    """Return the manifest that is to be replaced, if there is one that can be read."""
    if not (root / MANIFEST).is_file():
        return None
    try:
        return read_manifest(root)
    except UserError as error:
        _log.warning("%s; nothing of it is kept", error)
        return None


def _split_name(path: Path) -> str:
    found = _NUMBERED.fullmatch(path.stem)
    return _UNFIT.sub("-", found["split"] if found else path.stem).strip("-") or "train"


@dataclass
class _Seen:
    """What the members of one modality have shown so far."""

    exts: Counter[str] = field(default_factory=Counter)
    facts: dict[str, Counter[float]] = field(default_factory=dict)
    arrays: set[tuple[tuple[int, ...], bool]] = field(default_factory=set)  # shape, pixels?
    first: dict[str, str] = field(default_factory=dict)  # extension or axes -> shard and key

    def places(self, kinds: Iterable[str]) -> str:
        """Say where each of these kinds of members was first seen."""
        return "; ".join(f"{kind} first in {self.first[kind]}" for kind in kinds)

    def only(self, fact: str) -> int | None:
        """Return the value of a fact that all members share."""
        values = self.facts.get(fact, Counter[float]())
        return int(next(iter(values))) if len(values) == 1 else None


class _Survey:
    """Reads shards, and gathers modalities, labels and everything that is wrong."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.top_label = -1
        self.problems: list[str] = []
        self._seen: dict[str, _Seen] = {}
        self._strange: set[str] = set()

    def shard(self, path: Path) -> ShardInfo | None:
        """Read one tar; None if it is unusable, which `problems` then explains."""
        known = len(self.problems)
        samples = 0
        try:
            damage = scan_shard(path).damage
            if damage and not len(scan_shard(path)):  # a tar of no samples is as good as any
                raise ShardDamage(path.name, damage, 0)
            labels: list[bytes | None] = []
            for _, key, members in read_shard(path):
                samples += 1
                labels.append(members.get(LABEL))
                self._sample(f"{path.name}: sample '{key}'", members)
            digest, size = hash_shard(LocalShard(path))
            info = ShardInfo(file=path.name, samples=samples, bytes=size, sha256=digest)
            if len(self.problems) == known:
                write_index(path.parent, scan_shard(path), digest, label_array(labels))
        except ShardDamage as error:
            self.problems.append(f"{error}; only plain, whole tars can be read")
        except ValidationError:
            self.problems.append(f"{path.name}: rename it: letters, digits, . _ and - only")
        except OSError as error:
            self.problems.append(f"{error.filename or path.name}: {error.strerror}")
        return info if len(self.problems) == known else None

    def _sample(self, where: str, members: Mapping[str, bytes]) -> None:
        for suffix, data in members.items():
            if suffix == LABEL:
                self._label(where, data)
            elif suffix.partition(".")[0] not in RESERVED:
                self._member(where, suffix, data)

    def _label(self, where: str, data: bytes) -> None:
        try:
            label = parse_label(data, len(self.classes) or MOST_CLASSES, where)
        except UserError as error:
            self.problems.append(str(error))
        else:
            self.top_label = max(self.top_label, label)

    def _member(self, where: str, suffix: str, data: bytes) -> None:
        name, _, ext = suffix.partition(".")
        if not _MEMBER.fullmatch(suffix) or (ext not in EXTENSIONS and ext != ARRAY):
            if suffix not in self._strange:  # the first of each form is enough
                self._strange.add(suffix)
                self.problems.append(
                    f"{where}: member '{suffix}' must be <modality>.<ext>, with ext one of "
                    f"{', '.join((*EXTENSIONS, ARRAY))}"
                )
            return
        seen = self._seen.setdefault(name, _Seen())
        seen.exts[ext] += 1
        seen.first.setdefault(f".{ext}", where)
        try:
            if ext == ARRAY:
                array = read_npy(data)
                seen.arrays.add((array.shape, array.dtype in (np.uint8, np.uint16)))
                seen.first.setdefault(f"{array.ndim} axes", where)
                return
            for fact, value in describe(EXTENSIONS[ext], ext, data).items():
                if fact in _KEPT:
                    seen.facts.setdefault(fact, Counter())[value] += 1
        except DecodeError as error:
            _log.warning("%s: %s: %s", where, suffix, error)  # left to the reader's budget

    def modalities(self, old: Mapping[str, Modality]) -> dict[str, Modality]:
        """Return what was seen, in alphabetic order; a fitting entry of `old` is kept."""
        found = {}
        for name, seen in sorted(self._seen.items()):
            ext = seen.exts.most_common(1)[0][0]
            if len(seen.exts) > 1:
                kinds = ", ".join(f"{count} .{e}" for e, count in seen.exts.most_common())
                places = seen.places(f".{e}" for e in seen.exts)
                self.problems.append(
                    f"modality '{name}' has members of several types: {kinds} ({places}); "
                    "one modality is one type of file in all shards: rename one of them"
                )
            elif name in old and old[name].ext == ext:
                found[name] = old[name]
            else:
                try:
                    found[name] = _array_spec(seen) if ext == ARRAY else _spec(ext, seen)
                except UserError as error:
                    self.problems.append(f"modality '{name}': {error}")
        return found


def _spec(ext: str, seen: _Seen) -> Modality:
    """Describe a modality of encoded members; what varies is left open."""
    kind = EXTENSIONS[ext]
    height, width = seen.only("height"), seen.only("width")
    channels = seen.facts.get("channels", Counter())
    rates = seen.facts.get("sample_rate", Counter())
    return Modality(
        kind=kind,
        ext=ext,
        # Grey pictures among colour ones are decoded to colour.
        channels=int(max(channels)) if channels else None,
        sample_rate=int(rates.most_common(1)[0][0]) if rates else None,
        size=(height, width) if height and width else None,
    )


def _array_spec(seen: _Seen) -> Modality:
    """Tell vectors, series and pictures apart, and find the axes whose lengths are fixed."""
    axes = {len(shape) for shape, _ in seen.arrays}
    pixels = all(is_pixels for _, is_pixels in seen.arrays)
    if len(axes) != 1 or not axes <= ({2, 3} if pixels else {1, 2}) | {1}:
        shown = ", ".join(str(list(shape)) for shape, _ in sorted(seen.arrays)[:3])
        raise UserError(
            f"arrays of shape {shown or 'none that can be read'} are neither vectors [dim], series "
            "[time, channels] nor pictures [height, width, channels] of uint8 or uint16 ("
            f"{seen.places(sorted(k for k in seen.first if k.endswith('axes')))})"
        )
    lengths = [sorted({shape[axis] for shape, _ in seen.arrays}) for axis in range(axes.pop())]
    fixed = [values[0] if len(values) == 1 else -1 for values in lengths]
    if len(fixed) == 1 or not pixels:
        if fixed[-1] == -1:
            raise UserError(f"its last axis must be the same everywhere, got {lengths[-1][:5]}")
        return Modality(
            kind="vector" if len(fixed) == 1 else "series", ext=ARRAY, shape=tuple(fixed)
        )
    height, width, channels = (*fixed, 1)[:3]
    return Modality(
        kind="image",
        ext=ARRAY,
        channels=channels if channels > 0 else None,
        size=(height, width) if height > 0 and width > 0 else None,
    )
