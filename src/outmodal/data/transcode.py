"""A data set again with smaller pictures, which decode several times faster.

OUT/dataset.json, OUT/train-000000.tar ...   the same samples, keys, labels and splits
OUT/.transcode/                              the request, and what is done so far

Training crops and resizes to a few hundred pixels, and most of a large JPEG's decoding is thrown
away. Pictures are resized once, so that their shorter side has `side` pixels, and written as JPEG
4:2:0. What else a sample holds is copied byte for byte; the original is only read.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from outmodal.data.cache import write_atomic
from outmodal.data.claim import claimed, writing
from outmodal.data.decode import DecodeError, decode
from outmodal.data.jpeg import read_header
from outmodal.data.manifest import (
    Dataset,
    Manifest,
    Modality,
    ShardInfo,
    SplitInfo,
    write_manifest,
)
from outmodal.data.orphans import at_work
from outmodal.data.shard_writer import ShardWriter
from outmodal.data.shards import ShardDamage, read_shard
from outmodal.data.store import ShardPlace
from outmodal.data.tasks import Progress, run_tasks
from outmodal.data.whole_shard import copy_shard
from outmodal.errors import UserError, nearest

EXT = "jpg"
_JPEG = ("jpg", "jpeg")
_WORK = ".transcode"


@dataclass(frozen=True)
class Recipe:
    """How pictures are made smaller.

    Attributes:
        modalities: Which; each name -> the extension of its members now.
        side: Shorter side in pixels.
        quality: JPEG quality, 1 to 100.
    """

    modalities: Mapping[str, str]
    side: int = 256
    quality: int = 90


@dataclass(frozen=True)
class Transcoding:
    """What was done.

    Attributes:
        out: Folder of the new data set.
        written: Pictures that were encoded again.
        kept: Pictures that were small enough, copied byte for byte.
        broken: Pictures that cannot be decoded, or hold 16 bits, copied byte for byte.
        bytes_before, bytes_after: Sizes of all shards.
    """

    out: Path
    written: int
    kept: int
    broken: int
    bytes_before: int
    bytes_after: int


def transcode(
    dataset: Dataset,
    out: Path,
    *,
    side: int = 256,
    quality: int = 90,
    modalities: Sequence[str] = (),
    workers: int = 0,
    progress: Progress | None = None,
) -> Transcoding:
    """Write `dataset` into the folder `out` with smaller pictures.

    The bytes do not depend on `workers`. A run that was stopped goes on when it is repeated:
    finished shards are not read again. `out` becomes a data set with its last file, the manifest.

    Args:
        dataset: What to read; it may lie on another machine.
        out: A new folder, or one that the same request has begun.
        side: Shorter side; pictures whose shorter side is no longer stay as they are. JPEGs that
            hold something else than grey or RGB, and other files that are called .jpg, become
            such JPEGs at any size.
        quality: JPEG quality.
        modalities: Pictures to transcode; empty for all that are JPEG. Others become JPEG, which
            loses transparency and detail.
        workers: Processes; 0 works in this one.
        progress: Called with (shards done, shards in total) after each.

    Raises:
        UserError: Nothing to transcode, `out` holds something else or cannot be written, or a
            shard is damaged.
    """
    folder = dataset.store.folder
    if folder is not None and folder.resolve() == out.resolve():
        raise UserError(f"{out} is the data set itself, which is never changed: choose a new --out")
    recipe = Recipe(_chosen(dataset, modalities), side, quality)
    request = {
        "transcode": dataset.where,
        "fingerprint": dataset.fingerprint(),
        "modalities": sorted(recipe.modalities),
        "side": side,
        "quality": quality,
    }
    with writing(out, "the transcoded data set"), claimed(out, _WORK, request):
        shards = [s for split in dataset.manifest.splits.values() for s in split.shards]
        calls = [(dataset.shard(shard), shard, recipe, out) for shard in shards]
        done: dict[int, _Done] = {}
        for position, result in run_tasks(_one_shard, calls, workers):
            done[position] = _alive(result, shards[position])
            if progress is not None:
                progress(len(done), len(shards))
        results = [done[position] for position in range(len(shards))]
        write_manifest(out, _manifest(dataset.manifest, recipe, [r.info for r in results]))
    return _summary(out, shards, results)


@dataclass(frozen=True)
class _Done:
    """A finished shard, and how many of its pictures were written, kept and broken."""

    info: ShardInfo
    counts: Mapping[str, int]


def _chosen(dataset: Dataset, names: Sequence[str]) -> dict[str, str]:
    """Check the modalities that were asked for, or find those that are JPEG."""
    known = {name: m for name, m in dataset.manifest.modalities.items() if m.kind == "image"}
    for name in names:
        if name not in known:
            raise UserError(
                f"{dataset.where}: no pictures of the name '{name}'{nearest(name, known)}"
            )
        if known[name].ext == "npy":
            raise UserError(f"modality '{name}' is npy, which a JPEG cannot stand for")
    found = {n: m.ext for n, m in known.items() if n in names or (not names and m.ext in _JPEG)}
    if not found:
        held = ", ".join(f"{name} ({m.ext})" for name, m in known.items()) or "none"
        raise UserError(
            f"{dataset.where} has no JPEG pictures to transcode (pictures: {held}); "
            "name others with --modality to have them made JPEG"
        )
    return found


def _alive(result: _Done | None, shard: ShardInfo) -> _Done:
    if result is None:
        raise UserError(
            f"{shard.file}: not transcoded: a process died at it; run the same command again with "
            "fewer --workers: finished shards are kept"
        )
    return result


def _one_shard(place: ShardPlace, shard: ShardInfo, recipe: Recipe, out: Path) -> _Done:
    """Write one shard, unless an earlier run did; its record comes last."""
    with at_work(out):
        record = out / _WORK / f"{shard.file}.json"
        done = _recorded(record, shard, out)
        return _written(place, shard, recipe, out, record) if done is None else done


def _written(place: ShardPlace, shard: ShardInfo, recipe: Recipe, out: Path, record: Path) -> _Done:
    counts: Counter[str] = Counter()
    if shard.samples:
        with ShardWriter(out / shard.file) as writer:
            for key, members in _samples(place, shard):
                writer.add(key, dict(_members(members, recipe, counts)))
        done = _Done(writer.info, dict(counts))
    else:
        copy_shard(place, out / shard.file)  # a writer would not write it
        done = _Done(shard, {})
    content = {"source": shard.sha256, "info": done.info.model_dump(), "counts": done.counts}
    write_atomic(record, json.dumps(content).encode())
    return done


def _recorded(record: Path, shard: ShardInfo, out: Path) -> _Done | None:
    """Return what an earlier run wrote, if it is there, whole, and made of the same shard."""
    try:
        content = json.loads(record.read_bytes())
        info = ShardInfo.model_validate(content["info"])
        whole = (out / info.file).stat().st_size == info.bytes
        counts = {str(name): int(count) for name, count in content["counts"].items()}
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return _Done(info, counts) if whole and content["source"] == shard.sha256 else None


def _samples(place: ShardPlace, shard: ShardInfo) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    try:
        for _, key, members in read_shard(place, stop=shard.samples):
            yield key, members
    except ShardDamage as damage:
        raise UserError(
            f"{damage}; mend the data set with `outmodal data check --repair`, and transcode "
            "what that writes"
        ) from None


def _members(
    members: Mapping[str, bytes], recipe: Recipe, counts: Counter[str]
) -> Iterator[tuple[str, bytes]]:
    """Yield a sample's members, its pictures made smaller, and count what became of those."""
    pictures = {f"{name}.{ext}": name for name, ext in recipe.modalities.items()}
    for suffix, data in members.items():
        if suffix not in pictures:
            yield suffix, data
            continue
        try:
            smaller = shrink(data, recipe.side, recipe.quality)
        except DecodeError:
            counts["broken"] += 1
            smaller = data
        else:
            counts["kept" if smaller is data else "written"] += 1
        yield f"{pictures[suffix]}.{_new_ext(suffix)}", smaller


