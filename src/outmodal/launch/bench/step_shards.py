"""The loops on a data set's shards, and beside them what one writes by hand with the reading.

The bare loop and the engine's read one stream of batches between them: whoever has the turn takes
the next step. So none starts its turn with batches that were made ready in another's.

    peer        the bare loop on webdataset, Pillow and a DataLoader: a random crop and a flip, and
                nothing else of what the recipe does to pictures; after the others, alone
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch

from outmodal.data.augment.crop import RandomResizedCrop
from outmodal.data.inputs import ImageInput
from outmodal.data.opening import open_data
from outmodal.data.stream import Loader
from outmodal.errors import UserError
from outmodal.launch.bench.bare import Given, bare_loop
from outmodal.launch.bench.baton import run_in_turns
from outmodal.launch.bench.comparison import Turns, compared, rates
from outmodal.launch.bench.data_peer import CroppedPicture, Peer
from outmodal.launch.bench.spending import tree_cpu
from outmodal.launch.bench.step_loops import Side, Step, helped, make_loops, plain_of
from outmodal.launch.config import RunConfig
from outmodal.launch.running import run_plan
from outmodal.train.methods.supervised import Supervised
from outmodal.train.run import make_method, make_transforms

_MOST_WORKERS = 8
"""Of the peer: each holds a thousand pictures and two batches."""


class Reading:
    """A data set that fits the recipe, and the batches that all loops share.

    Args:
        config: The recipe, with the data set.
        folder: For files that inputs write.
        stack: Closes the loader.
        device: Where the loops run.

    Raises:
        UserError: No such data set, it does not fit, or it has too few samples for a step.
    """

    def __init__(
        self, config: RunConfig, folder: Path, stack: ExitStack, device: torch.device
    ) -> None:
        self.folder, self.config, self.device = folder, config, device
        self.dataset = open_data(config.data)
        self._transforms = make_transforms(run_plan(config, folder), self.dataset)
        pin = device.type == "cuda"
        self._loader = stack.enter_context(
            Loader(self.dataset, self._transforms, config.data, pin=pin)
        )
        method = self.method(config)
        (self.spec,) = method.streams(method.stages()[0].name)
        self._steps = method.steps_per_epoch()
        if not self._steps:
            raise UserError(
                f"{self.dataset.where}: fewer samples than --batch {config.data.batch}: use a "
                "larger data set or a smaller batch"
            )
        self._shared: Iterator[Step] | None = None

    def method(self, config: RunConfig) -> Supervised:
        """The method for this data set."""
        classes = len(self.dataset.manifest.classes)
        plan = replace(run_plan(config, self.folder), method=config.method.imagined(classes))
        method = make_method(plan, self.dataset, self._transforms)
        assert isinstance(method, Supervised)
        return method

    def side(self, config: RunConfig) -> Side:
        """A method and the shared batches. The first is read at once, in the caller's thread, from
        which loader workers are then forked."""
        if self._shared is None:
            source = self._all()
            self._shared = chain([next(source)], source)
        return Side(config, self.method(config), self._shared)

    def _all(self) -> Iterator[Step]:
        """Epoch after epoch."""
        for epoch in count():
            yield from self._loader.open_epoch(
                [self.spec], seed=self.config.seed, epoch=epoch, steps=self._steps
            )


def on_shards(reading: Reading, steps: int, rounds: int) -> dict[str, Any]:
    """Figures of all loops on a data set, from `rounds` turns of `steps` steps.

    Returns:
        As `compared`, and in "peer" its rates and "over_peer", how many times as many images a
        second of the wall the recipe trains; None where there are none, and then "no_peer" says
        why.
    """
    spent = _loops_spent(reading, steps, rounds)
    wall = reading.device.type == "cuda"
    found = compared(spent, reading.config.data.batch * steps, wall=wall)
    peer, why = _peer_rates(reading, steps, rounds)
    if peer is not None:
        over = found["runs"]["recipe"]["images_per_s"] / peer["images_per_s"]
        peer = {**peer, "over_peer": over}
    return {**found, "peer": peer, "no_peer": why}


def _loops_spent(reading: Reading, steps: int, rounds: int) -> Turns:
    """The loops' turns; their models and optimizers are gone afterwards."""
    config = reading.config
    with ExitStack() as stack:
        plain = plain_of(config)
        sides = {"plain": reading.side(plain)} if helped(config) else {}
        sides["recipe"] = reading.side(config)
        by_hand = (reading.side(plain), reading.side(plain))
        loops = make_loops(sides, by_hand, reading.folder, stack, reading.device)
        return run_in_turns(loops, steps, rounds, reading.device, tree_cpu)


def _peer_rates(reading: Reading, steps: int, rounds: int) -> tuple[dict[str, float] | None, str]:
    """The bare loop on what webdataset reads, or None and why not."""
    model = reading.method(plain_of(reading.config))
    prepare = _prepare(reading, model)
    if isinstance(prepare, str):
        return None, prepare
    split, batch = reading.config.data.train_split, reading.config.data.batch
    shards = len(reading.dataset.split(split).shards)
    try:
        with ExitStack() as stack:
            peer = Peer(
                reading.dataset,
                model.unknown,
                prepare,
                batch,
                min(_MOST_WORKERS, len(os.sched_getaffinity(0)), shards),
                split=split,
                labels=True,
                endless=True,
                pin=reading.device.type == "cuda",
            )
            stack.callback(peer.close)

            def loop(before_step: Callable[[], None]) -> None:
                given = (Given(x, label) for x, label in peer.labelled())
                bare_loop(model, plain_of(reading.config), given, reading.device, before_step)

            spent = run_in_turns({"peer": loop}, steps, rounds, reading.device, tree_cpu)
    except Exception as error:  # noqa: BLE001 - not our code: it must not cost our own figures
        return None, f"it ended with {type(error).__name__}: {error}"
    return rates(spent, batch * steps)["peer"], ""


def _prepare(reading: Reading, model: Supervised) -> CroppedPicture | str:
    """How the peer crops, or why it does not know such data."""
    (look,) = [c.input for c in reading.config.learners if c.modality == model.unknown]
    stored = reading.dataset.modality(model.unknown)
    crops = [a for a in getattr(look, "augment", ()) if isinstance(a, RandomResizedCrop)]
    if not isinstance(look, ImageInput) or not crops or stored.ext == "npy":
        return "it reads pictures that are cropped at random"
    if look.channels != 3 or look.size[0] != look.size[1]:
        return "it makes square pictures in colour"
    if reading.dataset.store.folder is None:
        return "it reads a folder"
    if reading.spec.select is not None:
        return "it reads all samples, and the recipe a part (method.label_fraction)"
    return CroppedPicture(look.size[0], crops[0].scale, flip=True)
