"""Arrays in .npy files, from bytes that nobody vouches for: plain numbers, and nothing is run.

The header is read here and not by numpy, which gives it to Python's compiler: no place for bytes of
others, and in CPython up to 3.11 it fails now and then where two threads are in it at once.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outmodal.data.decode_error import BROKEN, DecodeError, brief

MAX_NPY_HEADER = 4096

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES: dict[tuple[int, ...], int] = {(1, 0): 2, (2, 0): 4}
_ENTRY = re.compile(
    r"""\s*(['"])(?P<key>descr|fortran_order|shape)\1\s*:\s*
    (?:(['"])(?P<descr>[<>|=]?[a-zA-Z]\d*)\3|(?P<order>True|False)|\((?P<shape>[\d\s,]*)\))
    \s*(?:,\s*|(?=\}))""",
    re.VERBOSE | re.ASCII,
)
_VALUE = {"descr": "descr", "fortran_order": "order", "shape": "shape"}  # key -> group
_DIGITS = 20  # a longer number is no size of anything

Header = tuple[np.dtype[Any], bool, tuple[int, ...]]


def read_npy(data: bytes) -> NDArray[Any]:
    """Read a .npy of numbers whose bytes are exactly what its header says, or raise DecodeError."""
    try:
        header, begin = _parts(data)
        dtype, fortran, shape = _header(header)
        held, said = len(data) - begin, math.prod(shape) * dtype.itemsize
        if held != said:
            raise DecodeError(f"npy of {held} bytes where its header says {said}")
        native = np.frombuffer(data, dtype, offset=begin).astype(dtype.newbyteorder("="))
        return native.reshape(shape, order="F" if fortran else "C")
    except BROKEN as error:
        raise DecodeError(f"not a readable npy: {brief(error)}") from None


def _parts(data: bytes) -> tuple[bytes, int]:
    """The header, and the position of the first number."""
    version = tuple(data[len(_MAGIC) : len(_MAGIC) + 2])
    if not data.startswith(_MAGIC) or len(version) < 2:
        raise DecodeError("not a readable npy: it does not begin as one")
    width = _LENGTH_BYTES.get(version)
    if width is None:
        raise DecodeError(f"npy version {version} is not supported")
    begin = len(_MAGIC) + 2 + width
    length = int.from_bytes(data[begin - width : begin], "little")
    if length > MAX_NPY_HEADER:
        raise DecodeError(f"not a readable npy: its header has {length} bytes")
    if len(data) < begin + length:
        raise DecodeError("not a readable npy: it ends in its header")
    return bytes(data[begin : begin + length]), begin + length


@lru_cache(maxsize=256)
def _header(raw: bytes) -> Header:
    """Type, whether the first axis runs fastest, and shape, from a header behind its length."""
    text = raw.decode("latin1").strip()
    held: dict[str, str | None] = {}
    at = 1 if text.startswith("{") else len(text)
    while entry := _ENTRY.match(text, at):
        key = entry["key"]
        held[key], at = entry[_VALUE[key]], entry.end()
    descr, order, shape = (held.get(key) for key in _VALUE)
    if text[at:].strip() != "}" or descr is None or order is None or shape is None:
        raise DecodeError(f"npy with the header {text[:200]!a}: expected plain numbers")
    sizes = [size.strip() for size in shape.split(",") if size.strip()]
    dtype = np.dtype(descr)
    if dtype.kind not in "fiub" or any(len(size) > _DIGITS for size in sizes):
        raise DecodeError(f"npy of type {dtype}, shape ({shape}): expected plain numbers")
    return dtype, order == "True", tuple(int(size) for size in sizes)
