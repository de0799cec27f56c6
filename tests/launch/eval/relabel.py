"""A copy of a data set whose samples have another label, or none, or a target."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from outmodal.data.decode_npy import read_npy
from outmodal.data.encode import encode_npy
from outmodal.data.manifest import SplitInfo, open_dataset, write_manifest
from outmodal.data.shards import ShardWriter


def relabelled(source: Path, target: Path, label: str, regressed: str = "") -> Path:
    """Copy `source` with `label` as every sample's class; "" leaves it out. The first two numbers
    of the modality `regressed` become its target."""
    target.mkdir()
    dataset = open_dataset(source)
    splits = {}
    for name, split in dataset.manifest.splits.items():
        infos = []
        for info in split.shards:
            with ShardWriter(target / info.file) as writer:
                for key, members in samples(source / info.file).items():
                    members.pop("cls")
                    if label:
                        members["cls"] = label.encode()
                    if regressed:
                        values = read_npy(members[f"{regressed}.npy"])
                        members["target.npy"] = encode_npy(values.ravel()[:2])
                    writer.add(key, members)
            infos.append(writer.info)
        splits[name] = SplitInfo(samples=split.samples, shards=tuple(infos))
    write_manifest(target, dataset.manifest.model_copy(update={"splits": splits}))
    return target


def samples(shard: Path) -> dict[str, dict[str, bytes]]:
    """Key -> suffix -> bytes."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(shard.read_bytes())) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            key, _, suffix = member.name.partition(".")
            found.setdefault(key, {})[suffix] = file.read()
    return found
