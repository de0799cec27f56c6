"""The data set on disk: its manifest `dataset.json`, and opening one.

    DATASET/dataset.json
    DATASET/train-000000.tar, train-000001.tar, ..., test-000000.tar

The manifest names the classes, the modalities and, for each split, every shard with its number
of samples, bytes and sha256. Its layout does not change without a new `format` number.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from outmodal.base import Config
from outmodal.data.cache import write_atomic
from outmodal.data.store import ShardPlace, Store
from outmodal.data.store_config import RemoteConfig
from outmodal.data.store_local import LocalStore
from outmodal.data.store_remote import is_address, store_at
from outmodal.errors import UserError, nearest

MANIFEST = "dataset.json"
FORMAT = 1
EMBEDDED = "fashion-speech-sample"
"""The name that opens the data set shipped inside the package."""

RESERVED = ("cls", "target", "json")
"""Members that are not modalities: class, regression target, anything else."""

Kind = Literal["image", "video", "audio", "text", "series", "vector"]
Extension = Annotated[str, Field(pattern=r"^[a-z0-9]+$")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]

# webdataset lower-cases everything after a key's dot, so names in capitals would never match.
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tar")


class Modality(Config):
    """What the members `<key>.<modality>.<ext>` hold.

    Attributes:
        kind: Chooses the decoder.
        ext: File extension, without the dot and in lower case.
        channels: Channels of an image, None if they vary.
        sample_rate: Samples a second that audio is decoded to.
        size: (height, width) of every image or frame, None if they vary.
        shape: Shape of every array: (time, channels) of a series, (dim,) of a vector; -1 stands
            for an axis whose length varies.
        perceptor: Identity of the frozen encoder that made a feature vector.
    """

    kind: Kind
    ext: Extension
    channels: Positive | None = None
    sample_rate: Positive | None = None
    size: tuple[Positive, Positive] | None = None
    shape: tuple[int, ...] | None = None
    perceptor: str | None = None

    @field_validator("shape")
    @classmethod
    def _shape_is_positive(cls, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if shape is not None and (not shape or any(n < 1 and n != -1 for n in shape)):
            raise ValueError("every length must be at least 1, or -1 where it varies")
        return shape


class ShardInfo(Config):
    """One tar: its file name inside the data set, and what it must hold; no sample, perhaps."""

    file: str
    samples: Count
    bytes: Positive
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @field_validator("file")
    @classmethod
    def _file_is_a_plain_name(cls, file: str) -> str:
        if not _SHARD.fullmatch(file):
            raise ValueError("must be the plain name of a .tar in the data set's folder")
        return file


class SplitInfo(Config):
    """The shards of one split, in the order that numbers its samples."""

    samples: Count
    shards: tuple[ShardInfo, ...]

    @model_validator(mode="after")
    def _samples_add_up(self) -> SplitInfo:
        held = sum(shard.samples for shard in self.shards)
        if held != self.samples:
            raise ValueError(f"samples is {self.samples}, but its shards hold {held}")
        return self


class Manifest(Config):
    """The contents of `dataset.json`.

    `wnids` are the WordNet ids of ImageNet's classes, in the order of `classes`; `subset` the
    classes that a set for evaluation has, where it has not all: classifiers choose among these.
    """

    format: Literal[1] = 1
    name: str
    classes: tuple[str, ...]
    wnids: tuple[str, ...] | None = None
    subset: tuple[Count, ...] | None = None
    modalities: dict[str, Modality]
    splits: dict[str, SplitInfo]

    @field_validator("modalities")
    @classmethod
    def _modality_names(cls, modalities: dict[str, Modality]) -> dict[str, Modality]:
        for name in modalities:
            if name in RESERVED or not _NAME.fullmatch(name):
                raise ValueError(
                    f"modality '{name}': a name is a-z, 0-9, _ and -, and not {', '.join(RESERVED)}"
                )
        return modalities

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in classes if classes.count(name) > 1})
        if twice:
            raise ValueError(f"class '{twice[0]}' is named twice")
        return classes

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        count = len(self.classes)
        if self.wnids is not None and len(set(self.wnids)) != count:
            raise ValueError(f"wnids: expected {count}, one for each class")
        if self.subset is not None and not (self.subset and max(self.subset) < count):
            raise ValueError(f"subset: expected some of 0..{count - 1}")
        return self

    @field_validator("splits")
    @classmethod
    def _splits_differ(cls, splits: dict[str, SplitInfo]) -> dict[str, SplitInfo]:
        owner: dict[str, str] = {}
        for name, split in splits.items():
            if not _SPLIT.fullmatch(name):
                raise ValueError(f"split '{name}': a name is A-Z, a-z, 0-9, _ and -")
            for shard in split.shards:
                if shard.file in owner:
                    raise ValueError(
                        f"shard {shard.file} is listed in '{owner[shard.file]}' and in '{name}'"
                    )
                owner[shard.file] = name
        return splits


@dataclass(frozen=True)
class Dataset:
    """An opened data set.

    Attributes:
        place: Its folder, or the store that its files are read from.
        manifest: What it holds.
    """

    place: Path | Store
    manifest: Manifest

    @property
    def where(self) -> str:
        """Folder or address, for messages."""
        return self.store.where

    @property
    def store(self) -> Store:
        """Where the files are read from."""
        return LocalStore(self.place) if isinstance(self.place, Path) else self.place

    @property
    def root(self) -> Path:
        """The folder; UserError if the data set lies on another machine."""
        folder = self.store.folder
        if folder is None:
            raise UserError(
                f"{self.where} lies on another machine, and this needs a folder: copy the data "
                "set here, and give the copy"
            )
        return folder

    def split(self, name: str) -> SplitInfo:
        """Return the split `name`; UserError if the data set has none, or if it is empty."""
        splits = self.manifest.splits
        if name not in splits:
            raise UserError(f"{self.where}: no split '{name}'{nearest(name, splits)}")
        if not splits[name].samples:
            filled = [other for other, info in splits.items() if info.samples]
            raise UserError(
                f"{self.where}: split '{name}' is empty; build the data set with samples in it, "
                f"or choose another split ({', '.join(filled) or 'all are empty'})"
            )
        return splits[name]

    def modality(self, name: str) -> Modality:
        """Return the modality `name`; UserError if the data set has none of this name."""
        known = self.manifest.modalities
        if name not in known:
            raise UserError(f"{self.where}: no modality '{name}'{nearest(name, known)}")
        return known[name]

    def shard(self, info: ShardInfo) -> ShardPlace:
        """Return the place of one shard, for reading."""
        return self.store.shard(info.file, info.bytes, info.sha256)

    def shard_path(self, info: ShardInfo) -> Path:
        """Return the path of one shard in a folder, for writing; UserError as `root`."""
        return self.root / info.file

    def with_manifest(self, manifest: Manifest) -> Self:
        """Return the same shards under another description."""
        return replace(self, manifest=manifest)

    # What follows differs in a mixture, whose shards belong to several data sets.

    def modality_in(self, info: ShardInfo, name: str) -> Modality | None:
        """Return what finds and decodes modality `name` in one shard, None if it has none there."""
        return self.modality(name)

    def classes_in(self, info: ShardInfo) -> int:
        """Return how many classes the `.cls` members of one shard count."""
        return len(self.manifest.classes)

    def label(self, info: ShardInfo, raw: int) -> int:
        """Return the class of the data set that a `.cls` member of one shard stands for."""
        return raw

    def own_labels(self, split: str) -> NDArray[np.int64] | None:
        """Return the labels of a split where the data set composes them, else None."""
        return None

    def source_of(self, split: str, shard: int) -> str:
        """Return the name of the data set that a shard of the split comes from, "" for this."""
        return ""

    def groups(self, split: str) -> tuple[tuple[ShardInfo, ...], ...]:
        """Return the shards of a split, those of each source together."""
        return (self.split(split).shards,)

    def fingerprint(self) -> str:
        """Return the sha256 of the manifest in canonical JSON: it names the data set's contents."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        canonical = json.dumps(
            _as_json(self.manifest), sort_keys=True, separators=(",", ":"), ensure_ascii=True
        )
        return hashlib.sha256(canonical.encode()).hexdigest()


