"""What the framework costs: a recipe's steps in the engine beside a bare loop of the same model.

    bare        what one writes by hand: model, cross-entropy, clipping, optimizer, average
    plain       the engine on the same model and cross-entropy      overhead = plain / bare - 1
    recipe      the engine on the recipe        synergy_overhead = recipe / plain - 1

All take the same random inputs, whose augmentation and mixing are left out, in turns within one
process. With a data set at hand the recipe then reads that, with all that it does to pictures.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.opening import open_data
from outmodal.data.stream import Loader
from outmodal.errors import UserError
from outmodal.launch.bench.bare import Classifier, bare_loop
from outmodal.launch.bench.baton import Loop, run_in_turns
from outmodal.launch.bench.timing import Spent
from outmodal.launch.config import RunConfig, load_config, set_keys
from outmodal.launch.plan.hardware import GPUS
from outmodal.launch.plan.subject import Described, Subject
from outmodal.launch.running import run_plan
from outmodal.train import gather
from outmodal.train.engine import Engine
from outmodal.train.methods import Method, SynergyConfig
from outmodal.train.methods.supervised import Supervised
from outmodal.train.run import make_method, make_transforms
from outmodal.train.runfolder import RunFolder

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
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outmodal-bench-")))
        stack.callback(gather.close_world)
        loops, subject = _loops(config, settings, root, stack, device)
        spent = run_in_turns(loops, settings.steps, settings.rounds + 1, device)
        result: dict[str, Any] = {
            "environment": environment(device),
            "settings": asdict(settings),
            "precision": config.engine.precision,
            "compiled": config.engine.compile,
            "parameters": subject.parameters,
            **_compared({name: turns[1:] for name, turns in spent.items()}, settings, device),
        }
        rate = result["runs"]["recipe"]["images_per_s"]
        result["mfu"] = _utilisation(subject, rate, device)
        if settings.data != "synthetic":
            result["shards"] = _shards(config, settings, root, stack, device, rate)
    return result


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
    changes = {
        "data.batch": settings.batch,
        "engine.strategy": "single",
        "engine.epochs": _MANY,
        "engine.max_steps": 0,
        "engine.checkpoint_every": _MANY,
        "engine.accumulate": 1,
    }
    if settings.data != "synthetic":
        changes["data.path"] = settings.data
    return set_keys(config, changes)


def _loops(
    config: RunConfig,
    settings: StepSettings,
    root: Path,
    stack: ExitStack,
    device: torch.device,
) -> tuple[dict[str, Loop], Subject]:
    """The loops by name, and what the recipe's is about."""
    described = Described(settings.batch * 1000, settings.classes, 100e3, {})
    helped = isinstance(config.method, SynergyConfig) and config.method.alpha > 0
    plain = set_keys(config, {"method.alpha": 0.0}) if helped else config
    subjects = {"bare": Subject(plain, described), "recipe": Subject(config, described)}
    if helped:
        subjects["plain"] = Subject(plain, described)
    model = subjects["bare"].method
    if not isinstance(model, Supervised):
        raise UserError(
            f"bench train --recipe measures supervised training of one learner (erm, synergy), and "
            f"'{settings.recipe}' is of another kind: choose one of those"
        )
    loops: dict[str, Loop] = {}

    def bare(before_step: Callable[[], None]) -> None:
        unknown = model.unknown
        given = _rotating(subjects["bare"], settings.batch)
        pairs = ((b.x[unknown], b.label) for step in given for b in step.values())
        bare_loop(model, config, pairs, device, before_step)

    loops["bare"] = bare
    for name in ("plain", "recipe"):
        if name in subjects:
            feed = _Synthetic(partial(_rotating, subjects[name], settings.batch))
            loop = _EngineLoop(subjects[name].method, feed, subjects[name].config, root / name)
            stack.callback(loop.close)
            loops[name] = loop
    return loops, subjects["recipe"]


def _rotating(subject: Subject, rows: int) -> Iterator[dict[str, Batch]]:
    """A few batches of random inputs, over and over."""
    _, batches = next(subject.batches(rows))
    shifted = [
        {name: b.rows(torch.arange(rows).roll(i)) for name, b in batches.items()}
        for i in range(_ROTATING)
    ]
    while True:
        yield from shifted


class _Feed:
    """A feed that asks before each step.

    Attributes:
        before_step: What it asks.
    """

    before_step: Callable[[], None]

    def epoch(
        self, specs: Sequence[StreamSpec], epoch: int, start_step: int, steps: int
    ) -> Iterator[dict[str, Batch]]:
        """The engine's batches."""
        source = self._batches(specs, epoch, start_step, steps)
        while True:
            self.before_step()
            yield next(source)

    def _batches(
        self, specs: Sequence[StreamSpec], epoch: int, start_step: int, steps: int
    ) -> Iterator[dict[str, Batch]]:
        raise NotImplementedError

    def full_pass(self, spec: StreamSpec) -> Iterator[Batch]:
        """Nothing is evaluated."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Nothing is kept."""
        return {}


