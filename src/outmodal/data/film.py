"""Single frames of a film: those that a rule picks once length and frame rate are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from outmodal.data.decode import MAX_PIXELS, MAX_VIDEO_BYTES, DecodeError, check_film, open_video

Frames = NDArray[np.uint8]
Picker = Callable[[int, Fraction | None], Sequence[int]]
"""(number of frames, frames a second or None where the file does not say) -> frame numbers."""


def read_frames(data: bytes, pick: Picker) -> Frames:
    """Decode the picked frames of a film, uint8 [len(picked), H, W, 3].

    Only picked frames are kept: a film may be far larger than what `decode` would hold.

    Raises:
        DecodeError: Not a film, no frames, a corrupt one, or more than MAX_VIDEO_BYTES picked.
    """
    expected, rate = _survey(data)
    picked = list(pick(expected, rate)) if expected else []
    found, total = _decode(data, set(picked))
    if not total:
        raise DecodeError("no frames")
    if total != expected:  # packets that hold no frame of their own, or several
        picked = list(pick(total, rate))
        found, _ = _decode(data, set(picked))
    if len({frame.shape for frame in found.values()}) > 1:
        raise DecodeError("frames differ in size")
    if sum(found[i].nbytes for i in picked) > MAX_VIDEO_BYTES:  # a rule may repeat frames
        raise DecodeError(f"more than {MAX_VIDEO_BYTES} bytes of frames")
    return np.stack([found[i] for i in picked])


def _survey(data: bytes) -> tuple[int, Fraction | None]:
    """Count packets, most often one a frame, without decoding; and read the mean frame rate."""
    with open_video(data) as file:
        stream = file.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        packets = sum(1 for packet in file.demux(stream) if packet.size and not packet.is_discard)
    return packets, Fraction(rate) if rate else None


def _decode(data: bytes, wanted: set[int]) -> tuple[dict[int, Frames], int]:
    """Return the wanted frames by number, and how many frames there are."""
    found: dict[int, Frames] = {}
    number, held, pixels = -1, 0, 0
    with open_video(data) as file:
        context = file.streams.video[0].codec_context
        context.options = {"max_pixels": str(MAX_PIXELS)}
        context.thread_count = 1  # loader workers are the parallelism
        for number, frame in enumerate(file.decode(video=0)):
            if frame.is_corrupt:
                raise DecodeError(f"frame {number} is corrupt")
            pixels += frame.width * frame.height
            check_film(pixels, len(data))
            if number not in wanted:
                continue
            held += frame.width * frame.height * 3
            if held > MAX_VIDEO_BYTES:
                raise DecodeError(f"more than {MAX_VIDEO_BYTES} bytes of frames")
            found[number] = frame.to_ndarray(format="rgb24")
    return found, number + 1
