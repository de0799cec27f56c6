"""Arrays to member bytes, the counterparts of `decode`: the same input gives the same bytes."""

from __future__ import annotations

import io
import zlib
from typing import Any, Literal

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

OPUS_RATES = (8000, 12000, 16000, 24000, 48000)

_OGG_SERIAL = b"outm"
_OPUS_BITRATE = (6000, 256000)  # what libsndfile's compression level 1 and 0 stand for
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def encode_png(image: NDArray[Any]) -> bytes:
    """Encode uint8 [H, W], [H, W, 1 or 3] or uint16 [H, W], [H, W, 1] without loss."""
    return _encode_image(image, "PNG", (np.uint8, np.uint16), optimize=True)


def encode_jpeg(image: NDArray[np.uint8], quality: int = 90) -> bytes:
    """Encode uint8 [H, W] or [H, W, 1 or 3] as JPEG."""
    return _encode_image(image, "JPEG", (np.uint8,), quality=quality)


def _encode_image(
    image: NDArray[Any], form: str, dtypes: tuple[type, ...], **options: Any
) -> bytes:
    flat = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    grey, colour = flat.ndim == 2, flat.ndim == 3 and flat.shape[2] == 3
    if flat.dtype not in dtypes or not (grey or (colour and flat.dtype == np.uint8)):
        raise ValueError(f"cannot write {image.dtype} {list(image.shape)} as {form}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(flat)).save(buffer, form, **options)
    return buffer.getvalue()


def encode_wav(wave: NDArray[np.floating[Any]], rate: int) -> bytes:
    """Encode [T] or [T, channels] in -1..1 as 16-bit WAV."""
    return _encode_sound(wave, rate, "WAV", "PCM_16")


def encode_flac(wave: NDArray[np.floating[Any]], rate: int) -> bytes:
    """Encode [T] or [T, channels] in -1..1 as 16-bit FLAC."""
    return _encode_sound(wave, rate, "FLAC", "PCM_16")


def encode_opus(wave: NDArray[np.floating[Any]], rate: int, bitrate: int = 16000) -> bytes:
    """Encode [T] or [T, channels] in -1..1 as Opus in Ogg.

    `rate` is one of 8000, 12000, 16000, 24000, 48000; `bitrate` is bits a second for each
    channel, 6000 to 256000. The stream's serial number, random in libsndfile, is fixed.
    """
    low, high = _OPUS_BITRATE
    if rate not in OPUS_RATES or not low <= bitrate <= high:
        raise ValueError(f"Opus takes a rate of {OPUS_RATES} and {low}..{high} bit/s")
    level = 1.0 - (bitrate - low) / (high - low)
    return _fixed_serial(_encode_sound(wave, rate, "OGG", "OPUS", compression_level=level))


def _encode_sound(
    wave: NDArray[np.floating[Any]], rate: int, form: str, subtype: str, **options: Any
) -> bytes:
    if not wave.size or not np.isfinite(wave).all():
        raise ValueError("sound must have samples, all of them finite")
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=form, subtype=subtype, **options)
    return buffer.getvalue()


def _fixed_serial(ogg: bytes) -> bytes:
    """Give every page of an Ogg file the same serial number, and its checksum anew (RFC 3533)."""
    out = bytearray(ogg)
    at = 0
    while at < len(out):
        segments = out[at + 26]
        body = sum(out[at + 27 : at + 27 + segments])
        end = at + 27 + segments + body
        out[at + 14 : at + 18] = _OGG_SERIAL
        out[at + 22 : at + 26] = bytes(4)
        out[at + 22 : at + 26] = _ogg_crc(bytes(out[at:end])).to_bytes(4, "little")
        at = end
    return bytes(out)


def _ogg_crc(page: bytes) -> int:
    """CRC-32 with zlib's polynomial, but bits in the other order and no inversion."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)


def encode_npy(array: NDArray[Any]) -> bytes:
    """Encode numbers of any shape as .npy, version 1.0; objects are refused with ValueError."""
    buffer = io.BytesIO()
    contiguous = np.ascontiguousarray(array) if array.ndim else array
    np.lib.format.write_array(buffer, contiguous, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def encode_text(text: str) -> bytes:
    """Encode as UTF-8."""
    return text.encode()


def encode_mp4(
    frames: NDArray[np.uint8], fps: int = 25, codec: Literal["mpeg4", "libx264"] = "mpeg4"
) -> bytes:
    """Encode uint8 [F, H, W, 3] as MP4; height and width must be even."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"cannot write {frames.dtype} {list(frames.shape)} as video")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as out:
        stream = out.add_stream(codec, rate=fps, options={"flags": "+bitexact", "threads": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return buffer.getvalue()
