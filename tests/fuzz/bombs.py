"""Small files that promise, or unpack to, far more than anybody should read."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping

import av
import numpy as np
from PIL import Image

from tests.fuzz.containers import manifest_json, special_tar, tar_of
from tests.fuzz.mend import mended
from tests.fuzz.seeds import chunk, seed

PNG = b"\x89PNG\r\n\x1a\n"


def png(width: int, height: int, depth: int = 1, more: bytes = b"") -> bytes:
    """A whole, valid PNG of zeros, grey."""
    row = bytes(1 + (width * depth + 7) // 8)
    packer = zlib.compressobj(1)
    rows = min(height, 1000)
    block = row * rows
    body = b"".join(
        packer.compress(block[: len(row) * (height - y)]) for y in range(0, height, rows)
    )
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    data = chunk(b"IDAT", body + packer.flush())
    return PNG + chunk(b"IHDR", header) + more + data + chunk(b"IEND", b"")


def png_text() -> bytes:
    """A small picture with 100 MB of packed text beside it."""
    text = b"k\0\0" + zlib.compress(bytes(100 << 20), 1)
    return png(8, 8, more=chunk(b"zTXt", text))


def png_profile() -> bytes:
    """A small picture with 100 MB of packed colour profile."""
    return png(8, 8, more=chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(100 << 20), 1)))


def gif(frames: int, side: int) -> bytes:
    """A GIF whose canvas is `side` squared and whose frames are one pixel."""
    one = Image.new("P", (1, 1))
    buffer = io.BytesIO()
    one.save(buffer, "GIF", save_all=True, append_images=[one], duration=10)
    whole = bytearray(buffer.getvalue())
    whole[6:10] = struct.pack("<HH", side, side)
    at = whole.index(b"\x2c")  # an image descriptor, up to the trailer
    body = bytes(whole[at:-1])
    return bytes(whole[:at]) + body * frames + b";"


def tiff(width: int, height: int, again: bool = False) -> bytes:
    """A TIFF of one strip with these sizes; with `again` its directory follows itself."""
    data = bytearray(seed("tiff-plain"))
    at = int.from_bytes(data[4:8], "little")
    for n in range(int.from_bytes(data[at : at + 2], "little")):
        entry = at + 2 + 12 * n
        tag = int.from_bytes(data[entry : entry + 2], "little")
        if tag in (256, 257):
            data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, (width, height)[tag - 256])
    if again:
        count = int.from_bytes(data[at : at + 2], "little")
        data[at + 2 + 12 * count : at + 6 + 12 * count] = struct.pack("<I", at)
    return bytes(data)


def webp(side: int) -> bytes:
    """A lossless WebP whose header says `side` squared."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "WEBP", lossless=True)
    data = bytearray(buffer.getvalue())
    at = data.index(b"VP8L") + 9
    bits = int.from_bytes(data[at : at + 4], "little") >> 28 << 28 | (side - 1) << 14 | side - 1
    data[at : at + 4] = struct.pack("<I", bits)
    return bytes(data)


def jpeg(side: int, name: str = "jpeg") -> bytes:
    """A JPEG whose frame header says `side` squared."""
    data = bytearray(seed(name))
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def jpeg_scans() -> bytes:
    """A progressive JPEG of 4000 x 4000 that repeats its last scan 2,000 times."""
    buffer = io.BytesIO()
    Image.new("L", (4000, 4000)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * 2000 + b"\xff\xd9"


def flac(samples: int) -> bytes:
    """A FLAC whose header promises `samples`, up to 2^36 - 1."""
    data = bytearray(seed("flac"))
    at = data.index(b"fLaC") + 8 + 13
    data[at] = data[at] & 0xF0 | samples >> 32
    data[at + 1 : at + 5] = struct.pack(">I", samples & 0xFFFFFFFF)
    return bytes(data)


def rf64(samples: int) -> bytes:
    """A WAV of the 64-bit kind that promises `samples` of 16 bits."""
    size = 2 * samples
    sizes = struct.pack("<QQQI", size + 72, size, samples, 0)
    form = struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)
    return (
        b"RF64\xff\xff\xff\xffWAVEds64" + struct.pack("<I", len(sizes)) + sizes
        + b"fmt " + struct.pack("<I", len(form)) + form + b"data\xff\xff\xff\xff" + bytes(64)
    )  # fmt: skip


