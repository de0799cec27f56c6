"""What the framework costs: a recipe's steps in the engine beside a bare loop of the same model.

    overhead          the engine on plain cross-entropy, over the bare loop
    synergy_overhead  the engine on the recipe, over that
    control           a second bare loop over the first: equal, but for what disturbs a measurement

All take turns within one process, on the same random inputs, whose augmentation and mixing are left
out; with a data set at hand then on its shards, with all that the recipe does to pictures.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from outmodal.launch.bench.allocator import keep_memory
from outmodal.launch.bench.bare import Classifier
from outmodal.launch.bench.baton import run_in_turns
from outmodal.launch.bench.comparison import compared
from outmodal.launch.bench.step_loops import (
    Side,
    Step,
    check_recipe,
    helped,
    make_loops,
    plain_of,
)
from outmodal.launch.bench.step_shards import Reading, on_shards
from outmodal.launch.config import RunConfig, load_config, set_keys
from outmodal.launch.plan.hardware import GPUS
from outmodal.launch.plan.subject import Described, Subject
from outmodal.train import gather
from outmodal.train.methods.supervised import Supervised

_MANY = 1_000_000
_ROTATING = 4


@dataclass(frozen=True)
class StepSettings:
    """See `train_command.TrainArgs`.

    Attributes:
        keys: Overrides of the recipe.
    """

    recipe: str
    keys: tuple[str, ...]
    data: str
    batch: int
    classes: int
    steps: int
    rounds: int
    threads: int


def bench_steps(settings: StepSettings) -> dict[str, Any]:
    """Measure a recipe of supervised training.

    Raises:
        UserError: The recipe does not fit, or is of another kind of method.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    config = _config(settings)
    gather.open_world(config.engine.device, config.engine.timeout)
    device = gather.world().device
    result: dict[str, Any] = {
        "environment": environment(device) | {"keeps_memory": keep_memory()},
        "settings": asdict(settings),
        "precision": config.engine.precision,
        "compiled": config.engine.compile,
    }
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outmodal-bench-")))
        stack.callback(gather.close_world)
        real = settings.data != "synthetic"
        # first of all, so that a mistake about the data set does not come up after everything else
        reading = Reading(config, root / "shards", stack, device) if real else None
        result |= _synthetic(config, settings, root / "synthetic", device)
        if reading is not None:
            found = on_shards(reading, settings.steps, settings.rounds)
            rates = (found["runs"]["recipe"], result["runs"]["recipe"])
            over = rates[0]["images_per_s"] / rates[1]["images_per_s"]
            result["shards"] = {**found, "of_synthetic": over}
    return result


def _synthetic(
    config: RunConfig, settings: StepSettings, root: Path, device: torch.device
) -> dict[str, Any]:
    """Figures of all loops on random inputs."""
    with ExitStack() as stack:
        sides, by_hand = _sides(config, settings)
        loops = make_loops(sides, by_hand, root, stack, device)
        spent = run_in_turns(loops, settings.steps, settings.rounds, device)
        method = sides["recipe"].method
        found = compared(spent, settings.batch * settings.steps, wall=device.type == "cuda")
        rate = found["runs"]["recipe"]["images_per_s"]
        trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
        return {"parameters": trained, **found, "mfu": _utilisation(sides["recipe"], rate, device)}


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure depends on."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or "cpu",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
    }


def _config(settings: StepSettings) -> RunConfig:
    config = load_config(settings.recipe, settings.keys)
    check_recipe(config)
    changes = {
        "data.batch": settings.batch,
        "engine.strategy": "single",
        "engine.epochs": _MANY,
        "engine.max_steps": 0,
        "engine.checkpoint_every": _MANY,
        "engine.eval_every": 0,
        "engine.hang_minutes": 0.0,  # a loop stands still while others have their turns
        "engine.accumulate": 1,
    }
    if settings.data != "synthetic":
        changes["data.path"] = settings.data
    return set_keys(config, changes)


def _sides(config: RunConfig, settings: StepSettings) -> tuple[dict[str, Side], list[Side]]:
    """Methods on random inputs: the engine's by name, and two to train by hand."""
    described = Described(settings.batch * 1000, settings.classes, 100e3, {})
    made = _random_steps(Subject(config, described), settings.batch)

    def side(run: RunConfig) -> Side:
        return Side(run, Subject(run, described).method, cycle(made))

    plain = plain_of(config)
    named = {"plain": side(plain)} if helped(config) else {}
    return {**named, "recipe": side(config)}, [side(plain), side(plain)]


def _random_steps(subject: Subject, rows: int) -> list[Step]:
    """A few batches of random inputs on the device, where moving them costs nobody anything."""
    _, batches = next(subject.batches(rows))
    device = gather.world().device
    return [
        {name: b.rows(torch.arange(rows).roll(i)).to(device) for name, b in batches.items()}
        for i in range(_ROTATING)
    ]


def _utilisation(side: Side, rate: float, device: torch.device) -> float | None:
    """Share of the GPU's bf16 rate (its data sheet's) that the model's arithmetic takes."""
    name = torch.cuda.get_device_name(device).lower() if device.type == "cuda" else ""
    known = [gpu for key, gpu in GPUS.items() if key != "cpu" and key in name]
    if not known:
        return None
    method = side.method
    assert isinstance(method, Supervised)
    x = next(iter(next(side.steps).values())).x[method.unknown][:2].to(device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        Classifier(method)(x)
    return float(3 * counter.get_total_flops() / 2 * rate / known[0].bf16)


def steps_table(result: Mapping[str, Any]) -> str:
    """The answer for people."""
    where = result["environment"]
    lines = [
        f"{where['device']}, {where['threads']} of {where['cpus']} CPU threads, torch "
        f"{where['torch']}: {result['parameters'] / 1e6:.1f} M parameters, "
        f"{result['precision']}, batch {result['settings']['batch']}",
        *_block("random inputs", result),
    ]
    if result["mfu"] is not None:
        lines.append(f"share of the GPU's bf16 rate: {100 * result['mfu']:.0f} %")
    if "shards" in result:
        found = result["shards"]
        lines += ["", *_block("shards", found)]
        lines.append(f"of the synthetic rate: {100 * found['of_synthetic']:.0f} %")
        if found["peer"] is None:
            lines.append(f"no peer: {found['no_peer']}")
        else:
            lines += [
                _row("peer", found["peer"]),
                f"recipe over the peer: {found['peer']['over_peer']:.2f} times as many images/s",
            ]
    return "\n".join(lines)


def _block(title: str, found: Mapping[str, Any]) -> list[str]:
    lines = [f"{title:<14}  images/s  images/CPU-s"]
    lines += [_row(name, run) for name, run in found["runs"].items()]
    for key, words in _WORDS.items():
        if found[key] is not None:
            ends = found["intervals"][key]
            between = f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else ""
            lines.append(f"{words}: {100 * found[key]:.1f} %{between}")
    return lines


def _row(name: str, run: Mapping[str, float]) -> str:
    return f"{name:<14}  {run['images_per_s']:8.1f}  {run['images_per_cpu_s']:12.1f}"


_WORDS = {
    "overhead": "overhead over the bare loop",
    "synergy_overhead": "synergy over plain training",
    "control": "a second bare loop over the first",
}
