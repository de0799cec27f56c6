"""Every augmentation: pure in (seed, epoch, view, key), blind to its batch, and gated by p."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from outmodal.data.augment import AnyAugment, Augment, Pipeline
from outmodal.data.augment import base as base_module
from outmodal.data.inputs import (
    ImageInput,
    LogMelInput,
    SeriesInput,
    TokenInput,
    VectorInput,
    VideoInput,
    WaveformInput,
)
from outmodal.data.perceptor_inputs import SampledVideoInput
from tests.data.augment.common import DRAW, applied, keys, made, pictures

BATCHED: list[dict[str, Any]] = [
    {"name": "pad_crop", "pad": 3},
    {"name": "pad_crop", "pad": 3, "fill": None},
    {"name": "hflip"},
    {"name": "vflip"},
    {"name": "color_jitter", "p": 0.8},
    {"name": "grayscale"},
    {"name": "blur"},
    {"name": "solarize"},
    {"name": "rand_augment"},
    {"name": "rand_augment", "n": 1, "share": 1.0, "increasing": True},
    {"name": "erasing", "p": 0.6},
    {"name": "erasing", "p": 0.6, "fill": "noise"},
    {"name": "spec_augment", "p": 0.7},
    {"name": "jitter", "p": 0.6},
    {"name": "scaling", "p": 0.6},
    {"name": "window", "p": 0.6},
    {"name": "channel_dropout", "rate": 0.5},
    {"name": "time_mask", "masks": 2},
    {"name": "feature_noise", "p": 0.6},
    {"name": "feature_dropout", "rate": 0.3},
]
SAMPLED: list[dict[str, Any]] = [
    {"name": "random_resized_crop"},
    {"name": "gain"},
    {"name": "noise"},
    {"name": "time_shift"},
    {"name": "templates", "templates": ["a {}", "the {}", "one {}!"]},
    {"name": "word_dropout", "rate": 0.5},
]
COUNT = 24


def values(step: Augment, count: int = COUNT) -> Tensor:
    """Return a batch that the augmentation reads."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"spectrogram": (1, 20, 30), "steps": (25, 3), "features": (40,)}
    if step.form == "pixels":
        x = pictures(count)
        return x if step.stage == "batch" else (x - 0.5) / 0.5
    return torch.randn(count, *shapes[step.form], generator=generator)


def test_all_augmentations_are_listed_here() -> None:
    names = {option.model_fields["name"].default for option in get_args(AnyAugment)}
    assert names == {settings["name"] for settings in (*BATCHED, *SAMPLED)}


