"""Memory of batches, used again when nothing refers to a batch any more.

A batch of pictures is some 10 MB, which the system hands out page by page and takes back when the
batch is freed: that costs a tenth of the time of reading small pictures.
"""

from __future__ import annotations

import weakref
from collections import deque
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEAST = 1 << 20
"""Bytes below which malloc keeps the memory itself."""

KEPT = 4
"""Unused buffers that are kept: as many as are in use at a time in an epoch of one stream."""


class Buffers:
    """Gives tensors without contents. Its method may be called from several threads."""

    def __init__(self) -> None:
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=KEPT)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor; its memory is given again when no tensor or array shares it."""
        size = prod(shape) * dtype.itemsize
        if size < LEAST:
            return torch.empty(shape, dtype=dtype)
        memory = self._taken(size)
        # torch holds this array, and not `memory`, as long as anything shares the storage.
        lent = memory.view()
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)

    def _taken(self, size: int) -> NDArray[np.uint8]:
        for _ in range(len(self._free)):
            try:
                memory = self._free.popleft()
            except IndexError:  # another thread took it
                break
            if memory.nbytes == size:
                return memory
            self._free.append(memory)
        return np.empty(size, np.uint8)
