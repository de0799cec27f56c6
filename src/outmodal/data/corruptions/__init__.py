"""Damage to decoded values at five severities, to see what an encoder bears.

A corruption is a function of a decoded value, a severity 1..5 and a generator; the generator is
that of the sample's key and the corruption, so a severity draws what a milder one draws, only
stronger, and the same sample is damaged alike in every evaluation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from outmodal.data.corruptions import films, numbers, pictures, pictures_more, sounds
from outmodal.data.decode import decode
from outmodal.data.draws import Draw
from outmodal.data.manifest import Modality
from outmodal.data.transform import Transform, Value
from outmodal.errors import UserError, nearest

Corruption = Callable[[Modality, Value, int, np.random.Generator], Value]

SEVERITIES = (1, 2, 3, 4, 5)
CORRUPTIONS: Mapping[str, Mapping[str, Corruption]] = {
    "image": {**pictures.CORRUPTIONS, **pictures_more.CORRUPTIONS},
    "video": films.CORRUPTIONS,
    "audio": sounds.CORRUPTIONS,
    "series": numbers.SERIES,
    "vector": numbers.VECTOR,
}
"""Kind of a modality -> name -> corruption."""


def corruptions_of(kind: str, wanted: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of the corruptions of a kind of modality, or those of them that are wanted.

    Raises:
        UserError: There are none of this kind, or not the one that is named.
    """
    if kind not in CORRUPTIONS:
        raise UserError(
            f"there are no corruptions of {kind}: choose a modality of {', '.join(CORRUPTIONS)}"
        )
    for name in wanted:
        if name not in CORRUPTIONS[kind]:
            known = CORRUPTIONS[kind]
            raise UserError(
                f"there is no corruption '{name}' of {kind}{nearest(name, known)} (known: "
                f"{', '.join(known)})"
            )
    return wanted or tuple(CORRUPTIONS[kind])


def generator(seed: int, name: str, key: str) -> np.random.Generator:
    """The generator of one sample and one corruption, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{name}\0{key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


class Corrupted(Transform):
    """A transform whose values are damaged first.

    Args:
        inner: What makes the input of the damaged value.
        spec: The modality.
        name: The corruption.
        severity: 1..5.
        seed: Decides, with the sample's key, what is drawn.
    """

    def __init__(
        self, inner: Transform, spec: Modality, name: str, severity: int, seed: int = 0
    ) -> None:
        super().__init__(inner.config, inner.shape, inner.dtype)
        self.inner, self.spec, self.name = inner, spec, name
        self.severity, self.seed = severity, seed

    def corrupt(self, value: Value, key: str) -> Value:
        """The damaged value, of the same type and shape."""
        act = CORRUPTIONS[self.spec.kind][self.name]
        return act(self.spec, value, self.severity, generator(self.seed, self.name, key))

    @property
    def stored(self) -> tuple[tuple[int, ...], torch.dtype]:
        """See Transform.stored."""
        return self.inner.stored

    def __call__(self, value: Value, key: str) -> Tensor:
        return self.inner(self.corrupt(value, key), key)

    def compact(self, value: Value, key: str, draw: Draw | None = None) -> Tensor:
        """See Transform.compact."""
        return self.inner.compact(self.corrupt(value, key), key, draw)

    def from_bytes(self, spec: Modality, data: bytes, key: str, draw: Draw | None = None) -> Tensor:
        """See Transform.from_bytes; the value is decoded whole, as the data set's kind says."""
        return self.compact(decode(spec, data), key, draw)

    def finish(self, x: Tensor, keys: Tensor, draw: Draw | None = None) -> Tensor:
        """See Transform.finish."""
        return self.inner.finish(x, keys, draw)
