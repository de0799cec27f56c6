"""Member bytes to arrays: one decoder for each kind of modality, and one error for all of them.

Bytes come from shards that may be damaged or hostile. Every decoder knows the size of what it is
about to make before it makes it, opens nothing but the bytes, and raises DecodeError, nothing
else, for what it cannot give back whole.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image
from scipy.signal import resample_poly

from outmodal.data.decode_error import BROKEN, DecodeError, brief
from outmodal.data.decode_npy import read_npy
from outmodal.data.jpeg import decode_jpeg, read_header
from outmodal.data.manifest import Modality

__all__ = [
    "COLOUR_MODES",
    "GREY_MODES",
    "MAX_AUDIO_RATE",
    "MAX_AUDIO_SAMPLES",
    "MAX_FILM_PIXELS",
    "MAX_FILM_RATE",
    "MAX_PIXELS",
    "MAX_VIDEO_BYTES",
    "WIDE_MODES",
    "DecodeError",
    "check_film",
    "check_image",
    "check_pixels",
    "decode",
    "decode_channels",
    "decode_numbers",
    "find_member",
    "open_audio",
    "open_image",
    "open_video",
    "read_npy",
]

MAX_PIXELS = 64_000_000
"""Pixels of one image or frame."""
MAX_VIDEO_BYTES = 1 << 30
"""Bytes of one decoded video."""
MAX_FILM_PIXELS = 1 << 31
"""Pixels, over all frames, that a film of any size in bytes may have to be decoded for."""
MAX_FILM_RATE = 10_000
"""Pixels that it may have beyond those for each of its bytes: slides of a talk stay below."""
MAX_AUDIO_SAMPLES = 1 << 26
"""Samples of one clip, all channels: more than two hours at 8 kHz."""
MAX_AUDIO_RATE = 768_000

_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
# Only formats whose demuxers read nothing but the stream: no playlists, no lists of files.
_VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,gif"
_BLOCK = 1 << 16

_IMAGE_ERRORS = (*BROKEN, Image.DecompressionBombError, Image.DecompressionBombWarning)
_AUDIO_ERRORS = (*BROKEN, soundfile.SoundFileError)
_VIDEO_ERRORS = (*BROKEN, av.FFmpegError)

GREY_MODES = ("1", "L", "LA", "La")
WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


def find_member(spec: Modality, name: str, members: Mapping[str, bytes]) -> bytes | None:
    """Return the bytes of modality `name` in a sample, None if the sample lacks it.

    Raises DecodeError if there are two, or one of another file type than the manifest says.
    """
    found = [suffix for suffix in members if suffix.partition(".")[0] == name]
    if not found:
        return None
    if len(found) > 1:
        raise DecodeError(f"two members for modality '{name}': {', '.join(sorted(found))}")
    if found[0] != f"{name}.{spec.ext}":
        raise DecodeError(f"member {found[0]} where the manifest says {name}.{spec.ext}")
    return members[found[0]]


def decode(spec: Modality, data: bytes) -> NDArray[Any] | str:
    """Decode one member.

    Returns, by kind:
        image: uint8 or uint16 [H, W, C]; grey is C=1, palette, CMYK and alpha become RGB.
        video: uint8 [F, H, W, 3].
        audio: float32 [T], the mean of the channels, at `spec.sample_rate` if that is set.
        text: str.
        series: float32 [T, C].
        vector: float32 [d].

    Raises:
        DecodeError: Corrupt, empty, too large, of another shape or type than the manifest
            says, or with values that are not finite.
    """
    if not data:
        raise DecodeError("empty member")
    return _DECODERS[spec.kind](spec, data)


def decode_numbers(data: bytes) -> NDArray[np.float32]:
    """Decode a .npy of finite numbers of any shape, a regression target for instance.

    Raises DecodeError as `decode` does.
    """
    return _finite(read_npy(data))


def _image(spec: Modality, data: bytes) -> NDArray[Any]:
    pixels = read_npy(data) if spec.ext == "npy" else _picture(data, spec.channels)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.dtype not in (np.uint8, np.uint16):
        raise DecodeError(
            f"an image must be uint8 or uint16 [H, W, C], got {pixels.dtype} {list(pixels.shape)}"
        )
    check_image(spec, *pixels.shape)
    return pixels


def check_image(spec: Modality, height: int, width: int, channels: int) -> None:
    """Raise DecodeError unless a decoded image is what the manifest says."""
    check_pixels(height, width)
    _check_size(spec, height, width)
    if spec.channels is not None and channels != spec.channels:
        raise DecodeError(f"{channels} channels where the manifest says {spec.channels}")


def check_pixels(height: int, width: int) -> None:
    """Raise DecodeError for more than MAX_PIXELS."""
    if height * width > MAX_PIXELS:
        raise DecodeError(f"{width} x {height} pixels are too many")


@contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """Open an image of at most MAX_PIXELS; what its parser raises inside becomes DecodeError."""
    try:
        with Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS) as image:
            check_pixels(image.height, image.width)
            yield image
    except _IMAGE_ERRORS as error:
        raise DecodeError(f"not a readable image: {brief(error)}") from None


def _picture(data: bytes, channels: int | None) -> NDArray[Any]:
    """Decode an image file; a grey one becomes RGB where the manifest asks for three channels."""
    pixels = _fast_jpeg(data)
    if pixels is None:
        with open_image(data) as image:
            image.load()
            pixels = _pixels(image)
    return np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 and channels == 3 else pixels


def _fast_jpeg(data: bytes) -> NDArray[np.uint8] | None:
    """Return uint8 [H, W] or [H, W, 3]; None for what Pillow has to read."""
    header = read_header(data)
    if header is None:
        return None
    check_pixels(header.height, header.width)
    pixels = decode_jpeg(data, header)
    if pixels is None:
        return None
    return (pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).copy()


def _pixels(image: Image.Image) -> NDArray[Any]:
    """Return uint8 [H, W], uint16 [H, W] or uint8 [H, W, 3]."""
    if image.mode in GREY_MODES:
        return np.array(image.convert("L"))
    if image.mode in COLOUR_MODES:
        return np.array(image.convert("RGB"))
    if image.mode not in WIDE_MODES:
        raise DecodeError(f"pixels of type {image.mode} are not supported; store uint8 or uint16")
    wide = np.array(image)
    if wide.min() < 0 or wide.max() > np.iinfo(np.uint16).max:
        raise DecodeError("pixels do not fit into 16 bits")
    return wide.astype(np.uint16)


def _check_size(spec: Modality, height: int, width: int) -> None:
    if not height or not width:
        raise DecodeError("no pixels")
    if spec.size is not None and spec.size != (height, width):
        raise DecodeError(f"size {[height, width]} where the manifest says {list(spec.size)}")


@contextmanager
def open_audio(data: bytes) -> Iterator[soundfile.SoundFile]:
    """Open a sound within the limits; what libsndfile raises inside becomes DecodeError."""
    if _is_cut_wav(data):
        raise DecodeError("truncated WAV")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if not 1 <= file.samplerate <= MAX_AUDIO_RATE:
                raise DecodeError(f"sample rate {file.samplerate}")
            if file.frames * file.channels > MAX_AUDIO_SAMPLES:
                raise DecodeError(f"{file.frames} x {file.channels} samples are too many")
            yield file
    except _AUDIO_ERRORS as error:
        raise DecodeError(f"not readable audio: {brief(error)}") from None


def decode_channels(data: bytes) -> tuple[NDArray[np.float32], int]:
    """Decode a sound without mixing or resampling: float32 [channels, T], and its rate in Hz.

    Raises DecodeError as `decode` does.
    """
    with open_audio(data) as file:
        sound = np.ascontiguousarray(_read_blocks(file, lambda block: block).T)
        rate = int(file.samplerate)
    if not np.isfinite(sound).all():
        raise DecodeError("samples that are not finite")
    return sound, rate


def _audio(spec: Modality, data: bytes) -> NDArray[np.float32]:
    with open_audio(data) as file:
        wave, rate = _read_blocks(file, lambda block: block.mean(1)), int(file.samplerate)
    if not np.isfinite(wave).all():
        raise DecodeError("samples that are not finite")
    if spec.sample_rate is not None and spec.sample_rate != rate:
        wave = _resample(wave, rate, spec.sample_rate)
    return wave


def _is_cut_wav(data: bytes) -> bool:
    """libsndfile plays what is there of a WAV; 0xFFFFFFFF stands for an unknown length.

    RF64 (EBU Tech 3306) has its length, of 64 bits, in a chunk `ds64` behind the name.
    """
    if data[:4] == b"RF64" and data[12:16] == b"ds64":
        return len(data) + 1 < int.from_bytes(data[20:28], "little") + 8
    said = int.from_bytes(data[4:8], "little")
    return data[:4] == b"RIFF" and said != 0xFFFFFFFF and len(data) + 1 < said + 8


def _read_blocks(
    file: soundfile.SoundFile, mix: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Read block by block: a broken header may promise far more than the file holds."""
    blocks, promised = [], file.frames
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        with np.errstate(over="ignore", invalid="ignore"):
            blocks.append(mix(block))
    wave = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    if not len(wave):
        raise DecodeError("no samples")
    if len(wave) < promised:
        raise DecodeError(f"ends after {len(wave)} of {promised} samples")
    return wave


