"""simplejpeg's pixels are Pillow's, and what it does not read is Pillow's word."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from outmodal.data import jpeg
from outmodal.data.decode import DecodeError, decode
from outmodal.data.jpeg import decode_jpeg, read_header
from outmodal.data.manifest import Modality
from tests.data.pictures import as_file, smooth

JPG = Modality(kind="image", ext="jpg")
FILE = as_file(smooth(75, 101), quality=90)


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (3, {"quality": 90, "subsampling": "4:2:0"}),
        (3, {"quality": 75, "subsampling": "4:4:4"}),
        (3, {"quality": 95, "subsampling": "4:2:2", "progressive": True}),
        (3, {"quality": 85, "optimize": True, "restart_marker_rows": 1}),
        (1, {"quality": 85}),
        (1, {"quality": 85, "progressive": True}),
    ],
)
def test_pixels_are_pillows(channels: int, options: dict[str, object]) -> None:
    data = as_file(smooth(75, 101, channels), **options)
    header = read_header(data)
    assert header == (75, 101, channels)
    pixels = decode_jpeg(data, header)
    assert pixels is not None
    wanted = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(pixels.squeeze(), wanted)
    np.testing.assert_array_equal(decode(JPG, data).squeeze(), wanted)  # type: ignore[union-attr]


def test_orientation_is_not_applied_by_either() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert read_header(as_file(smooth(75, 101), exif=exif)) == (75, 101, 3)


def test_what_pillow_has_to_read() -> None:
    wide = bytearray(FILE)
    wide[wide.index(b"\xff\xc0") + 4] = 12  # bits
    others = {
        "CMYK": as_file(smooth(20, 20), mode="CMYK"),
        "PNG": as_file(smooth(20, 20), "PNG"),
        "12 bits": bytes(wide),
        "no scan": FILE[: FILE.index(b"\xff\xda")],
        "start only": b"\xff\xd8\xff",
        "nothing": b"",
    }
    assert {name for name, data in others.items() if read_header(data)} == set()
    cmyk = decode(JPG, others["CMYK"])
    assert not isinstance(cmyk, str)
    assert cmyk.shape == (20, 20, 3)


def test_truncated_files_are_refused_in_pillows_words(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = [FILE[: len(FILE) // 2], FILE[:-2], FILE[:100], FILE[: FILE.index(b"\xff\xda") + 20]]

    def words() -> list[str]:
        found = []
        for data in cuts:
            with pytest.raises(DecodeError) as caught:
                decode(JPG, data)
            found.append(caught.value.reason)
        return found

    fast = words()
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert fast == words()


def test_without_simplejpeg_pillow_reads_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = decode(JPG, FILE)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert read_header(FILE) is None
    np.testing.assert_array_equal(fast, decode(JPG, FILE))


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    bomb = bytearray(FILE)
    place = bomb.index(b"\xff\xc0")
    bomb[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(DecodeError, match="65535 x 65535 pixels are too many"):
        decode(JPG, bytes(bomb))


def test_scans_without_end_are_not_decoded_here() -> None:
    data = as_file(smooth(20, 20), progressive=True)
    place = data.rindex(b"\xff\xda")
    scan = data[place:-2]
    assert read_header(data) is not None
    assert read_header(data[:-2] + scan * jpeg.MAX_SCANS + data[-2:]) is None


def test_results_of_one_thread_share_a_buffer_and_decoded_members_do_not() -> None:
    other = as_file(255 - smooth(75, 101), quality=90)
    header = read_header(FILE)
    assert header is not None
    first = decode(JPG, FILE)
    assert not isinstance(first, str)
    kept = first.copy()
    decode(JPG, other)
    np.testing.assert_array_equal(first, kept)


def test_enough_is_decoded_and_no_more() -> None:
    data = as_file(smooth(160, 320))
    header = read_header(data)
    assert header is not None
    sizes = {}
    for least in ((160, 320), (80, 160), (81, 100), (20, 20), (1, 1)):
        pixels = decode_jpeg(data, header, least)
        assert pixels is not None
        sizes[least] = pixels.shape[:2]
    assert sizes[80, 160] == (80, 160)
    assert sizes[20, 20] == (20, 40)
    assert sizes[81, 100] == sizes[160, 320] == (160, 320)
    assert sizes[1, 1] == (20, 40)  # an eighth is the least


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_broken_bytes_give_pixels_or_a_decode_error(data: st.DataObject) -> None:
    broken = bytearray(FILE)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(2, len(broken) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(broken[: data.draw(st.integers(3, len(broken)))])
    try:
        pixels = decode(JPG, cut)
    except DecodeError:
        return
    assert not isinstance(pixels, str)
    assert pixels.dtype == np.uint8