class _Synthetic(_Feed):
    def __init__(self, make: Callable[[], Iterator[dict[str, Batch]]]) -> None:
        self._make = make

    def _batches(
        self, specs: Sequence[StreamSpec], epoch: int, start_step: int, steps: int
    ) -> Iterator[dict[str, Batch]]:
        return self._make()


class _Real(_Feed):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def _batches(
        self, specs: Sequence[StreamSpec], epoch: int, start_step: int, steps: int
    ) -> Iterator[dict[str, Batch]]:
        return self._loader.open_epoch(
            specs, seed=0, epoch=epoch, start_step=start_step, steps=steps
        )


class _EngineLoop:
    """The real engine as a loop."""

    def __init__(self, method: Method, feed: _Feed, config: RunConfig, out: Path) -> None:
        self._feed, self._folder = feed, RunFolder(out)
        out.mkdir()
        self._engine = Engine(method, feed, config.optim, config.engine, self._folder, config.seed)

    def __call__(self, before_step: Callable[[], None]) -> None:
        self._feed.before_step = before_step
        self._engine.fit()

    def close(self) -> None:
        """Take it down."""
        self._engine.close()


def _compared(
    spent: Mapping[str, Sequence[Spent]], settings: StepSettings, device: torch.device
) -> dict[str, Any]:
    """Rates, and medians over the rounds of ratios: of time on a GPU, of CPU time elsewhere."""
    cuda = device.type == "cuda"
    images = settings.batch * settings.steps
    runs = {
        name: {
            "images_per_s": images / median(s.wall for s in turns),
            "images_per_cpu_s": images / median(s.cpu for s in turns),
        }
        for name, turns in spent.items()
    }

    def over(slow: str, fast: str) -> float:
        pairs = zip(spent[slow], spent[fast], strict=True)
        return median((a.wall / b.wall if cuda else a.cpu / b.cpu) - 1 for a, b in pairs)

    plain = "plain" if "plain" in spent else "recipe"
    found: dict[str, Any] = {"runs": runs, "overhead": over(plain, "bare")}
    found["synergy_overhead"] = over("recipe", "plain") if "plain" in spent else None
    return found


def _utilisation(subject: Subject, rate: float, device: torch.device) -> float | None:
    """Share of the GPU's bf16 rate (its data sheet's) that the model's arithmetic takes."""
    name = torch.cuda.get_device_name(device).lower() if device.type == "cuda" else ""
    known = [gpu for key, gpu in GPUS.items() if key != "cpu" and key in name]
    if not known:
        return None
    method = subject.method
    assert isinstance(method, Supervised)
    _, batches = next(subject.batches(2))
    x = next(iter(batches.values())).x[method.unknown].to(device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        Classifier(method)(x)
    return float(3 * counter.get_total_flops() / 2 * rate / known[0].bf16)


def _shards(
    config: RunConfig,
    settings: StepSettings,
    root: Path,
    stack: ExitStack,
    device: torch.device,
    synthetic: float,
) -> dict[str, float]:
    """The recipe on a data set's shards, with all that it does to them."""
    plan = run_plan(config, root / "shards")
    dataset = open_data(plan.data)
    transforms = make_transforms(plan, dataset)
    classes = len(dataset.manifest.classes)
    imagined = replace(plan, method=config.method.imagined(classes))
    method = make_method(imagined, dataset, transforms)
    pin = device.type == "cuda"
    loader = stack.enter_context(Loader(dataset, transforms, plan.data, pin=pin))
    loop = _EngineLoop(method, _Real(loader), config, root / "shards")
    stack.callback(loop.close)
    turns = run_in_turns({"shards": loop}, settings.steps, settings.rounds + 1, device)
    wall = median(turn.wall for turn in turns["shards"][1:])
    rate = settings.batch * settings.steps / wall
    return {"images_per_s": rate, "of_synthetic": rate / synthetic}


def steps_table(result: Mapping[str, Any]) -> str:
    """The answer for people."""
    where = result["environment"]
    lines = [
        f"{where['device']}, {where['threads']} of {where['cpus']} CPU threads, torch "
        f"{where['torch']}: {result['parameters'] / 1e6:.1f} M parameters, "
        f"{result['precision']}, batch {result['settings']['batch']}",
        "loop      images/s  images/CPU-s",
    ]
    for name, run in result["runs"].items():
        lines.append(f"{name:<8}  {run['images_per_s']:8.1f}  {run['images_per_cpu_s']:12.1f}")
    lines.append(f"overhead over the bare loop: {100 * result['overhead']:.1f} %")
    if result["synergy_overhead"] is not None:
        lines.append(f"synergy over plain training: {100 * result['synergy_overhead']:.1f} %")
    if result["mfu"] is not None:
        lines.append(f"share of the GPU's bf16 rate: {100 * result['mfu']:.0f} %")
    if "shards" in result:
        rows = result["shards"]
        lines.append(
            f"shards    {rows['images_per_s']:8.1f}  ({100 * rows['of_synthetic']:.0f} % of the "
            "synthetic rate)"
        )
    return "\n".join(lines)