@pytest.mark.parametrize("settings", BATCHED, ids=lambda s: str(s["name"]))
class TestBatched:
    def test_is_pure(self, settings: dict[str, Any]) -> None:
        step = made(**settings)
        x, numbers = values(step), keys(COUNT)
        before = x.clone()
        out = applied(step, x, numbers)
        assert torch.equal(x, before), "changed in place"
        assert out.shape == x.shape
        assert out.dtype == x.dtype
        assert torch.isfinite(out).all()
        assert torch.equal(applied(step, x, numbers), out)
        for other in (
            replace(DRAW, epoch=3),
            replace(DRAW, seed=2),
            DRAW.of("other"),
        ):
            assert not torch.equal(applied(step, x, numbers, other), out)
        if settings["name"] not in ("blur", "solarize", "grayscale"):
            flat = (x - out).flatten(1).abs().amax(1)
            assert (flat > 0).any(), "nothing changed"

    def test_rows_do_not_see_their_batch(self, settings: dict[str, Any]) -> None:
        step = made(**settings)
        x, numbers = values(step), keys(COUNT)
        whole = applied(step, x, numbers)
        order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))
        assert torch.equal(applied(step, x[order], numbers[order]), whole[order])
        for row in range(6):
            one = applied(step, x[row : row + 1], numbers[row : row + 1])
            assert torch.equal(one, whole[row : row + 1]), row
        assert applied(step, x[:0], numbers[:0]).shape == (0, *x.shape[1:])

    def test_computing_all_rows_as_a_gpu_does_gives_the_same(
        self, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = made(**settings)
        x, numbers = values(step), keys(COUNT)
        picked = applied(step, x, numbers)
        monkeypatch.setattr(base_module, "_can_pick", lambda x: False)
        assert torch.equal(applied(step, x, numbers), picked)

    def test_p_is_a_share_of_the_samples(self, settings: dict[str, Any]) -> None:
        x, numbers = values(made(**settings), 1000), keys(1000)
        never = made(**settings | {"p": 0.0})
        assert torch.equal(applied(never, x, numbers), x)
        shares = {}
        for p in (0.3, 1.0):
            out = applied(made(**settings | {"p": p}), x, numbers)
            shares[p] = float((out != x).flatten(1).any(1).float().mean())
        assert abs(shares[0.3] - 0.3 * shares[1.0]) < 0.06
        assert shares[1.0] > 0.4


def test_films_change_alike_in_all_frames() -> None:
    film = pictures(5)[:, None].expand(5, 3, 3, 12, 10).clone()
    steps = [
        made(name="hflip"),
        made(name="rand_augment", share=1.0),
        made(name="erasing", p=1.0, fill="noise"),
    ]
    pipeline = Pipeline(steps)
    out = pipeline.last(pipeline.batch(film, keys(5), DRAW), keys(5), DRAW)
    assert torch.equal(out[:, 0], out[:, 1])
    assert torch.equal(out[:, 0], out[:, 2])
    single = pipeline.batch(film[:, 0], keys(5), DRAW)
    assert torch.equal(pipeline.last(single, keys(5), DRAW), out[:, 0])


def test_without_a_draw_nothing_happens() -> None:
    pipeline = Pipeline([made(name="hflip", p=1.0)], [made(name="vflip", p=1.0)])
    x, numbers = pictures(4), keys(4)
    for draw in (None, replace(DRAW, policy="none")):
        assert pipeline.batch(x, numbers, draw) is x
        assert pipeline.last(x, numbers, draw) is x
        assert pipeline.box(10, 10, "k", draw) is None
        assert pipeline.sample("text", "k", draw) == "text"
    assert torch.equal(pipeline.batch(x, numbers, DRAW), x.flip(-1))
    strong = replace(DRAW, policy="strong")
    assert torch.equal(pipeline.batch(x, numbers, strong), x.flip(-2))
    assert not pipeline.random
    assert Pipeline([], [made(name="gain")]).random


def test_two_alike_draw_apart() -> None:
    pipeline = Pipeline([made(name="hflip"), made(name="hflip")])
    x, numbers = pictures(400), keys(400)
    changed = (pipeline.batch(x, numbers, DRAW) != x).flatten(1).any(1).float().mean()
    assert 0.4 < changed < 0.6  # the same draws would cancel out


def test_sampled_ones_follow_key_and_epoch() -> None:
    for settings in SAMPLED[1:]:
        pipeline = Pipeline([made(**settings)])
        value = "red green blue white black pink" * 3
        given: Any = np.ones((1, 50), np.float32) if made(**settings).form == "wave" else value

        def seen(key: str, epoch: int, pipeline: Pipeline = pipeline, given: Any = given) -> str:
            return repr(pipeline.sample(given, key, replace(DRAW, epoch=epoch)))

        assert seen("a", 0) == seen("a", 0)
        assert len({seen(f"{i}", 0) for i in range(20)}) > 1
        assert len({seen("a", epoch) for epoch in range(20)}) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "hflip", "p": 1.5}, "less than or equal to 1"),
        ({"name": "color_jitter", "hue": 0.6}, "less than or equal to 0.5"),
        ({"name": "random_resized_crop", "scale": (0.9, 0.1)}, "lowest value first"),
        ({"name": "random_resized_crop", "scale": (0.0, 1.0)}, "greater than 0"),
        ({"name": "blur", "sigma": (0.0, 1.0)}, "greater than 0"),
        ({"name": "rand_augment", "magnitude": 31}, "less than or equal to 30"),
        ({"name": "erasing", "fill": "pixel"}, "'constant' or 'noise'"),
        ({"name": "gain", "db": (3, -3)}, "lowest value first"),
        ({"name": "templates", "templates": ["a photo"]}, "expected {} once"),
        ({"name": "templates", "templates": []}, "at least 1 item"),
        ({"name": "feature_dropout", "rate": 1.0}, "less than 1"),
        ({"name": "hflip", "probability": 0.5}, "Extra inputs"),
        ({"name": "horizontal_flip"}, "does not match any of the expected tags"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        made(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda a: ImageInput(augment=a), "time_mask", "is for series (steps), not for input"),
        (lambda a: ImageInput(strong=a), "gain", "not for input 'image'"),
        (lambda a: WaveformInput(augment=a), "spec_augment", "for audio (spectrogram)"),
        (lambda a: WaveformInput(augment=a), "time_mask", "did you mean 'time_shift'?"),
        (lambda a: VectorInput(dim=3, augment=a), "jitter", "known: feature_dropout"),
        (lambda a: SampledVideoInput(augment=a), "hflip", "takes no augmentation"),
    ],
)
def test_misfits_are_refused(make: Any, name: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make([{"name": name}])
    assert message in str(caught.value)


def test_what_fits_is_taken() -> None:
    assert ImageInput(augment=({"name": "hflip"},)).augment[0].p == 0.5
    steps: Any = [{"name": "gain"}, {"name": "spec_augment"}]
    assert len(LogMelInput(augment=steps).augment) == 2
    for made_input in (
        VideoInput(augment=[{"name": "random_resized_crop"}]),
        SeriesInput(length=4, channels=2, augment=[{"name": "jitter"}]),
        TokenInput(strong=[{"name": "word_dropout"}]),
    ):
        assert made_input.augment or made_input.strong
