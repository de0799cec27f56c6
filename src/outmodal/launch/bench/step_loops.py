"""The loops that take turns: a bare one, the same again, and the engine's, on given batches.

bare        what one writes by hand: model, cross-entropy, clipping, optimizer, average
again       the same, to see by how much two equal loops differ here
plain       the engine on the same model and cross-entropy; left out where the recipe is that
recipe      the engine on the recipe
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outmodal.data.batch import Batch, StreamSpec
from outmodal.errors import UserError
from outmodal.launch.bench.bare import Given, bare_loop
from outmodal.launch.bench.baton import Loop
from outmodal.launch.config import RunConfig, set_keys
from outmodal.train.engine import Engine
from outmodal.train.methods import Method, SynergyConfig
from outmodal.train.methods.erm import ErmConfig
from outmodal.train.methods.supervised import Supervised
from outmodal.train.runfolder import RunFolder

Step = dict[str, Batch]


@dataclass(frozen=True)
class Side:
    """A method in the engine, and what it reads.

    Attributes:
        config: Its run.
        method: Made for it.
        steps: Its batches, without end.
    """

    config: RunConfig
    method: Method
    steps: Iterator[Step]


def check_recipe(config: RunConfig) -> None:
    """Raise UserError where a bare loop would not do what the recipe does, alpha or none."""
    method = config.method
    if not isinstance(method, ErmConfig | SynergyConfig):
        raise UserError(
            "bench train --recipe measures supervised training of one learner (erm, synergy), and "
            f"method '{method.name}' is of another kind: choose a recipe of one of those"
        )
    if isinstance(method, SynergyConfig) and method.guide:
        raise UserError(
            f"method.guide reads features of '{method.guide}' from a data set, which random inputs "
            "do not have: measure the recipe with sentences of a helper (targets: text, level 1 or "
            "2)"
        )


def helped(config: RunConfig) -> bool:
    """Whether the recipe is more than plain cross-entropy."""
    return isinstance(config.method, SynergyConfig) and config.method.alpha > 0


def plain_of(config: RunConfig) -> RunConfig:
    """The recipe as plain cross-entropy of the same model."""
    return set_keys(config, {"method.alpha": 0.0}) if helped(config) else config


def make_loops(
    sides: dict[str, Side],
    by_hand: Sequence[Side],
    root: Path,
    stack: ExitStack,
    device: torch.device,
) -> dict[str, Loop]:
    """The loops by name.

    Args:
        sides: "plain" and "recipe".
        by_hand: For `bare` and `again`: their methods' modules are trained by hand.
        root: Where the engine's run folders go.
        stack: Takes the engines down.
        device: Where.
    """
    loops = {
        name: _by_hand(side, device) for name, side in zip(("bare", "again"), by_hand, strict=True)
    }
    for name, side in sides.items():
        loop = _EngineLoop(side, root / name)
        stack.callback(loop.close)
        loops[name] = loop
    return loops


def _by_hand(side: Side, device: torch.device) -> Loop:
    model = side.method
    assert isinstance(model, Supervised)

    def loop(before_step: Callable[[], None]) -> None:
        given = _given(side.steps, model.unknown, device)
        bare_loop(model, side.config, given, device, before_step)

    return loop


def _given(steps: Iterator[Step], unknown: str, device: torch.device) -> Iterator[Given]:
    for step in steps:
        (batch,) = step.values()
        if batch.later or batch.mixer is not None:
            batch = batch.to(device)
        yield Given(batch.x[unknown], batch.label, batch.mixed)


class _Feed:
    """A feed that asks before each step.

    Attributes:
        before_step: What it asks.
    """

    before_step: Callable[[], None]

    def __init__(self, steps: Iterator[Step]) -> None:
        self._steps = steps

    def epoch(
        self, specs: Sequence[StreamSpec], epoch: int, start_step: int, steps: int
    ) -> Iterator[Step]:
        """The engine's batches."""
        while True:
            self.before_step()
            yield next(self._steps)

    def full_pass(self, spec: StreamSpec) -> Iterator[Batch]:
        """Nothing is evaluated: the recipe's `engine.eval_every` is set to 0."""
        raise RuntimeError("a benchmark of steps makes no pass over a split")

    def state(self) -> dict[str, Any]:
        """Nothing is kept."""
        return {}


class _EngineLoop:
    """The real engine as a loop."""

    def __init__(self, side: Side, out: Path) -> None:
        out.mkdir(parents=True)
        config = side.config
        self._feed = _Feed(side.steps)
        self._engine = Engine(
            side.method,
            self._feed,
            config.optim,
            config.engine,
            RunFolder(out),
            config.seed,
            shown=False,
        )

    def __call__(self, before_step: Callable[[], None]) -> None:
        self._feed.before_step = before_step
        self._engine.fit()

    def close(self) -> None:
        """Take it down."""
        self._engine.close()