def open_dataset(
    path: str | Path, *, verify: bool = True, remote: RemoteConfig | None = None
) -> Dataset:
    """Open the data set in the folder or at the address `path`, or the embedded one by its name.

    Every shard must be there with the bytes that the manifest says, which costs one stat each;
    `check_dataset` looks inside, and wants `verify=False` to list missing shards beside all else.
    Of a data set at an address the first shard of each split is asked for its size; the others
    are compared when they are read. Raises UserError for anything that is wrong.

    Args:
        path: Folder, name, or an address as `store_remote` knows them.
        verify: Look for the shards.
        remote: How to read what has an address.
    """
    if is_address(path):
        store = store_at(str(path), remote)
        if store.folder is None:
            return _open_remote(store, verify)
        path = store.folder
    root = Path(path).expanduser()
    if str(path) == EMBEDDED and not root.is_dir():
        from outmodal.data.embedded import embedded_dataset  # imports this module

        return embedded_dataset()
    dataset = Dataset(root, read_manifest(root))
    if verify:
        from outmodal.data.presence import verify_sizes  # imports this module

        verify_sizes(dataset)
    return dataset


def _open_remote(store: Store, verify: bool) -> Dataset:
    """Open a data set at an address; two requests, and one for each further split."""
    source = f"{store.where}/{MANIFEST}"
    try:
        content = store.read_bytes(MANIFEST)
    except FileNotFoundError as error:
        raise UserError(
            f"no data set at {store.where}: {source}: {error.strerror}; look whether the address "
            "is right, or make the manifest with `outmodal data index` before copying it there"
        ) from None
    dataset = Dataset(store, parse_manifest(_decode_json(content, source), source))
    if verify:
        from outmodal.data.presence import verify_first  # imports this module

        verify_first(dataset)
    return dataset


