"""Noise on what a perceptor reads: each sample's features as of a disturbed input."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from outmodal.data.draws import Draw, drawing, key_number
from outmodal.data.manifest import Modality
from outmodal.data.transform import Transform, Value
from outmodal.errors import UserError
from outmodal.models.perceptors.base import FrozenPerceptor

_OP = "perceptor noise"
_STILL = Draw(0, 0, _OP)


def noisy(perceptor: FrozenPerceptor, std: float) -> FrozenPerceptor:
    """The perceptor with normal noise of deviation `std` on its normalised input.

    Raises:
        UserError: Its input is no numbers but tokens.
    """
    if not perceptor.transform.dtype.is_floating_point:
        raise UserError(
            f"perceptor of '{perceptor.modality}': noise_std {std:g} is for what is read as numbers"
            ", and this perceptor reads tokens: leave noise_std out"
        )
    perceptor.transform = NoisyTransform(perceptor.transform, std)
    perceptor.identity = noisy_identity(perceptor.identity, std)
    return perceptor


def noisy_identity(identity: str, std: float) -> str:
    """What a perceptor calls itself with noise: features with and without it do not mix."""
    return f"{identity}+noise{std:g}" if std else identity


class NoisyTransform(Transform):
    """A transform whose last step adds noise, drawn from the sample's key.

    Where a run trains it is drawn anew in every epoch; elsewhere (stored features, evaluation) a
    sample has the same noise each time.

    Attributes:
        keyed: Equal values give equal inputs under one key only.
    """

    keyed = True

    def __init__(self, inner: Transform, std: float) -> None:
        super().__init__(inner.config, inner.shape, inner.dtype)
        self.inner, self.std, self.random = inner, std, inner.random

    @property
    def stored(self) -> tuple[tuple[int, ...], torch.dtype]:
        return self.inner.stored

    def __call__(self, value: Value, key: str) -> Tensor:
        return self._disturbed(self.inner(value, key)[None], _keys(key), None)[0]

    def compact(self, value: Value, key: str, draw: Draw | None = None) -> Tensor:
        return self.inner.compact(value, key, draw)

    def from_bytes(self, spec: Modality, data: bytes, key: str, draw: Draw | None = None) -> Tensor:
        return self.inner.from_bytes(spec, data, key, draw)

    def decode(self, spec: Modality, data: bytes) -> Value:
        return self.inner.decode(spec, data)

    def finish(self, x: Tensor, keys: Tensor, draw: Draw | None = None) -> Tensor:
        return self._disturbed(self.inner.finish(x, keys, draw), keys, draw)

    def read(self, spec: Modality, data: bytes, key: str) -> Tensor:
        return self.finish(self.from_bytes(spec, data, key)[None], _keys(key))[0]

    def zeros(self) -> Tensor:
        return self.inner.zeros()

    def save(self, folder: Path) -> None:
        self.inner.save(folder)

    def _disturbed(self, x: Tensor, keys: Tensor, draw: Draw | None) -> Tensor:
        """Padding of varying lengths is NaN, and stays so."""
        held = draw if drawing(draw) else _STILL
        return x + self.std * held.normals(keys, _OP, x[0].numel()).view(x.shape)


def _keys(key: str) -> Tensor:
    return torch.tensor([key_number(key)])