def _resample(wave: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """Change the sample rate by polyphase filtering with the smallest whole factors."""
    common = math.gcd(rate, wanted)
    up, down = wanted // common, rate // common
    if len(wave) * up // down > MAX_AUDIO_SAMPLES or max(up, down) > MAX_AUDIO_RATE:
        raise DecodeError(f"cannot resample {len(wave)} samples from {rate} to {wanted} Hz")
    resampled: NDArray[np.float32] = resample_poly(wave, up, down).astype(np.float32)
    if not np.isfinite(resampled).all():
        raise DecodeError("samples that are not finite after resampling")
    return resampled


@contextmanager
def open_video(data: bytes) -> Iterator[av.container.InputContainer]:
    """Open a film that has pictures; what FFmpeg raises inside becomes DecodeError."""
    try:
        options = {"format_whitelist": _VIDEO_FORMATS, "protocol_whitelist": "none"}
        with av.open(io.BytesIO(data), "r", options=options) as file:
            if not file.streams.video:
                raise DecodeError("no video stream")
            yield file
    except _VIDEO_ERRORS as error:
        raise DecodeError(f"not readable video: {brief(error)}") from None


def _video(spec: Modality, data: bytes) -> NDArray[np.uint8]:
    frames: list[NDArray[np.uint8]] = []
    with open_video(data) as file:
        context = file.streams.video[0].codec_context
        context.options = {"max_pixels": str(MAX_PIXELS)}
        context.thread_count = 1  # loader workers are the parallelism
        for frame in file.decode(video=0):
            _take_frame(frames, frame)
    if not frames:
        raise DecodeError("no frames")
    _check_size(spec, *frames[0].shape[:2])
    film: NDArray[np.uint8] = np.empty((len(frames), *frames[0].shape), np.uint8)
    for number in range(len(frames)):  # each is let go at once: a film is not held twice
        film[number], frames[number] = frames[number], film[:0]
    return film


def _take_frame(frames: list[NDArray[np.uint8]], frame: av.VideoFrame) -> None:
    if frame.is_corrupt:
        raise DecodeError(f"frame {len(frames)} is corrupt")
    if frame.width * frame.height * 3 * (len(frames) + 1) > MAX_VIDEO_BYTES:
        raise DecodeError(f"more than {MAX_VIDEO_BYTES} bytes of frames")
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    if frames and pixels.shape != frames[0].shape:
        raise DecodeError(f"frame {len(frames)} has another size than the first")
    frames.append(pixels)


def check_film(pixels: int, size: int) -> None:
    """Raise DecodeError where a film of `size` bytes would be decoded for too long.

    Args:
        pixels: Of all frames so far, kept or not.
        size: Bytes of the file.
    """
    if pixels > MAX_FILM_PIXELS + MAX_FILM_RATE * size:
        raise DecodeError(f"more than {pixels} pixels of frames in {size} bytes")


def _text(_spec: Modality, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DecodeError(f"not UTF-8 at byte {error.start}") from None
    if not text.strip():
        raise DecodeError("empty text")
    return text


def _series(spec: Modality, data: bytes) -> NDArray[np.float32]:
    array = _finite(read_npy(data))
    if array.ndim == 1:
        array = array[:, None]
    return _shaped(spec, array, 2, "a series must be [time, channels]")


def _vector(spec: Modality, data: bytes) -> NDArray[np.float32]:
    return _shaped(spec, _finite(read_npy(data)), 1, "a vector must be [dim]")


def _shaped(
    spec: Modality, array: NDArray[np.float32], ndim: int, rule: str
) -> NDArray[np.float32]:
    """Check axes, and their lengths where the manifest sets them."""
    shape = list(array.shape)
    if array.ndim != ndim or not array.size:
        raise DecodeError(f"{rule}, got {shape}")
    wanted = spec.shape
    if wanted is not None and (
        len(wanted) != ndim or any(w not in (-1, n) for w, n in zip(wanted, shape, strict=True))
    ):
        raise DecodeError(f"shape {shape} where the manifest says {list(wanted)}")
    return array


def _finite(array: NDArray[Any]) -> NDArray[np.float32]:
    """Convert to float32; a value beyond its range counts as not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = array.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise DecodeError("values that are not finite")
    return numbers


_DECODERS: dict[str, Callable[[Modality, bytes], NDArray[Any] | str]] = {
    "image": _image,
    "video": _video,
    "audio": _audio,
    "text": _text,
    "series": _series,
    "vector": _vector,
}
