"""Right checksums for mutated files: without them most mutations get no further than a CRC."""

from __future__ import annotations

import struct
import zlib
from functools import cache

_BLOCK = 512
_PNG = b"\x89PNG\r\n\x1a\n"


def mended(data: bytes) -> bytes:
    """Return `data` with the checksums of PNG chunks, Ogg pages or tar headers set right."""
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(b"OggS"):
        return _ogg(data)
    return _tar(data) if data[257:262] == b"ustar" else data


def _png(data: bytes) -> bytes:
    content, at = bytearray(data), len(_PNG)
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        end = at + 8 + size
        if end + 4 > len(content):
            break
        content[end : end + 4] = struct.pack(">I", zlib.crc32(content[at + 4 : end]))
        at = end + 4
    return bytes(content)


def _ogg(data: bytes) -> bytes:
    pages = data.split(b"OggS")[1:]
    return b"".join(_page(bytearray(b"OggS" + page)) for page in pages)


def _page(page: bytearray) -> bytes:
    """RFC 3533, section 6: CRC-32 of polynomial 0x04c11db7, not reflected, from zero."""
    if len(page) < 27 or len(page) < 27 + page[26]:
        return bytes(page)
    end = min(27 + page[26] + sum(page[27 : 27 + page[26]]), len(page))
    page[22:26] = bytes(4)
    crc, table = 0, _ogg_table()
    for byte in page[:end]:
        crc = (crc << 8 & 0xFFFFFFFF) ^ table[crc >> 24 ^ byte]
    page[22:26] = struct.pack("<I", crc)
    return bytes(page)


@cache
def _ogg_table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        crc = number << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
        table.append(crc)
    return tuple(table)


def _tar(data: bytes) -> bytes:
    """Every block that looks like a header gets the sum of its bytes."""
    content = bytearray(data)
    for at in range(0, len(content) - _BLOCK + 1, _BLOCK):
        if content[at + 257 : at + 262] == b"ustar":
            total = sum(content[at : at + 148]) + 8 * 32 + sum(content[at + 156 : at + _BLOCK])
            content[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(content)
