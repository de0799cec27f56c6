"""Arrays in .npy files, from bytes that nobody vouches for: plain numbers, and nothing is run."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outmodal.data.decode_error import BROKEN, DecodeError, brief

MAX_NPY_HEADER = 4096
_NPY_ERRORS = (*BROKEN, TokenError)


def read_npy(data: bytes) -> NDArray[Any]:
    """Read a .npy of numbers whose bytes are exactly what its header says, or raise DecodeError."""
    buffer = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(buffer)
        read = _NPY_HEADERS.get(version)
        if read is None:
            raise DecodeError(f"npy version {version} is not supported")
        shape, fortran, dtype = read(buffer, max_header_size=MAX_NPY_HEADER)
        if dtype.hasobject or dtype.kind not in "fiub" or any(n < 0 for n in shape):
            raise DecodeError(f"npy of type {dtype}, shape {shape}: expected plain numbers")
        held, said = len(data) - buffer.tell(), math.prod(shape) * dtype.itemsize
        if held != said:
            raise DecodeError(f"npy of {held} bytes where its header says {said}")
        flat = np.frombuffer(data, dtype, offset=buffer.tell())
        native = flat.astype(dtype.newbyteorder("="))
        return native.reshape(shape, order="F" if fortran else "C")
    except _NPY_ERRORS as error:
        raise DecodeError(f"not a readable npy: {brief(error)}") from None


_NPY_HEADERS: dict[tuple[int, int], Callable[..., tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
