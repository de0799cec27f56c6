"""What is fuzzed: a name, a reader of bytes, and the errors that it may raise."""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np

from outmodal.data.decode import DecodeError, decode, decode_channels
from outmodal.data.describe import describe
from outmodal.data.film import read_frames
from outmodal.data.manifest import Modality, parse_manifest, read_manifest
from outmodal.data.shard_index_file import index_problem
from outmodal.data.shards import ShardDamage, read_shard, scan_shard
from outmodal.data.store_local import LocalShard
from outmodal.errors import UserError
from tests.fuzz.containers import indexed_tar
from tests.fuzz.seeds import NAMES, spec_of

ALLOWED = (DecodeError, ShardDamage, UserError)


def attempt(target: str, data: bytes) -> tuple[str, str]:
    """Return ("fine", "") or ("refused", why), or ("broken", traceback)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TARGETS[target](data)
    except ALLOWED as error:
        return ("refused", str(error)) if str(error) else ("broken", "an error without reason")
    except BaseException:  # noqa: BLE001 - the finding itself
        return "broken", traceback.format_exc()[-3000:]
    return "fine", ""


def _decoder(name: str) -> Callable[[bytes], None]:
    kind, ext = spec_of(name)
    spec = Modality.model_validate(
        {"kind": kind, "ext": ext, "sample_rate": 16000 if kind == "audio" else None}
    )

    def run(data: bytes) -> None:
        reasons = []  # no errors: their tracebacks would hold what was decoded
        for read in (_whole, _header, *_MORE.get(kind, ())):
            try:
                read(spec, data)
            except DecodeError as error:
                reasons.append(error.reason)
        if reasons:
            raise DecodeError(reasons[0])

    return run


def _whole(spec: Modality, data: bytes) -> None:
    value = decode(spec, data)
    assert len(value)
    if isinstance(value, np.ndarray):
        assert value.dtype in (np.uint8, np.uint16, np.float32)
        assert np.isfinite(value).all()


def _header(spec: Modality, data: bytes) -> None:
    facts = describe(spec.kind, spec.ext, data)
    assert all(isinstance(number, int | float) for number in facts.values())


def _channels(_spec: Modality, data: bytes) -> None:
    wave, rate = decode_channels(data)
    assert wave.ndim == 2
    assert rate > 0


def _frames(_spec: Modality, data: bytes) -> None:
    def ends(count: int, _rate: Fraction | None) -> tuple[int, ...]:
        return (0, count - 1)

    assert len(read_frames(data, ends)) == 2


_MORE: Mapping[str, tuple[Callable[[Modality, bytes], None], ...]] = {
    "audio": (_channels,),
    "video": (_frames,),
}


def _tar(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder) / "inner"
        inner.mkdir()
        path = inner / "train-000000.tar"
        path.write_bytes(data)
        try:
            index = scan_shard(path)
            for position in range(len(index)):
                for member in index.members(position):
                    assert 0 <= member.offset <= member.offset + member.size <= len(data)
            read = 0
            for _, key, members in read_shard(path):
                assert key
                assert sum(map(len, members.values())) <= len(data)
                read += 1
            assert read == len(index)
        finally:
            # Nothing in a tar ever becomes a path.
            assert [p.name for p in Path(folder).iterdir()] == ["inner"]
            assert [p.name for p in inner.iterdir()] == ["train-000000.tar"]


def _manifest(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "dataset.json").write_bytes(data)
        manifest = read_manifest(Path(folder))
    for split in manifest.splits.values():
        for shard in split.shards:
            assert "/" not in shard.file
            assert "\\" not in shard.file
            assert not shard.file.startswith(".")
    again = parse_manifest(manifest.model_dump(mode="json", exclude_none=True), "again")
    assert again == manifest


def _index(data: bytes) -> None:
    """A hostile index file may be believed, and then a reader gets the shard's own bytes."""
    tar = indexed_tar()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train-000000.tar"
        path.write_bytes(tar)
        path.with_name(path.name + ".index").write_bytes(data)
        place = LocalShard(path, len(tar), hashlib.sha256(tar).hexdigest())
        problem = index_problem(place)
        assert len(scan_shard(place)) <= len(tar) // 512
        for _, key, members in read_shard(place):
            for suffix, content in members.items():
                assert f"{key}.{suffix}" in _INDEXED or problem is None
                assert len(content) <= len(tar)
        if problem is not None:
            raise UserError(problem)


_INDEXED = frozenset(tarfile.open(fileobj=io.BytesIO(indexed_tar())).getnames())  # noqa: SIM115


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    **{name: _decoder(name) for name in NAMES},
    "tar": _tar,
    "index": _index,
    "manifest": _manifest,
}
