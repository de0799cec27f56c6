"""Small real files of every format that a shard may hold, made once."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from outmodal.data.encode import encode_flac, encode_mp4, encode_npy, encode_opus, encode_png

RNG = np.random.default_rng(5)
COLOUR = RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (20, 24, 1), dtype=np.uint16)
TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(2000) / 8000)).astype(np.float32)
FILM = np.stack([np.full((16, 32, 3), value, np.uint8) for value in (10, 90, 170, 250)])


def picture(mode: str, form: str, **options: Any) -> bytes:
    """A picture of noise, as Pillow writes it."""
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def moving(form: str, **options: Any) -> bytes:
    """A picture file of three frames."""
    frames = [Image.fromarray(np.roll(COLOUR, step, 0)) for step in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], duration=40, **options)
    return buffer.getvalue()


def sound(wave: NDArray[Any], form: str, subtype: str | None = None, rate: int = 8000) -> bytes:
    """A sound as libsndfile writes it."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def film(form: str, codec: str) -> bytes:
    """Four frames as FFmpeg writes them."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as out:
        stream = out.add_stream(codec, rate=Fraction(25))
        stream.height, stream.width, stream.pix_fmt = 16, 32, "yuv420p"
        for frame in FILM:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return buffer.getvalue()


def deep_jpeg() -> bytes:
    """A JPEG whose frame header says 16 bits a sample: real files of this kind are lossless."""
    data = picture("L", "JPEG")
    at = data.index(b"\xff\xc0") + 4
    return data[:at] + b"\x10" + data[at + 1 :]


def deep_colour_png() -> bytes:
    """A PNG of 16 bits and three channels, which Pillow reads and cannot write."""
    pixels = RNG.integers(0, 65536, (6, 5, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", 5, 6, 16, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, body) for name, body in parts)


def chunk(name: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


_MADE: Mapping[str, tuple[str, str, Callable[[], bytes]]] = {
    # name: kind, extension, file
    "png": ("image", "png", lambda: encode_png(COLOUR)),
    "png-deep": ("image", "png", lambda: encode_png(DEEP)),
    "png-deep-colour": ("image", "png", deep_colour_png),
    "png-palette": ("image", "png", lambda: picture("P", "PNG")),
    "png-moving": ("image", "png", lambda: moving("PNG")),
    "jpeg": ("image", "jpg", lambda: picture("RGB", "JPEG")),
    "jpeg-progressive": ("image", "jpg", lambda: picture("RGB", "JPEG", progressive=True)),
    "jpeg-cmyk": ("image", "jpg", lambda: picture("CMYK", "JPEG")),
    "jpeg-deep": ("image", "jpg", deep_jpeg),
    "tiff": ("image", "tif", lambda: picture("RGB", "TIFF", compression="tiff_lzw")),
    "tiff-plain": ("image", "tif", lambda: picture("RGB", "TIFF")),
    "webp": ("image", "webp", lambda: picture("RGB", "WEBP")),
    "webp-moving": ("image", "webp", lambda: moving("WEBP")),
    "gif": ("image", "gif", lambda: moving("GIF")),
    "bmp": ("image", "bmp", lambda: picture("P", "BMP")),
    "ppm": ("image", "ppm", lambda: picture("RGB", "PPM")),
    "image-npy": ("image", "npy", lambda: encode_npy(COLOUR)),
    "wav": ("audio", "wav", lambda: sound(np.stack([TONE, -TONE], 1), "WAV")),
    "wav-float": ("audio", "wav", lambda: sound(TONE, "WAV", "FLOAT")),
    "wav-adpcm": ("audio", "wav", lambda: sound(TONE, "WAV", "IMA_ADPCM")),
    "flac": ("audio", "flac", lambda: encode_flac(TONE, 8000)),
    "vorbis": ("audio", "ogg", lambda: sound(TONE, "OGG", "VORBIS")),
    "opus": ("audio", "opus", lambda: encode_opus(TONE, 8000)),
    "mp3": ("audio", "mp3", lambda: sound(TONE, "MP3")),
    "mp4": ("video", "mp4", lambda: encode_mp4(FILM)),
    "webm": ("video", "webm", lambda: film("webm", "libvpx")),
    "avi": ("video", "avi", lambda: film("avi", "mpeg4")),
    "mkv": ("video", "mkv", lambda: film("matroska", "libx264")),
    "video-gif": ("video", "gif", lambda: moving("GIF")),
    "text": ("text", "txt", lambda: "größer als zuvor".encode()),
    "npy": ("series", "npy", lambda: encode_npy(RNG.normal(size=(6, 3)))),
    "vector-npy": ("vector", "npy", lambda: encode_npy(RNG.normal(size=7).astype(np.float32))),
}
NAMES = tuple(_MADE)


@cache
def seed(name: str) -> bytes:
    """The file of this name."""
    return _MADE[name][2]()


def spec_of(name: str) -> tuple[str, str]:
    """Its kind and extension."""
    return _MADE[name][:2]
