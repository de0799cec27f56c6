"""JPEG pixels from simplejpeg, which decodes what is common, as Pillow would and faster.

It is asked for the same arithmetic as Pillow's (the slow integer DCT, smooth colour upsampling),
so both give the same pixels. Whatever it does not read, or reads with a warning, is left to
Pillow, and so is the word on what is broken.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

try:
    import simplejpeg
except ImportError:  # no wheel for this machine: Pillow reads everything
    simplejpeg = None

Pixels = NDArray[np.uint8]

START = b"\xff\xd8\xff"
SCAN = b"\xff\xda"
MAX_SCANS = 500
"""Scans of one picture; each costs a pass over all of its pixels. libjpeg-turbo's own limit for
files that nobody vouches for; encoders write about ten."""
KEPT = 64 << 20
"""Bytes of the largest buffer that a thread keeps for its next picture."""

# Second bytes of markers, ITU-T T.81, table B.1.
_FRAMES = (0xC0, 0xC1, 0xC2)  # Huffman-coded: baseline, extended, progressive
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_PROGRESSIVE, _SCAN, _FILL = 0xC2, 0xDA, 0xFF
_BARE = (0x01, *range(0xD0, 0xDA))  # without a length; none belongs before the first scan
_TROUBLE = (ValueError, TypeError, OverflowError, MemoryError)  # all that simplejpeg raises


class Header(NamedTuple):
    """Size of a picture, and 1 channel (grey) or 3."""

    height: int
    width: int
    channels: int


class _Buffers(threading.local):
    """A buffer for each thread: fresh memory for every picture costs a third of its decoding."""

    data: Pixels | None = None


_buffers = _Buffers()


def is_jpeg(data: bytes) -> bool:
    """Tell whether these bytes begin as a JPEG does."""
    return data.startswith(START)


def read_header(data: bytes) -> Header | None:
    """Return size and channels; None where Pillow has to read these bytes.

    The bytes may be anything: what does not look as it should is Pillow's.
    """
    if simplejpeg is None or not is_jpeg(data):
        return None
    header, progressive = None, False
    for marker, place in _segments(data):
        if marker in _OTHER_FRAMES:
            return None
        if marker in _FRAMES:
            if header is not None or (header := _frame(data, place)) is None:
                return None
            progressive = marker == _PROGRESSIVE
        elif marker == _SCAN and header is not None:
            is_only = not progressive and data[place + 2 : place + 3] == bytes([header.channels])
            return header if is_only or data.count(SCAN) <= MAX_SCANS else None
    return None


def _frame(data: bytes, place: int) -> Header | None:
    """The header that a frame's segment gives; None for other than 8 bits, grey or colour."""
    segment = data[place : place + 8]
    if len(segment) < 8 or segment[2] != 8 or segment[7] not in (1, 3):
        return None
    header = Header(_number(segment, 3), _number(segment, 5), segment[7])
    return header if header.height and header.width else None


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (marker, place of its length) from the start to the first scan, or the first flaw."""
    place = 2
    while place + 4 <= len(data) and data[place] == _FILL:
        marker = data[place + 1]
        if marker == _FILL:
            place += 1
            continue
        if marker in _BARE or marker == 0:
            return
        yield marker, place + 2
        if marker == _SCAN:
            return
        place += 2 + max(2, _number(data, place + 2))


def _number(data: bytes, place: int) -> int:
    return data[place] << 8 | data[place + 1]


def decode_jpeg(data: bytes, header: Header, least: tuple[int, int] = (0, 0)) -> Pixels | None:
    """Return uint8 [H, W, 1 or 3]; None where Pillow has to read these bytes.

    The pixels lie in a buffer of this thread: they are good until its next call.

    Args:
        data: The file.
        header: What `read_header` said of it. Whoever calls has checked its size.
        least: Height and width that are enough. The decoder then halves the picture, up to three
            times, while it stays at least as large, which saves most of its work.
    """
    options: dict[str, Any] = {"fastdct": False, "fastupsample": False, "strict": True}
    if min(least) > 0:
        options.update(min_height=least[0], min_width=least[1], min_factor=2)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data, "GRAY" if header.channels == 1 else "RGB", buffer=_buffer(header), **options
        )
    except _TROUBLE:
        return None
    return pixels


def _buffer(header: Header) -> Pixels:
    """This thread's memory for a picture, larger than before if it has to be."""
    size = header.height * header.width * header.channels
    if size > KEPT:
        return np.empty(size, np.uint8)
    if _buffers.data is None or _buffers.data.size < size:
        _buffers.data = np.empty(size, np.uint8)
    return _buffers.data
