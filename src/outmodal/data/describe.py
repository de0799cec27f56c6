"""What a member holds, from its header: lengths, sizes, rates. Sound and pictures stay encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from outmodal.data.decode import (
    COLOUR_MODES,
    DecodeError,
    open_audio,
    open_image,
    open_video,
    read_npy,
)

Facts = Mapping[str, float]
"""Name -> number; the names depend on the kind alone."""


def describe(kind: str, ext: str, data: bytes) -> Facts:
    """Return the numbers that a member's header gives.

    image: height, width, channels. video: height, width, seconds. audio: seconds, sample_rate.
    text: characters. series: time, channels. vector: dim. Raises DecodeError.
    """
    if kind == "image" and ext == "npy":
        return _axes(data, ("height", "width", "channels"))
    return _DESCRIBERS[kind](data)


def _image(data: bytes) -> Facts:
    with open_image(data) as image:
        channels = 3 if image.mode in COLOUR_MODES else 1
        return {"height": image.height, "width": image.width, "channels": channels}


def _video(data: bytes) -> Facts:
    with open_video(data) as file:
        context = file.streams.video[0].codec_context
        seconds = (file.duration or 0) / 1e6  # FFmpeg counts in microseconds
        return {"height": context.height, "width": context.width, "seconds": seconds}


def _audio(data: bytes) -> Facts:
    with open_audio(data) as file:
        return {"seconds": file.frames / file.samplerate, "sample_rate": file.samplerate}


def _text(data: bytes) -> Facts:
    return {"characters": len(data.decode("utf-8", "replace"))}


def _axes(data: bytes, names: tuple[str, ...]) -> Facts:
    """Name the axes of an array; a last axis may be left out, it then has length 1."""
    shape = read_npy(data).shape
    if shape and len(shape) == len(names) - 1:
        shape = (*shape, 1)
    if len(shape) != len(names):
        raise DecodeError(f"expected axes {list(names)}, got shape {list(shape)}")
    return dict(zip(names, shape, strict=True))


_DESCRIBERS: dict[str, Callable[[bytes], Facts]] = {
    "image": _image,
    "video": _video,
    "audio": _audio,
    "text": _text,
    "series": lambda data: _axes(data, ("time", "channels")),
    "vector": lambda data: _axes(data, ("dim",)),
}
