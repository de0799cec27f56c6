"""Films: frames from files and from arrays, clips, damage."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outmodal.data.decode import DecodeError, decode
from outmodal.data.encode import encode_mp4, encode_wav
from outmodal.data.film import read_frames
from outmodal.data.manifest import Modality
from outmodal.data.perceptor_inputs import SampledVideoInput, perceptor_input
from outmodal.data.perceptor_inputs.video import SampledVideo, spaced

MP4 = Modality(kind="video", ext="mp4")


def film(frames: int, fps: int = 25, height: int = 48, width: int = 64) -> bytes:
    levels = np.linspace(0, 255, frames).astype(np.uint8)
    moving = np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()
    moving[:, : height // 2, :, 0] = 128
    return encode_mp4(moving, fps)


def build(**settings: object) -> SampledVideo:
    made = SampledVideoInput(size=32, **settings).build(None, "film", None)
    assert isinstance(made, SampledVideo)
    return made


def test_frames_of_a_file_are_those_of_the_decoded_film() -> None:
    data = film(40)
    whole = decode(MP4, data)
    picked = read_frames(data, lambda count, rate: [0, count - 1, 7, 7])
    assert isinstance(whole, np.ndarray)
    np.testing.assert_array_equal(picked, whole[[0, 39, 7, 7]])


@pytest.mark.parametrize("settings", [{}, {"clips": 3, "frames": 2, "crops": 3}])
def test_file_and_array_give_the_same(settings: dict[str, int]) -> None:
    data = film(90, fps=30)
    made = build(**settings)
    assert made.from_bytes(MP4, data, "").equal(made(decode(MP4, data), ""))


def test_rate_is_that_of_the_file() -> None:
    """At 10 frames a second, clips of 2 s lie elsewhere than the default rate would put them."""
    data = film(90, fps=10)
    seen: list[Fraction | None] = []
    read_frames(data, lambda count, rate: [seen.append(rate) or 0])
    assert seen == [Fraction(10)]
    made, told = build(clips=3, frames=2), build(clips=3, frames=2, rate=10.0)
    x = made.from_bytes(MP4, data, "")
    assert x.equal(told(decode(MP4, data), ""))
    assert not x.equal(made(decode(MP4, data), ""))


def test_shapes_of_the_presets() -> None:
    data = film(12)
    for family, shape in (("imagebind", (15, 3, 2, 32, 32)), ("languagebind", (3, 8, 32, 32))):
        made = perceptor_input(family, "video", size=32).build(None, "film", None)
        x = made.from_bytes(MP4, data, "")
        assert x.shape == made.shape == shape
        assert x.isfinite().all()


def test_crops_are_in_order_within_each_clip() -> None:
    """Left, centre and right of a picture that brightens to the right."""
    ramp = np.broadcast_to(np.arange(96, dtype=np.uint8)[:, None], (4, 32, 96, 3))
    x = build(clips=2, frames=2, crops=3)(np.ascontiguousarray(ramp), "")
    means = x.view(2, 3, -1).mean(2)
    assert (means.diff(dim=1) > 0).all()
    torch.testing.assert_close(means[0], means[1])


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_shorter_than_a_clip(frames: int) -> None:
    x = build(clips=5, frames=2).from_bytes(MP4, film(frames), "")
    assert all(clip.equal(x[0]) for clip in x)


@given(st.integers(1, 400), st.integers(1, 3000), st.integers(1, 6), st.integers(1, 9))
@settings(max_examples=200)
def test_picks_lie_in_the_film(count: int, centihertz: int, clips: int, frames: int) -> None:
    made = build(clips=clips, frames=frames)
    picked = made._pick(count, Fraction(centihertz, 100))
    assert len(picked) == clips * frames
    assert 0 <= min(picked) <= max(picked) < count
    assert spaced(0, count, frames)[-1] == (count - 1 if frames > 1 else 0)


def test_a_film_without_frames() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        out.start_encoding()
    with pytest.raises(DecodeError, match=r"no frames|End of file"):
        build().from_bytes(Modality(kind="video", ext="mkv"), buffer.getvalue(), "")


def test_a_file_without_a_film() -> None:
    with pytest.raises(DecodeError):
        build().from_bytes(MP4, encode_wav(np.zeros(800, np.float32), 8000), "")
    with pytest.raises(DecodeError):
        build().from_bytes(MP4, b"not a film", "")


def test_a_cut_file() -> None:
    data = film(40)
    with pytest.raises(DecodeError):
        build().from_bytes(MP4, data[: len(data) // 2], "")


def test_other_arrays_are_refused() -> None:
    for value in (np.zeros((0, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 1))):
        with pytest.raises(DecodeError):
            build()(value, "")
