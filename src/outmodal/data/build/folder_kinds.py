"""What the files of a source are: kinds from extensions, sizes and rates from their contents."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from outmodal.data.build.folder_rows import Problems, Row, file_type, modality_problem
from outmodal.data.decode import DecodeError, decode
from outmodal.data.manifest import Kind, Modality
from outmodal.errors import UserError, nearest

KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("png", "jpg", "bmp", "tif", "webp"), "image"),
    **dict.fromkeys(("wav", "flac", "ogg", "opus", "mp3"), "audio"),
    **dict.fromkeys(("mp4", "mkv", "avi", "webm"), "video"),
    "txt": "text",
}
"""File type -> kind; npy is a series if it has two axes, a vector if it has one."""

_ARRAY = "npy"
_NDIM_KIND: Mapping[int, Kind] = {1: "vector", 2: "series"}


@dataclass
class Seen:
    """What a shard's members of one modality are like.

    Attributes:
        shape: Shape of the decoded members, -1 for an axis that varies.
        rates: Sample rate -> number of audio members.
        widths: Length of the last axis -> the first file with it.
        broken: Files that do not decode, with the reason.
    """

    shape: list[int] | None = None
    rates: Counter[int] = field(default_factory=Counter)
    widths: dict[int, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def look(self, spec: Modality, data: bytes, source: str) -> None:
        """Decode one member as training will, and note what it is like."""
        try:
            value = decode(spec, data)
            if spec.kind == "audio":
                self.rates[int(soundfile.info(io.BytesIO(data)).samplerate)] += 1
        except DecodeError as error:
            self.broken.append(f"{source}: {error.reason}")
            return
        if not isinstance(value, str):
            self._merge(list(value.shape))
            self.widths.setdefault(int(value.shape[-1]), source)

    def add(self, other: Seen) -> None:
        """Take in what another shard has seen."""
        if other.shape is not None:
            self._merge(other.shape)
        self.rates.update(other.rates)
        self.widths = {**other.widths, **self.widths}
        self.broken.extend(other.broken)

    def _merge(self, shape: list[int]) -> None:
        """Keep the lengths that agree."""
        known = self.shape or shape
        self.shape = [a if a == b else -1 for a, b in zip(known, shape, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        widths = [[width, source] for width, source in self.widths.items()]
        rates = [[rate, count] for rate, count in self.rates.items()]
        return {"shape": self.shape, "rates": rates, "widths": widths, "broken": self.broken}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Seen:
        """Read a shard's record."""
        rates = Counter({int(rate): int(count) for rate, count in content["rates"]})
        widths = {int(width): str(source) for width, source in content["widths"]}
        return cls(content["shape"], rates, widths, list(content["broken"]))


def guess_modalities(
    rows: Sequence[Row], kinds: Mapping[str, Kind], problems: Problems
) -> dict[str, Modality]:
    """Return kind and extension of every modality in `rows`.

    Args:
        rows: The samples.
        kinds: Modality -> kind, where the extension does not say it or says it wrong.
        problems: Takes what is wrong: files of several types, unknown extensions.
    """
    examples: dict[str, dict[str, Path | None]] = {}
    for row in rows:
        for name, path in row.files.items():
            examples.setdefault(name, {}).setdefault(file_type(path), path)
        for name in row.texts:
            examples.setdefault(name, {}).setdefault("txt", None)
    for name in kinds:
        if name not in examples:
            problems.add(f"kinds: no modality '{name}'{nearest(name, examples)}")
    found = {}
    for name, types in sorted(examples.items()):
        try:
            found[name] = _guess(name, types, kinds.get(name))
        except ValueError as error:
            problems.add(f"modality '{name}': {error}")
    return found


def _guess(name: str, types: Mapping[str, Path | None], chosen: Kind | None) -> Modality:
    if len(types) > 1:
        files = ", ".join(f".{ext} ({path or 'text in the table'})" for ext, path in types.items())
        raise ValueError(f"files of several types: {files}; a modality has one, convert the others")
    ((extension, path),) = types.items()
    kind = chosen or KINDS.get(extension)
    if kind is None and extension == _ARRAY and path is not None:
        kind = _array_kind(path)
    if kind is None or not extension.isascii() or not extension.isalnum():
        raise ValueError(
            f"cannot tell what {path} holds from its extension; known: {', '.join(KINDS)}, "
            f"{_ARRAY}; set `kinds` for '{name}', or convert the files"
        )
    problem = modality_problem(name)
    if problem:
        raise ValueError(problem)
    return Modality(kind=kind, ext=extension)


def _array_kind(path: Path) -> Kind:
    try:
        axes = np.load(path, mmap_mode="r", allow_pickle=False).ndim
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a readable npy: {error}") from None
    if axes not in _NDIM_KIND:
        raise ValueError(
            f"{path} has {axes} axes; expected [time, channels] for a series, [dim] for a vector"
        )
    return _NDIM_KIND[axes]


def describe(specs: Mapping[str, Modality], seen: Mapping[str, Seen]) -> dict[str, Modality]:
    """Complete the modalities with the sizes, rates and shapes that all their members share.

    Raises UserError if series differ in channels or vectors in length.
    """
    return {
        name: spec.model_copy(update=_shared(name, spec, seen.get(name, Seen())))
        for name, spec in specs.items()
    }


def _shared(name: str, spec: Modality, seen: Seen) -> dict[str, Any]:
    """Return the manifest's optional fields for one modality."""
    shape = seen.shape
    if spec.kind == "audio":
        return {"sample_rate": _commonest(seen.rates)}
    if shape is None:
        return {}
    if spec.kind in ("image", "video"):
        height, width, channels = shape[-3:]
        size = None if -1 in (height, width) else (height, width)
        return {"size": size} | ({} if spec.kind == "video" else {"channels": _channels(channels)})
    if shape[-1] == -1:
        (one, first), (other, second), *_ = seen.widths.items()
        raise UserError(
            f"modality '{name}': {first} has {one} values in its last axis, {second} has {other}; "
            "all must have the same number"
        )
    return {"shape": tuple(shape)}


def _channels(seen: int) -> int:
    """Grey and coloured files together are read as three channels."""
    return 3 if seen == -1 else seen


def _commonest(rates: Counter[int]) -> int | None:
    """Return the rate of most members, the highest one of several; the others are resampled."""
    return max(rates, key=lambda rate: (rates[rate], rate), default=None)


def merge_seen(parts: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, Seen]:
    """Join what all shards have seen, by modality."""
    merged: dict[str, Seen] = {}
    for part in parts:
        for name, content in part.items():
            merged.setdefault(name, Seen()).add(Seen.from_json(content))
    return merged
