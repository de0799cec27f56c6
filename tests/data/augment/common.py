"""What the tests of augmentations share: keys, pictures, and one augmentation at work."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from outmodal.data.augment import Augment, AugmentConfig, Pipeline
from outmodal.data.draws import Draw, key_number

DRAW = Draw(seed=1, epoch=2, view="image")
_ADAPTER: TypeAdapter[Augment] = TypeAdapter(AugmentConfig)


def made(**settings: Any) -> Augment:
    """Validate an augmentation's configuration."""
    return _ADAPTER.validate_python(settings)


def keys(count: int, start: int = 0) -> Tensor:
    """Return key numbers of keys as data sets have them."""
    return torch.tensor([key_number(f"{i:06d}") for i in range(start, start + count)])


def pictures(count: int, channels: int = 3, size: tuple[int, int] = (12, 10)) -> Tensor:
    """Return pictures of 8-bit levels in 0..1, each with its own span of levels."""
    generator = torch.Generator().manual_seed(0)
    low = torch.randint(0, 100, (count, channels, 1, 1), generator=generator)
    noise = torch.randint(0, 130, (count, channels, *size), generator=generator)
    return (low + noise).float() / 255.0


def applied(step: Augment, x: Tensor, numbers: Tensor, draw: Draw = DRAW) -> Tensor:
    """Run one augmentation of the batch or last stage as an input would."""
    pipeline = Pipeline([step])
    return pipeline.last(pipeline.batch(x, numbers, draw), numbers, draw)


def word(step: Augment) -> str:
    """Return the word of the first augmentation of a list."""
    return f"0 {getattr(step, 'name', '')}"


def numbers_of(step: Augment, numbers: Tensor, count: int, draw: Draw = DRAW) -> Tensor:
    """Return the uniform numbers [B, count] that the augmentation draws after its turn."""
    return step.turns(numbers, draw, word(step), count)[1]