def read_manifest(root: Path) -> Manifest:
    """Read `root/dataset.json` without looking at the shards; UserError if it is wrong."""
    file = root / MANIFEST
    if not root.is_dir():
        raise UserError(
            f"no data set at {root}: the folder does not exist; "
            f"make one with `outmodal data build`, or use '{EMBEDDED}'"
        )
    if not file.is_file():
        raise UserError(
            f"{root} holds no {MANIFEST}; for tars that another tool wrote, "
            f"make it with `outmodal data index {root}`"
        )
    return parse_manifest(_load_json(file), str(file))


def parse_manifest(content: Any, source: str) -> Manifest:
    """Check the decoded JSON of a manifest; `source` names it in the UserError's message."""
    if not isinstance(content, dict):
        raise UserError(f"{source}: expected a JSON object, got {type(content).__name__}")
    found = content.get("format")
    if found != FORMAT or isinstance(found, bool):
        raise UserError(
            f"{source}: format: expected {FORMAT}, got {found!r}; "
            "update outmodal, or build the data set again with this version"
        )
    try:
        return Manifest.model_validate_json(json.dumps(content))
    except ValidationError as error:
        lines = "; ".join(_complaint(item) for item in error.errors())
        raise UserError(f"{source}: {lines}") from None


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write `root/dataset.json` atomically; the same manifest always gives the same bytes."""
    text = json.dumps(_as_json(manifest), indent=2, ensure_ascii=False)
    write_atomic(root / MANIFEST, f"{text}\n".encode())


def _as_json(manifest: Manifest) -> dict[str, Any]:
    content: dict[str, Any] = manifest.model_dump(mode="json", exclude_none=True)
    return content


def _load_json(file: Path) -> Any:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    return _decode_json(content, str(file))


def _decode_json(content: bytes, source: str) -> Any:
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{source} is not valid JSON ({error}); restore it, or make it again with "
            f"`outmodal data index {source.rpartition('/')[0] or '.'}`"
        ) from None


def _complaint(item: ErrorDetails) -> str:
    """One line for one validation error, with the nearest known key for an unknown one."""
    place = ".".join(str(part) for part in item["loc"]) or "manifest"
    if item["type"] == "extra_forbidden":
        name = str(item["loc"][-1])
        known: set[str] = set()
        for model in (Manifest, Modality, SplitInfo, ShardInfo):
            known.update(model.model_fields)
        return f"{place}: unknown key{nearest(name, known)}"
    if item["type"] == "missing":
        return f"{place}: missing"
    text = item["msg"].removeprefix("Value error, ")
    plain = isinstance(item["input"], str | int | float | bool)
    return f"{place}: {text}" + (f", got {item['input']!r}" if plain else "")
