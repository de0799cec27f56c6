"""The in-memory world of `fakes` with views and texts, and learners whose inputs are augmented."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outmodal.data.augment import FeatureNoise, WordDropout
from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.inputs import TokenInput, VectorInput
from outmodal.models.learners import Learner, MlpLearner, TextLearner
from outmodal.train.methods.base import Context
from tests.train.methods.fakes import World, make_context, make_world

LENGTH = 9
VOCABULARY = 40


class ViewedWorld(World):
    """Views are the modality with noise, or with tokens left out, drawn for name and sample."""

    def batch(self, spec: StreamSpec, index: NDArray[np.int64]) -> Batch:
        names = dict.fromkeys([*spec.modalities, *(view.modality for view in spec.views)])
        whole = super().batch(replace(spec, modalities=tuple(names)), index)
        x = {m: whole.x[m] for m in spec.modalities}
        present = {m: whole.present[m] for m in spec.modalities}
        for view in spec.views:
            plain = view.policy == "none"
            held = whole.x[view.modality]
            x[view.name] = held if plain else _changed(held, whole.index, view.name)
            present[view.name] = whole.present[view.modality]
        kept = {m: t.long() if _tokens(t) else t for m, t in x.items()}
        return replace(whole, x=kept, present=present, key=whole.index + 1)


def _tokens(x: Tensor) -> bool:
    return x.shape[1] == LENGTH


def _changed(x: Tensor, index: Tensor, name: str) -> Tensor:
    rows = []
    for row, i in zip(x, index.tolist(), strict=True):
        g = torch.Generator().manual_seed(1000 * sum(name.encode()) + i)
        noise = torch.randn(row.shape, generator=g)
        rows.append(torch.where(noise > 0.8, 0.0, row) if _tokens(x) else row + 0.3 * noise)
    return torch.stack(rows)


def viewed_world(**keys: Any) -> ViewedWorld:
    """The world of `make_world` with "words" beside: tokens that tell the class."""
    world = make_world(**keys)
    g = torch.Generator().manual_seed(7)
    for split, labels in world.labels.items():
        count = len(labels)
        tokens = torch.randint(8, VOCABULARY, (count, LENGTH), generator=g)
        topic = 2 + torch.from_numpy(labels)[:, None].expand(-1, LENGTH)
        mine = torch.rand(count, LENGTH, generator=g) < 0.4
        tokens = torch.where(mine, topic, tokens)
        ends = torch.randint(4, LENGTH + 1, (count, 1), generator=g)
        tokens = torch.where(torch.arange(LENGTH) < ends, tokens, 0)
        world.x[split]["words"] = tokens.float()
    return ViewedWorld(world.x, world.labels, world.absent, set())


def touch_learner(augment: bool = True, strong: bool = True) -> Learner:
    """A perceptron on "touch"."""
    lists = {
        "augment": (FeatureNoise(),) if augment else (),
        "strong": (FeatureNoise(sigma=0.5),) if strong else (),
    }
    return MlpLearner(modality="touch", widths=(16, 12), input=VectorInput(dim=8, **lists)).build()


def words_learner(depth: int = 3, augment: bool = True, pool: Any = "mean") -> Learner:
    """A small transformer on "words"."""
    steps = (WordDropout(),) if augment else ()
    config = TextLearner(
        modality="words",
        input=TokenInput(length=LENGTH, vocab_size=VOCABULARY, augment=steps),
        size="custom",
        width=16,
        depth=depth,
        heads=2,
        pool=pool,
    )
    return config.build()


def viewed_context(world: World, learner: Learner | None = None, **keys: Any) -> Context:
    """A context whose one learner is `learner`, by default that of "touch"."""
    context = make_context(world, **keys)
    torch.manual_seed(keys.get("seed", 0))
    built = learner or touch_learner()
    dims = {m: d for m, d in context.dims.items() if m != "words"}
    return replace(context, learners={built.modality: built}, dims=dims)
