"""Decoders: what comes out of real files, and that nothing but DecodeError comes out of others."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from outmodal.data import decode as decode_module
from outmodal.data.decode import DecodeError, decode, decode_numbers, find_member
from outmodal.data.describe import describe
from outmodal.data.encode import (
    encode_flac,
    encode_jpeg,
    encode_mp4,
    encode_npy,
    encode_opus,
    encode_png,
    encode_text,
    encode_wav,
)
from outmodal.data.film import read_frames
from outmodal.data.manifest import Kind, Modality
from tests.fuzz.seeds import FILM, film, sound

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)
GREY = COLOUR[..., :1]
DEEP = RNG.integers(0, 65536, (20, 24, 1), dtype=np.uint16)
TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(4000) / 8000)).astype(np.float32)


def spec(kind: Kind, ext: str = "x", **more: Any) -> Modality:
    return Modality(kind=kind, ext=ext, **more)


def picture(mode: str, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def refused(modality: Modality, data: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message) as caught:
        decode(modality, data)
    assert caught.value.reason == str(caught.value)


# images


@pytest.mark.parametrize("image", [COLOUR, GREY, DEEP], ids=["colour", "grey", "deep"])
def test_png_is_lossless(image: NDArray[Any]) -> None:
    again = decode(spec("image", "png"), encode_png(image))
    assert isinstance(again, np.ndarray)
    assert again.dtype == image.dtype
    np.testing.assert_array_equal(again, image)


@pytest.mark.parametrize(
    ("mode", "form", "channels"),
    [
        ("1", "PNG", 1), ("L", "JPEG", 1), ("LA", "PNG", 1), ("P", "PNG", 3), ("P", "GIF", 3),
        ("RGBA", "PNG", 3), ("RGBA", "WEBP", 3), ("CMYK", "JPEG", 3), ("RGB", "BMP", 3),
        ("RGB", "TIFF", 3), ("RGB", "PPM", 3), ("YCbCr", "JPEG", 3),
    ],
)  # fmt: skip
def test_every_mode_becomes_grey_or_rgb(mode: str, form: str, channels: int) -> None:
    image = decode(spec("image"), picture(mode, form))
    assert isinstance(image, np.ndarray)
    assert image.dtype == np.uint8
    assert image.shape == (20, 24, channels)


def test_grey_becomes_rgb_where_the_manifest_says_three() -> None:
    image = decode(spec("image", channels=3), encode_png(GREY))
    np.testing.assert_array_equal(image, np.repeat(GREY, 3, 2))
    refused(spec("image", channels=1), encode_png(COLOUR), "3 channels where the manifest says 1")


def test_size_of_the_manifest_is_height_and_width() -> None:
    decode(spec("image", size=(20, 24)), encode_png(GREY))
    refused(spec("image", size=(24, 20)), encode_png(GREY), r"\[20, 24\].*\[24, 20\]")


def test_jpeg_is_close() -> None:
    smooth = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (20, 1))[..., None]
    again = decode(spec("image", "jpg"), encode_jpeg(smooth))
    assert isinstance(again, np.ndarray)
    assert np.abs(again.astype(int) - smooth).max() < 8


def with_size(png: bytes, width: int, height: int) -> bytes:
    """A PNG whose valid header promises another size."""
    header = png[12:16] + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


@pytest.mark.filterwarnings("error")
def test_bombs_are_refused_before_they_are_opened() -> None:
    refused(
        spec("image"), with_size(encode_png(GREY), 8001, 8000), "8001 x 8000 pixels are too many"
    )
    for side in (10_000, 40_000):
        bomb = with_size(encode_png(GREY), side, side)
        refused(spec("image"), bomb, "not a readable image: DecompressionBomb")


def test_postscript_is_never_run() -> None:
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, "EPS")
    refused(spec("image"), buffer.getvalue(), "not a readable image")


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("dtype", ["<u1", "<u2", ">u2"])
def test_arrays_are_images_of_any_channel_count(channels: int, dtype: str) -> None:
    pixels = RNG.integers(0, 255, (5, 4, channels)).astype(dtype)
    image = decode(spec("image", "npy", channels=channels), encode_npy(pixels))
    assert isinstance(image, np.ndarray)
    assert image.dtype in (np.uint8, np.uint16)
    np.testing.assert_array_equal(image, pixels)


def test_array_images_of_floats_are_refused() -> None:
    refused(spec("image", "npy"), encode_npy(np.zeros((4, 4, 2))), "uint8 or uint16")
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(buffer, "TIFF")
    refused(spec("image", "tif"), buffer.getvalue(), "type F")


# sound


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (encode_wav(TONE, 8000), 1e-4),
        (sound(TONE, "WAV", "FLOAT"), 1e-7),
        (encode_flac(TONE, 8000), 1e-4),
        (sound(TONE, "OGG", "VORBIS"), 0.05),
        (encode_opus(TONE, 8000, 64000), 0.1),
    ],
    ids=["wav", "float", "flac", "vorbis", "opus"],
)
def test_sound_comes_back(data: bytes, tolerance: float) -> None:
    wave = decode(spec("audio"), data)
    assert isinstance(wave, np.ndarray)
    assert wave.dtype == np.float32
    assert wave.shape == TONE.shape
    assert np.abs(wave - TONE)[200:-200].max() < tolerance


def test_mp3_comes_back() -> None:
    wave = decode(spec("audio", sample_rate=8000), sound(TONE, "MP3"))
    assert isinstance(wave, np.ndarray)
    assert abs(len(wave) - len(TONE)) < 2000
    assert 0.1 < np.abs(wave).max() < 0.5


def test_channels_are_averaged() -> None:
    both = np.stack([TONE, np.zeros_like(TONE)], 1)
    mean = np.asarray(decode(spec("audio"), sound(both, "WAV", "FLOAT")))
    np.testing.assert_allclose(mean, TONE / np.float32(2), atol=1e-7)


@pytest.mark.parametrize("rate", [4000, 11025, 16000, 44100])
def test_resampling_keeps_pitch_and_length(rate: int) -> None:
    wave = decode(spec("audio", sample_rate=rate), encode_wav(TONE, 8000))
    assert isinstance(wave, np.ndarray)
    assert abs(len(wave) - len(TONE) * rate / 8000) <= 1
    peak = np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave)
    assert peak == pytest.approx(440, abs=4)
    assert np.abs(wave[200:-200]).max() == pytest.approx(0.3, abs=0.02)


def test_broken_sound_is_refused() -> None:
    bad = TONE.copy()
    bad[7] = np.nan
    refused(spec("audio"), sound(bad, "WAV", "FLOAT"), "not finite")
    refused(spec("audio"), sound(TONE[:0], "WAV"), "no samples")
    refused(spec("audio"), encode_wav(TONE, 8000)[:-1000], "truncated WAV")
    refused(spec("audio"), encode_flac(TONE, 8000)[:-500], "of 4000|readable")
    refused(spec("audio"), b"RIFF", "truncated|readable")
    whole = sound(TONE, "RF64")
    assert np.shape(decode(spec("audio"), whole)) == TONE.shape
    refused(spec("audio"), whole[:-1000], "truncated WAV")


def test_sound_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refused(spec("audio", sample_rate=2**30), encode_wav(TONE, 8000), "cannot resample")
    monkeypatch.setattr(decode_module, "MAX_AUDIO_SAMPLES", 3999)
    refused(spec("audio"), encode_wav(TONE, 8000), "too many")


# film


@pytest.mark.parametrize(
    "data",
    [encode_mp4(FILM), film("webm", "libvpx"), film("matroska", "libx264"), film("avi", "mpeg4")],
    ids=["mp4", "webm", "mkv", "avi"],
)
def test_film_comes_back(data: bytes) -> None:
    frames = decode(spec("video", size=(16, 32)), data)
    assert isinstance(frames, np.ndarray)
    assert frames.dtype == np.uint8
    assert frames.shape == FILM.shape
    assert np.abs(frames.astype(int) - FILM).max() < 12


def test_film_of_another_size_and_too_large_film_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused(spec("video", size=(32, 16)), encode_mp4(FILM), r"size \[16, 32\]")
    monkeypatch.setattr(decode_module, "MAX_VIDEO_BYTES", FILM.nbytes - 1)
    refused(spec("video"), encode_mp4(FILM), "more than")
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 16 * 32 - 1)
    refused(spec("video"), encode_mp4(FILM), "readable")


def test_a_film_that_would_be_decoded_for_hours_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encode_mp4(FILM)
    monkeypatch.setattr(decode_module, "MAX_FILM_RATE", 0)
    monkeypatch.setattr(decode_module, "MAX_FILM_PIXELS", 3 * 16 * 32)
    with pytest.raises(DecodeError, match="pixels of frames in"):
        read_frames(data, lambda count, _: (0,))
    monkeypatch.setattr(decode_module, "MAX_FILM_RATE", 1)
    assert len(read_frames(data, lambda count, _: (0, count - 1))) == 2


def test_sound_is_no_film() -> None:
    refused(spec("video"), encode_opus(TONE, 8000), "no video stream")


@pytest.mark.parametrize("form", ["ffconcat version 1.0\nfile '{}'\n", "#EXTM3U\n#EXTINF:1,\n{}\n"])
def test_playlists_open_no_other_file(tmp_path: Path, form: str) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(encode_mp4(FILM))
    refused(spec("video"), form.format(secret).encode(), "not readable video")


# text and arrays


def test_text_comes_back() -> None:
    assert decode(spec("text"), encode_text("größer ")) == "größer "
    assert decode(spec("text"), b"\xef\xbb\xbfx") == "x"
    refused(spec("text"), b"ab\xff", "not UTF-8 at byte 2")
    refused(spec("text"), b" \n", "empty text")


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "<i8", "|u1", "|b1"])
def test_numbers_of_every_type_become_float32(dtype: str) -> None:
    array = RNG.integers(0, 2, (6, 3)).astype(dtype)
    for layout in (array, np.asfortranarray(array)):
        series = decode(spec("series", "npy", shape=(6, 3)), encode_npy(layout))
        assert isinstance(series, np.ndarray)
        assert series.dtype == np.float32
        np.testing.assert_array_equal(series, array.astype(np.float32))


def test_fortran_order_comes_back() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    buffer = io.BytesIO()
    np.save(buffer, np.asfortranarray(array))
    np.testing.assert_array_equal(decode(spec("series"), buffer.getvalue()), array)


def test_axes_are_checked() -> None:
    one, two, three = (encode_npy(np.ones(shape)) for shape in ((5,), (5, 2), (5, 2, 2)))
    assert np.shape(decode(spec("series"), one)) == (5, 1)
    assert np.shape(decode(spec("series", shape=(-1, 2)), two)) == (5, 2)
    assert np.shape(decode(spec("vector", shape=(5,)), one)) == (5,)
    refused(spec("series", shape=(4, 2)), two, r"shape \[5, 2\] where the manifest says \[4, 2\]")
    refused(spec("series"), three, "a series must be")
    refused(spec("vector"), two, "a vector must be")
    refused(spec("vector", shape=(5, 1)), one, "manifest says")
    refused(spec("vector"), encode_npy(np.ones(())), "a vector must be")
    refused(spec("series"), encode_npy(np.ones((0, 3))), "a series must be")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    refused(spec("vector"), encode_npy(np.array([1.0, value])), "not finite")


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "data",
    [
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", b"\x80\x04N."),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,)}\n", bytes(8)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\n", bytes(8)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}\n", bytes(13)),
        npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}\n", bytes(4)),
        npy("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,)}\n", bytes(8)),
        npy("{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}\n", bytes(8)),
        npy("{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,)}\n", bytes(4)),
        npy("(" * 4000),
        npy("[" * 65000),
        npy("__import__('os').system('true')\n"),
        b"\x93NUMPY\x01\x00\xff\xff{}",
        b"\x93NUMPY\x09\x00\x01\x00x",
        b"\x93NUM",
    ],
)
def test_hostile_arrays_are_refused(data: bytes) -> None:
    for modality in (spec("series", "npy"), spec("vector", "npy")):
        with pytest.raises(DecodeError):
            decode(modality, data)


def test_pickles_are_not_read() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    refused(spec("vector"), buffer.getvalue(), "plain numbers")
    with pytest.raises(ValueError, match="allow_pickle"):
        encode_npy(np.array([{"a": 1}], object))


def test_targets_have_any_shape() -> None:
    for shape in ((), (3,), (2, 2, 2)):
        assert decode_numbers(encode_npy(np.ones(shape))).shape == shape
    with pytest.raises(DecodeError, match="finite"):
        decode_numbers(encode_npy(np.array(np.nan)))


# members


def test_the_member_of_a_modality() -> None:
    png = spec("image", "png")
    assert find_member(png, "image", {"image.png": b"1", "cls": b"2"}) == b"1"
    assert find_member(png, "image", {"image2.png": b"1", "cls": b"2"}) is None
    with pytest.raises(DecodeError, match=r"two members.*image\.jpg, image\.png"):
        find_member(png, "image", {"image.png": b"1", "image.jpg": b"2"})
    with pytest.raises(DecodeError, match=r"image\.jpg where the manifest says image\.png"):
        find_member(png, "image", {"image.jpg": b"1"})


@pytest.mark.parametrize("kind", ["image", "video", "audio", "text", "series", "vector"])
@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 100, b"\x89PNG\r\n\x1a\n", b"OggS"])
def test_rubbish_is_refused_by_every_kind(kind: Kind, data: bytes) -> None:
    if kind == "text" and data in (b"\0", b"OggS"):
        return  # that is text
    with pytest.raises(DecodeError):
        decode(spec(kind), data)


REAL: dict[str, tuple[Kind, bytes]] = {
    "png": ("image", encode_png(COLOUR)),
    "deep": ("image", encode_png(DEEP)),
    "jpg": ("image", encode_jpeg(COLOUR)),
    "webp": ("image", picture("RGB", "WEBP")),
    "tif": ("image", picture("RGB", "TIFF", compression="tiff_lzw")),
    "bmp": ("image", picture("P", "BMP")),
    "gif": ("image", picture("P", "GIF")),
    "ppm": ("image", picture("RGB", "PPM")),
    "wav": ("audio", sound(TONE, "WAV", "FLOAT")),
    "flac": ("audio", encode_flac(TONE, 8000)),
    "vorbis": ("audio", sound(TONE, "OGG", "VORBIS")),
    "opus": ("audio", encode_opus(TONE, 8000)),
    "mp4": ("video", encode_mp4(FILM)),
    "webm": ("video", film("webm", "libvpx")),
    "avi": ("video", film("avi", "mpeg4")),
    "txt": ("text", "größer".encode()),
    "npy": ("series", encode_npy(RNG.normal(size=(6, 3)))),
}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_mutated_files_raise_decode_error_or_decode(name: str, draw: st.DataObject) -> None:
    kind, data = REAL[name]
    content = bytearray(data)
    # The first bytes hold the headers that decide how much is allocated.
    near = st.integers(0, min(len(content) - 1, 99))
    place = near | st.integers(0, len(content) - 1)
    for at, value in draw.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=12)):
        content[at] = value
    cut = draw.draw(st.none() | place)
    content = content[:cut] + content[cut:][draw.draw(st.integers(0, 64)) :] if cut else content
    if draw.draw(st.booleans()):
        content = content[: draw.draw(place)]
    reasons: list[str] = []
    for read in (decode_it, describe_it):
        try:
            read(kind, bytes(content))
        except DecodeError as error:
            reasons.append(error.reason)
    assert all(reasons)


def decode_it(kind: Kind, data: bytes) -> None:
    value = decode(spec(kind, sample_rate=16000 if kind == "audio" else None), data)
    assert len(value)
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        assert np.isfinite(value).all()


def describe_it(kind: Kind, data: bytes) -> None:
    assert all(isinstance(number, int | float) for number in describe(kind, "x", data).values())


@pytest.mark.parametrize(
    ("kind", "ext", "data", "facts"),
    [
        ("image", "png", encode_png(COLOUR), {"height": 20, "width": 24, "channels": 3}),
        ("image", "npy", encode_npy(DEEP[..., 0]), {"height": 20, "width": 24, "channels": 1}),
        ("audio", "ogg", encode_opus(TONE, 8000), {"seconds": 0.5, "sample_rate": 8000}),
        ("video", "mp4", encode_mp4(FILM), {"height": 16, "width": 32, "seconds": 0.16}),
        ("text", "txt", "größer".encode(), {"characters": 6}),
        ("series", "npy", encode_npy(np.ones((5, 3))), {"time": 5, "channels": 3}),
        ("vector", "npy", encode_npy(np.ones(7)), {"dim": 7}),
    ],
)
def test_headers_tell_the_facts(kind: Kind, ext: str, data: bytes, facts: dict[str, float]) -> None:
    assert describe(kind, ext, data) == facts


# encoders


@pytest.mark.parametrize(
    "encode",
    [
        lambda: encode_opus(TONE, 8000),
        lambda: encode_flac(TONE, 8000),
        lambda: encode_wav(TONE, 8000),
        lambda: encode_png(DEEP),
        lambda: encode_mp4(FILM),
        lambda: encode_npy(TONE),
    ],
    ids=["opus", "flac", "wav", "png", "mp4", "npy"],
)
def test_encoding_twice_gives_the_same_bytes(encode: Callable[[], bytes]) -> None:
    assert encode() == encode()


def test_opus_pages_keep_a_valid_checksum() -> None:
    """FFmpeg drops pages whose checksum is wrong, so all samples must come through it."""
    long = np.tile(TONE, 20)
    with av.open(io.BytesIO(encode_opus(long, 8000))) as file:
        frames = list(file.decode(audio=0))
    assert sum(frame.samples for frame in frames) >= len(long) * 6 - 48000 // 50


def test_opus_spends_the_bits_it_is_given() -> None:
    noise = RNG.normal(size=8000).astype(np.float32) * 0.1
    small, large = (len(encode_opus(noise, 8000, bitrate)) for bitrate in (8000, 64000))
    assert small * 3 < large


@pytest.mark.parametrize(
    "encode",
    [
        lambda: encode_png(np.zeros((4, 4), np.float32)),
        lambda: encode_png(np.zeros((4, 4, 2), np.uint8)),
        lambda: encode_png(np.zeros((4, 4, 3), np.uint16)),
        lambda: encode_jpeg(DEEP),  # type: ignore[arg-type]
        lambda: encode_opus(TONE, 11025),
        lambda: encode_opus(TONE, 8000, bitrate=1000),
        lambda: encode_wav(TONE * np.nan, 8000),
        lambda: encode_wav(TONE[:0], 8000),
        lambda: encode_mp4(COLOUR),
    ],
)
def test_what_a_format_cannot_hold_is_refused(encode: Callable[[], bytes]) -> None:
    with pytest.raises(ValueError, match=r"cannot write|Opus takes|must have"):
        encode()
