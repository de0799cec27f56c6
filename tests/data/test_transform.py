"""What every transform promises beside its call."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from outmodal.data.arrays import VectorInput
from outmodal.data.encode import encode_npy
from outmodal.data.manifest import Modality
from outmodal.data.transform import Transform, Value

SPEC = Modality(kind="vector", ext="npy")


class Doubled(Transform):
    """Finishes on the device: halves travel, wholes come out."""

    @property
    def stored(self) -> tuple[tuple[int, ...], torch.dtype]:
        return self.shape, torch.float16

    def __call__(self, value: Value, key: str) -> Tensor:
        return self.finish(self.compact(value, key)[None], torch.zeros(1, dtype=torch.int64))[0]

    def compact(self, value: Value, key: str, draw: object = None) -> Tensor:
        return torch.from_numpy(np.asarray(value)).half()

    def finish(self, x: Tensor, keys: Tensor, draw: object = None) -> Tensor:
        return x.float() * 2


def test_a_plain_transform_is_finished_where_it_is_read() -> None:
    made = VectorInput(dim=3).build(None, "v", None)
    data = encode_npy(np.arange(3, dtype=np.float32))
    x = made.from_bytes(SPEC, data, "k")
    assert made.stored == (made.shape, made.dtype) == ((3,), torch.float32)
    assert not made.random
    assert x.equal(made(np.arange(3, dtype=np.float32), "k"))
    assert made.finish(x[None], torch.zeros(1, dtype=torch.int64)).equal(x[None])
    assert made.read(SPEC, data, "k").equal(x)


def test_reading_is_compacting_and_finishing() -> None:
    made = Doubled(VectorInput(dim=3), (3,))
    data = encode_npy(np.arange(3, dtype=np.float32))
    assert made.from_bytes(SPEC, data, "k").dtype == torch.float16
    assert made.zeros().dtype == torch.float16
    assert made.read(SPEC, data, "k").tolist() == [0.0, 2.0, 4.0]
    assert made.read(SPEC, data, "k").equal(made(np.arange(3, dtype=np.float32), "k"))