def _new_ext(name: str) -> str:
    ext = name.rpartition(".")[2]
    return ext if ext in _JPEG else EXT


def shrink(data: bytes, side: int, quality: int) -> bytes:
    """Return a picture as JPEG with a shorter side of at most `side`.

    `data` itself is returned where it is a grey or RGB JPEG that is small enough. Orientation and
    colour profile of the file's metadata, which decoders here do not apply, are not kept. Raises
    DecodeError.
    """
    header = read_header(data)
    if header is not None and min(header[:2]) <= side:
        return data
    pixels = decode(Modality(kind="image", ext=EXT), data)
    if isinstance(pixels, str) or pixels.dtype != "uint8":
        raise DecodeError("pictures of 16 bits do not fit into a JPEG")
    return encode_jpeg(pixels, side, quality)


def encode_jpeg(pixels: NDArray[np.uint8], side: int, quality: int) -> bytes:
    """Encode uint8 [H, W, 1 or 3] as JPEG 4:2:0, with a shorter side of at most `side`."""
    file = io.BytesIO()
    shrunk(pixels, side).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()


def shrunk(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    """uint8 [H, W, 1 or 3] as a picture with a shorter side of at most `side`."""
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    height, width = smaller_size(picture.height, picture.width, side)
    if (width, height) == picture.size:
        return picture
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def smaller_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Return the size with a shorter side of at most `side`, and the aspect of before."""
    shorter = min(height, width)
    if shorter <= side:
        return height, width
    return tuple(max(side, round(n * side / shorter)) for n in (height, width))  # type: ignore[return-value]


def _manifest(old: Manifest, recipe: Recipe, infos: Sequence[ShardInfo]) -> Manifest:
    """The same with other shards; sizes that were fixed are the new ones."""
    modalities = dict(old.modalities)
    for name, ext in recipe.modalities.items():
        spec = modalities[name]
        update: dict[str, Any] = {"ext": _new_ext(f"{name}.{ext}")}
        if spec.size is not None:
            update["size"] = smaller_size(*spec.size, recipe.side)
        modalities[name] = spec.model_copy(update=update)
    by_file = {info.file: info for info in infos}
    splits = {
        name: SplitInfo(
            samples=split.samples, shards=tuple(by_file[shard.file] for shard in split.shards)
        )
        for name, split in old.splits.items()
    }
    return old.model_copy(update={"modalities": modalities, "splits": splits})


def _summary(out: Path, shards: Sequence[ShardInfo], results: Sequence[_Done]) -> Transcoding:
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(result.counts)
    return Transcoding(
        out,
        written=counts["written"],
        kept=counts["kept"],
        broken=counts["broken"],
        bytes_before=sum(shard.bytes for shard in shards),
        bytes_after=sum(result.info.bytes for result in results),
    )
