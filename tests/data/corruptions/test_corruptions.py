"""Corruptions between decoder and transform: seeded by key, and read by loaders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from outmodal.data.corruptions import CORRUPTIONS, Corrupted, corruptions_of, generator
from outmodal.data.decode import decode
from outmodal.data.inputs import ImageInput
from outmodal.data.manifest import Modality
from outmodal.errors import UserError
from tests.data.tiny import make_tiny


def test_the_damage_is_the_keys() -> None:
    draws = [generator(0, "noise", key).random(3).tolist() for key in ("a", "b", "a")]
    assert draws[0] == draws[2] != draws[1]
    assert generator(1, "noise", "a").random() != generator(0, "noise", "a").random()
    assert generator(0, "gap", "a").random() != generator(0, "noise", "a").random()
    # the same on every machine and in every version
    assert generator(0, "noise", "a").integers(0, 1 << 30, 2).tolist() == FIXED


FIXED = [836402715, 686422518]


def test_values_are_damaged_before_the_transform(tmp_path: Path) -> None:
    data = make_tiny(tmp_path / "tiny", 4, 1, ("image",), test=2)
    spec = data.modality("image")
    inner = ImageInput(size=(12, 12), channels=1).build(data, "image", None)
    outer = Corrupted(inner, spec, "gaussian_noise", 3, seed=5)
    assert (outer.shape, outer.dtype, outer.stored) == (inner.shape, inner.dtype, inner.stored)
    picture = np.full((12, 12, 1), 90, np.uint8)
    act = CORRUPTIONS["image"]["gaussian_noise"]
    expected = act(spec, picture, 3, generator(5, "gaussian_noise", "train-1"))
    assert torch.equal(outer(picture, "train-1"), inner(expected, "train-1"))
    assert torch.equal(outer.compact(picture, "train-1"), inner.compact(expected, "train-1"))
    assert not torch.equal(outer(picture, "train-1"), outer(picture, "train-2"))


def test_films_are_damaged_frame_by_frame() -> None:
    film = np.full((3, 16, 16, 3), 128, np.uint8)
    spec = Modality(kind="video", ext="mp4")
    noisy = np.asarray(
        CORRUPTIONS["video"]["gaussian_noise"](spec, film, 3, generator(0, "n", "k"))
    )
    assert (noisy.shape, noisy.dtype) == (film.shape, film.dtype)
    assert not np.array_equal(noisy[0], noisy[1])
    assert set(CORRUPTIONS["video"]) == set(CORRUPTIONS["image"])


def test_unknown_names_and_kinds() -> None:
    assert corruptions_of("vector") == ("noise", "dropout")
    assert corruptions_of("audio", ("clipping",)) == ("clipping",)
    with pytest.raises(UserError, match="'clippin' of audio; did you mean 'clipping'"):
        corruptions_of("audio", ("clippin",))
    with pytest.raises(UserError, match="no corruptions of text: choose a modality of image"):
        corruptions_of("text")


def test_decode_is_what_a_corruption_sees() -> None:
    """Every kind with corruptions is one that `decode` knows."""
    from outmodal.data import decode as room

    assert set(CORRUPTIONS) < set(room._DECODERS)
    assert callable(decode)