def wav(field: int, form: str, value: int) -> bytes:
    """A WAV with one field of its header changed."""
    data = bytearray(seed("wav-float"))
    data[field : field + struct.calcsize(form)] = struct.pack(form, value)
    return bytes(data)


def opus(position: int) -> bytes:
    """An Opus stream whose last page says that `position` samples came before."""
    data = bytearray(seed("opus"))
    at = data.rindex(b"OggS") + 6
    data[at : at + 8] = struct.pack("<q", position)
    return mended(bytes(data))


def npy(header: bytes, version: int = 1, said: int | None = None) -> bytes:
    """An array file with this header."""
    size = len(header) if said is None else said
    return b"\x93NUMPY" + bytes((version, 0)) + size.to_bytes(2 if version == 1 else 4, "little") \
        + header  # fmt: skip


def shaped(shape: str, dtype: str = "<f4") -> bytes:
    """An array file that promises this shape."""
    return npy(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n".encode())


def mp4(field: bytes, skip: int, content: bytes) -> bytes:
    """An MP4 with bytes behind a box's name replaced."""
    data = bytearray(seed("mp4"))
    at = data.index(field) + len(field) + skip
    data[at : at + len(content)] = content
    return bytes(data)


def webm(side: int) -> bytes:
    """A film whose first picture, of VP8, says `side` squared (RFC 6386, section 9.1)."""
    data = bytearray(seed("webm"))
    at = data.index(b"\x9d\x01\x2a") + 3
    data[at : at + 4] = struct.pack("<HH", side, side)
    return bytes(data)


def nested(name: bytes, depth: int) -> bytes:
    """Boxes within boxes."""
    body = b""
    for _ in range(depth):
        body = struct.pack(">I", len(body) + 8) + name + body
    return seed("mp4")[:32] + body


def long_film() -> bytes:
    """180 frames of 1920 x 1080, black: 1.1 GB once they are unpacked."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 1080, 1920, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((1080, 1920, 3), np.uint8), format="rgb24")
        for _ in range(180):
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


def tar_size(size: int) -> bytes:
    """A tar whose first header promises `size` bytes, in base 256."""
    data = bytearray(tar_of({"a.text.txt": b"x", "b.text.txt": b"y"}))
    data[124:136] = b"\x80" + size.to_bytes(11, "big")
    return mended(bytes(data))


def pax(records: bytes) -> bytes:
    """A tar whose first member has these PAX records."""
    head = bytearray(tar_of({"x": records})[: 512 + -(-len(records) // 512) * 512])
    head[156:157] = b"x"
    return mended(bytes(head) + tar_of({"a.text.txt": b"x", "b.text.txt": b"y"}))


def record(key: str, value: str) -> bytes:
    """One PAX record with its length in front."""
    body = f" {key}={value}\n".encode()
    size = len(body)
    while size != len(body) + len(str(size)):
        size = len(body) + len(str(size))
    return f"{size}".encode() + body


IMAGES: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "png 60000 squared": ("png", lambda: png(60000, 60000)),
    "png of few rows": ("png", lambda: png(2**28, 1)),
    "png text": ("png", png_text),
    "png profile": ("png", png_profile),
    "gif 65535 squared": ("gif", lambda: gif(1, 65535)),
    "tiff huge": ("tiff", lambda: tiff(2**31 - 1, 2**31 - 1)),
    "tiff 60000 squared": ("tiff", lambda: tiff(60000, 60000)),
    "tiff loop": ("tiff", lambda: tiff(24, 2**31 - 1, again=True)),
    "webp 16383 squared": ("webp", lambda: webp(16383)),
    "jpeg 65535 squared": ("jpeg", lambda: jpeg(65535)),
    "jpeg progressive": ("jpeg-progressive", lambda: jpeg(65535, "jpeg-progressive")),
    "bmp": ("bmp", lambda: seed("bmp")[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1)
            + seed("bmp")[26:]),
    "ppm": ("ppm", lambda: b"P6 99999 99999 255\n" + bytes(99)),
    "array": ("image-npy", lambda: shaped("(100000, 100000, 3)", "|u1")),
}  # fmt: skip
SOUNDS: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "flac 2^36": ("flac", lambda: flac(2**36 - 1)),
    "wav 2^40": ("wav", lambda: rf64(2**40)),
    "wav of 65535 channels": ("wav", lambda: wav(22, "<H", 65535)),
    "wav at 4 GHz": ("wav", lambda: wav(24, "<I", 2**32 - 1)),
    "opus position": ("opus", lambda: opus(2**62)),
}
ARRAYS: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "header of 10 GB, said": ("npy", lambda: npy(b"{'descr'", 2, 2**32 - 1)),
    "header of 16 MB": ("npy", lambda: npy(b"[" * (16 << 20), 2)),
    "shape of 10 GB": ("npy", lambda: shaped("(2684354560,)")),
    "shape beyond 64 bits": ("npy", lambda: shaped("(4611686018427387904, 8)")),
    "shape of many axes": ("npy", lambda: shaped("(" + "1," * 1500 + ")") + bytes(4)),
    "a long number": ("npy", lambda: shaped("(" + "9" * 3000 + ",)")),
}
FILMS: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "mp4 of 65535 squared": ("mp4", lambda: mp4(b"mp4v", 24, b"\xff\xff\xff\xff")),
    "mp4 of 2^32 frames": ("mp4", lambda: mp4(b"stts", 4, b"\0\0\0\1" + b"\xff" * 8)),
    "mp4 of 2^32 chunks": ("mp4", lambda: mp4(b"stco", 4, b"\xff" * 4)),
    "mp4 of one size 2^32 times": ("mp4", lambda: mp4(b"stsz", 4, b"\0\0\0\1" + b"\xff" * 4)),
    "webm of 16383 squared": ("webm", lambda: webm(16383)),
    "boxes in boxes": ("mp4", lambda: nested(b"moov", 20_000)),
    "gif 65535 squared": ("video-gif", lambda: gif(3, 65535)),
    "gif of many frames": ("video-gif", lambda: gif(20_000, 3000)),
    "avi of 1.1 GB": ("avi", long_film),
}
TARS: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "size of 2^80": ("tar", lambda: tar_size(2**80)),
    "size of 2^62": ("tar", lambda: tar_size(2**62)),
    "pax size": ("tar", lambda: pax(record("size", str(2**62)))),
    "pax size that is negative": ("tar", lambda: pax(record("size", "-512"))),
    "pax path out": ("tar", lambda: pax(record("path", "../../outside.text.txt"))),
    "pax path of 1 MB": ("tar", lambda: pax(record("path", "k" * (1 << 20) + ".text.txt"))),
    "pax record that lies": ("tar", lambda: pax(b"99999999999 path=x.text.txt\n")),
    "pax sparse": ("tar", lambda: pax(record("GNU.sparse.major", "1")
                                      + record("GNU.sparse.realsize", str(2**60)))),
    "pax sparse map": ("tar", lambda: pax(record("GNU.sparse.map", "0,1," * 50_000))),
    "gnu sparse": ("tar", lambda: special_tar(b"S", "s.text.txt")),
    "packed": ("tar", lambda: zlib.compress(bytes(1 << 26), 1)),
}  # fmt: skip
ESCAPES: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "up": ("tar", lambda: tar_of({"../../up.text.txt": b"x", "b.text.txt": b"y"})),
    "absolute": ("tar", lambda: tar_of({"/tmp/absolute.text.txt": b"x", "b.text.txt": b"y"})),
    "symbolic link": ("tar", lambda: special_tar(tarfile.SYMTYPE, "s.text.txt", "/etc/passwd")),
    "hard link": ("tar", lambda: special_tar(tarfile.LNKTYPE, "s.text.txt", "../../x")),
    "device": ("tar", lambda: special_tar(tarfile.CHRTYPE, "s.text.txt")),
    "pipe": ("tar", lambda: special_tar(tarfile.FIFOTYPE, "s.text.txt")),
    "folder": ("tar", lambda: special_tar(tarfile.DIRTYPE, "../folder.text.txt")),
    "manifest": ("manifest", lambda: manifest_json().replace(b"train-000000.tar", b"../../x.tar")),
    "manifest absolute": ("manifest", lambda: manifest_json().replace(b"train-0", b"/etc/x")),
    "manifest nest": ("manifest", lambda: b"[" * 200_000),
    "manifest number": ("manifest", lambda: manifest_json().replace(b"3072", b"9" * 9000)),
}
