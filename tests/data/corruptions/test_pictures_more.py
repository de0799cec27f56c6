"""Glass, zoom, snow, frost and elastic: what each does to pictures whose answer is plain."""

from __future__ import annotations

import numpy as np
import pytest

from outmodal.data.corruptions import SEVERITIES, imagenet_c, pictures, pictures_more
from tests.data.corruptions.test_pictures import NAMES, damaged


def ramp(side: int) -> pictures.Pixels:
    """Brighter to the right by one grey level a pixel."""
    row = np.arange(side, dtype=np.uint8)
    return np.tile(row[None, :, None], (side, 1, 3))


def test_all_fifteen_are_there() -> None:
    assert set(NAMES) == set(imagenet_c.ALEXNET)
    assert len(pictures_more.CORRUPTIONS) == 5


@pytest.mark.parametrize("name", ["glass_blur", "zoom_blur", "elastic_transform"])
def test_what_only_moves_pixels_leaves_a_flat_picture(name: str) -> None:
    flat = np.full((100, 120, 3), 77, np.uint8)
    for severity in SEVERITIES:
        assert np.array_equal(damaged(name, flat, severity), flat)


def test_glass_moves_pixels_a_short_way() -> None:
    clean = ramp(224)
    for severity, (_, reach, times) in zip(SEVERITIES, pictures_more.GLASS[0], strict=True):
        moved = np.abs(damaged("glass_blur", clean, severity).astype(int) - clean)
        assert 0 < moved.max() <= reach * times + 1


def test_zoom_keeps_the_middle_and_blurs_the_rim() -> None:
    clean = np.random.default_rng(0).integers(0, 256, (129, 129, 1), np.uint8)
    clean[60:69, 60:69] = 200
    made = damaged("zoom_blur", clean, 5)
    assert made[64, 64, 0] == 200
    rim = made[:10].astype(float).std() / clean[:10].astype(float).std()
    assert rim < 0.5


def test_elastic_has_its_published_sizes() -> None:
    clean = ramp(224)
    moved = [
        np.abs(damaged("elastic_transform", clean, s).astype(int) - clean)[40:-40, 40:-40].mean()
        for s in SEVERITIES
    ]
    assert moved[1] > 5 * moved[2]  # two of large moves, then three of small ones that grow
    assert 0 < moved[2] < moved[4]


def test_snow_and_frost_brighten_what_is_dark() -> None:
    dark = np.full((128, 128, 3), 20, np.uint8)
    for name in ("snow", "frost"):
        means = [damaged(name, dark, severity).mean() for severity in SEVERITIES]
        assert means[4] > means[0] > 20
    frost = damaged("frost", dark, 3).astype(float)
    assert frost.std() > 5  # crystals, not a veil
    assert frost[..., 2].mean() > frost[..., 0].mean()


def test_cells_are_read_from_the_names_of_splits() -> None:
    found = imagenet_c.cells(["snow-3", "fog-1", "snow-1", "test", "spatter-5", "snow-9", "x-1"])
    assert found == {
        "snow": {1: "snow-1", 3: "snow-3"},
        "fog": {1: "fog-1"},
        "spatter": {5: "spatter-5"},
    }
    assert imagenet_c.cell_name("snow", 3) == "snow-3"
