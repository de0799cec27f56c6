"""Random numbers of augmentation: pure functions of seed, epoch, view and the sample's key.

No generator carries state from sample to sample, so what a sample is given does not depend on its
batch, the order, the number of ranks and workers, or on whether the run was resumed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray
from torch import Tensor

Policy = Literal["augment", "strong", "none"]

_LOW = 0xFFFFFFFF
# The two multipliers of a 32-bit mixer with low bias that a public search found (Wellons, Hash
# Prospector: 16 21f0aaad 15 d35a2d97 15). The second is written as a signed number: products of 32
# by 31 bits stay inside int64, where the CPU and the GPU then agree on every bit.
_FIRST = 0x21F0AAAD
_SECOND = 0xD35A2D97 - (1 << 32)
_CHUNK = 1 << 24
_STEP = 0x9E3779B9  # the golden ratio's fraction: neighbouring counters lie far apart


class _Words(ISeedSequence):
    """Gives a bit generator its key. Philox's own argument for it asks the system for entropy
    first, which takes three times as long as all the rest."""

    def __init__(self, key: NDArray[np.uint64]) -> None:
        self._key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        """Return the key, which is what Philox asks for."""
        return self._key


@dataclass(frozen=True)
class Draw:
    """What one epoch's augmentation of one view draws from.

    Attributes:
        seed: Of the run.
        epoch: Number of the epoch.
        view: Name of the modality or of the view of it. Another view has other, independent draws.
        policy: Which list of augmentations is meant: an input's `augment`, its `strong`, or none.
    """

    seed: int
    epoch: int
    view: str = ""
    policy: Policy = "augment"

    def of(self, view: str) -> Draw:
        """Return the draw of another view of the same epoch."""
        return replace(self, view=view)

    def generator(self, key: str, *words: int | str) -> np.random.Generator:
        """Return the generator of one sample for one purpose, on the CPU.

        Args:
            key: The sample's key.
            words: Name the purpose: other words give an independent generator.
        """
        digest = self._digest("key", key, *words)
        own = _Words(np.frombuffer(digest, dtype="<u8"))
        philox = np.random.Philox(own)  # type: ignore[arg-type] # numpy's stub is narrower
        return np.random.Generator(philox)

    def uniforms(self, keys: Tensor, op: int | str, count: int) -> Tensor:
        """Return [B, count] float32, uniform in [0, 1): the same bits on CPU and GPU.

        A number depends on the draw, its sample's key, `op` and its place in the row, and on
        nothing else: a longer row begins with the shorter one.

        Args:
            keys: [B] int64, `key_number` of the samples' keys.
            op: Name of the purpose: another one gives independent numbers.
            count: Numbers for each sample.
        """
        digest = self._digest("op", op)
        first, second = (int.from_bytes(digest[i : i + 4], "little") for i in (0, 4))
        low, high = keys & _LOW, keys >> 32
        lanes = _mix(torch.stack((low ^ first, high ^ second)))
        outer, inner = _mix(lanes ^ torch.stack((high, low)))
        places = torch.arange(count, dtype=torch.int64, device=keys.device) * _STEP
        mixed = _mix((outer[:, None] + places).bitwise_and_(_LOW))
        mixed = _mix(mixed.bitwise_xor_(inner[:, None]))
        return (mixed >> 8).to(torch.float32).mul_(2.0**-24)

    def normals(self, keys: Tensor, op: int | str, count: int) -> Tensor:
        """Return [B, count] float32 standard normal numbers, none beyond 5.5 deviations.

        They are the normal quantiles of `uniforms`, and depend on the same things. Devices agree
        to rounding. Long rows are made a few samples at a time: the integers need more memory.
        """
        rows = max(1, _CHUNK // max(count, 1))
        parts = [
            normal_quantiles(self.uniforms(part, op, count)) for part in torch.split(keys, rows)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _digest(self, *words: int | str) -> bytes:
        """Return 16 bytes that name this draw and the words; no two lists of words meet."""
        text = repr((self.seed, self.epoch, self.view, *words))
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def normal_quantiles(uniform: Tensor) -> Tensor:
    """Return the normal quantiles of multiples of 2^-24 in [0, 1), all of them finite.

    Half a step is added, so that 0 is no infinity. At the other end that sum is rounded to 1,
    whose quantile would be one.
    """
    middles = (uniform + 2.0**-25).clamp_(max=1.0 - 2.0**-24)
    quantiles: Tensor = torch.special.ndtri(middles)
    return quantiles


def drawing(draw: Draw | None) -> TypeGuard[Draw]:
    """Tell whether anything is to be drawn."""
    return draw is not None and draw.policy != "none"


def key_number(key: str) -> int:
    """Return 63 bits of the key's BLAKE2b hash, the same on every machine.

    >>> key_number("a")
    1702698405120146464
    """
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _mix(x: Tensor) -> Tensor:
    """Mix 32 bits held in int64, one to one."""
    x = (x ^ (x >> 16)).mul_(_FIRST).bitwise_and_(_LOW)
    x = (x ^ (x >> 15)).mul_(_SECOND).bitwise_and_(_LOW)
    return x ^ (x >> 15)
