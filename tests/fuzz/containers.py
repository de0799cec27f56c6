"""Real tars, manifests and index files, whole and hostile."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from outmodal.data.shard_index_file import label_array, pack_index
from outmodal.data.shards import read_members, scan_shard

DIGEST = "0" * 64


def tar_of(members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def special_tar(kind: bytes, name: str, target: str = "") -> bytes:
    """A tar with one good sample, one special entry (link, device, folder), and a good sample."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key in ("a", "special", "b"):
            info = tarfile.TarInfo(name if key == "special" else f"{key}.text.txt")
            if key == "special":
                info.type, info.linkname = kind, target
                info.devmajor, info.devminor = 1, 3
                tar.addfile(info)
            else:
                info.size = 1
                tar.addfile(info, io.BytesIO(b"x"))
    return buffer.getvalue()


def manifest_json() -> bytes:
    """A manifest with every field."""
    shard = {"file": "train-000000.tar", "samples": 2, "bytes": 3072, "sha256": DIGEST}
    content = {
        "format": 1,
        "name": "seed",
        "classes": ["a", "b"],
        "modalities": {
            "image": {"kind": "image", "ext": "png", "channels": 3, "size": [4, 4]},
            "force": {"kind": "series", "ext": "npy", "shape": [-1, 3], "perceptor": "x"},
            "speech": {"kind": "audio", "ext": "wav", "sample_rate": 8000},
        },
        "splits": {"train": {"samples": 2, "shards": [shard]}},
    }
    return json.dumps(content, indent=2).encode()


@cache
def indexed_tar() -> bytes:
    """The shard that mutated index files lie beside."""
    samples = {f"{n:03d}.{end}": b"x" * n for n in range(6) for end in ("text.txt", "force.npy")}
    return tar_of({**samples, "006.cls": b"1", "006.text.txt": b"last"})


def index_file(tar: bytes) -> bytes:
    """The index file of a shard."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train-000000.tar"
        path.write_bytes(tar)
        index = scan_shard(path)
        labels = label_array(data for _, data in read_members(path, index, "cls", 32))
    return pack_index(index, hashlib.sha256(tar).hexdigest(), labels)


@cache
def container_seeds(target: str) -> list[bytes]:
    """Files that the mutations of a container's target start from."""
    if target == "manifest":
        return [manifest_json()]
    if target == "index":
        return [index_file(indexed_tar())]
    plain = {"a.text.txt": b"x" * 600, "a.cls": b"1", "b.text.txt": b"y", "b.cls": b"0"}
    long = {f"{'k' * 300}.text.txt": b"z", "ä/b.text.txt": b"1"}
    return [
        tar_of(plain),
        tar_of(plain, tarfile.GNU_FORMAT),
        tar_of(long),
        tar_of(long, tarfile.GNU_FORMAT),
        special_tar(tarfile.SYMTYPE, "s.text.txt", "../../x"),
    ]
