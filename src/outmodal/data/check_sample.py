"""What can be wrong with one sample: its members against the manifest, one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from outmodal.data.decode import DecodeError, decode, decode_numbers, find_member
from outmodal.data.labels import LABEL, parse_label
from outmodal.data.manifest import MANIFEST, Dataset, Modality, ShardInfo
from outmodal.errors import UserError

TARGET, JSON = "target.npy", "json"
_OTHERS = (LABEL, TARGET, JSON)


class Fault(NamedTuple):
    """One thing that is wrong with a sample.

    Attributes:
        kind: "corrupt", "member", "label", "target" or "json".
        text: What is wrong.
        stray: The member, where it is one that the sample can do without: it belongs to nothing
            that the manifest names.
    """

    kind: str
    text: str
    stray: str = ""


@dataclass(frozen=True)
class Expected:
    """What the samples of one shard may hold.

    Attributes:
        modalities: Modality -> what its members are; in a mixture those of the shard's source.
        classes: Classes that a label may name.
    """

    modalities: Mapping[str, Modality]
    classes: int

    @classmethod
    def of(cls, dataset: Dataset, shard: ShardInfo) -> Expected:
        """What `dataset` says of the samples of `shard`."""
        specs = {name: dataset.modality_in(shard, name) for name in dataset.manifest.modalities}
        known = {name: spec for name, spec in specs.items() if spec is not None}
        return cls(known, dataset.classes_in(shard))


def sample_faults(expected: Expected, members: Mapping[str, bytes]) -> Iterator[Fault]:
    """Yield everything that is wrong with the members of one sample; each one is decoded."""
    for suffix in members:
        if suffix not in _OTHERS and suffix.partition(".")[0] not in expected.modalities:
            yield Fault("member", f"member '{suffix}' belongs to no modality of {MANIFEST}", suffix)
    if not any(suffix.partition(".")[0] in expected.modalities for suffix in members):
        yield Fault("member", "no modality at all")
    for name, spec in expected.modalities.items():
        kind = "member"
        try:
            data = find_member(spec, name, members)
            kind = "corrupt"
            if data is not None:
                decode(spec, data)
        except DecodeError as error:
            yield Fault(kind, f"modality '{name}': {error}")
    yield from _other_faults(expected, members)


def _other_faults(expected: Expected, members: Mapping[str, bytes]) -> Iterator[Fault]:
    """Check the members that are not modalities: class, target, and free JSON."""
    try:
        if LABEL in members:
            parse_label(members[LABEL], expected.classes, LABEL)
    except UserError as error:
        yield Fault("label", str(error))
    try:
        if TARGET in members:
            decode_numbers(members[TARGET])
    except DecodeError as error:
        yield Fault("target", f"{TARGET}: {error}")
    try:
        json.loads(members.get(JSON, b"{}"))
    except (ValueError, RecursionError) as error:
        yield Fault("json", f"{JSON}: {error}")
