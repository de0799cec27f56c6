"""Training steps and checkpoints measured on real runs: `outmodal train` in processes of its own.

A run is timed by what it writes itself: steps a second from its TensorBoard file, seconds of each
checkpoint from checkpoints.jsonl. The first steps of a run do not count, nor does its start.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml

from outmodal.data.encode import encode_npy
from outmodal.data.manifest import Manifest, Modality, ShardInfo, SplitInfo, write_manifest
from outmodal.data.shards import ShardWriter
from outmodal.errors import UserError
from outmodal.launch.local import run_local

DIM, CLASSES, SHARDS = 256, 10, 16
_EVERY = 4  # steps between measured points


@dataclass(frozen=True)
class Settings:
    """See `train_command.TrainArgs`."""

    strategies: tuple[str, ...]
    processes: int
    width: int
    checkpoint_width: int
    batch: int
    steps: int
    checkpoints: int
    rounds: int
    threads: int

    @property
    def warm_up(self) -> int:
        """Steps that do not count, in whole measured points."""
        return -(-self.steps // (2 * _EVERY)) * _EVERY


@dataclass(frozen=True)
class Kind:
    """One kind of run.

    Attributes:
        name: In the answer.
        ranks: Processes.
        batch: Global batch.
        width: Of the MLP.
        engine: Overrides.
    """

    name: str
    ranks: int
    batch: int
    width: int
    engine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        step_s: Seconds of a step, median over measured points (checkpoints included).
        mean_step_s: The mean, on which checkpoints weigh.
        checkpoints: Lines of checkpoints.jsonl.
    """

    step_s: float
    mean_step_s: float
    checkpoints: list[dict[str, float]]


def bench_train(settings: Settings, what: Sequence[str]) -> dict[str, Any]:
    """Run everything in turns, and compare.

    Raises:
        UserError: A run failed; its own message stands above.
    """
    result: dict[str, Any] = {
        "machine": {"cpus": os.cpu_count(), "torch": torch.__version__},
        "settings": asdict(settings),
    }
    with tempfile.TemporaryDirectory(prefix="outmodal-bench-") as folder:
        root = Path(folder)
        write_vectors(root / "data", max(4 * settings.batch * settings.processes, 2048))
        if "checkpoints" in what:
            runs = _in_turns(root, _checkpoint_kinds(settings), settings)
            result["checkpoints"] = _stalls(runs)
        if "scaling" in what:
            kinds = _scaling_kinds(settings)
            runs = _in_turns(root, kinds, settings)
            result["scaling"] = _scaling(kinds, runs, settings)
    return result


def write_vectors(root: Path, samples: int) -> None:
    """A labelled data set of random vectors."""
    root.mkdir(parents=True)
    generator = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", samples), ("test", 2 * SHARDS)):
        shards: list[ShardInfo] = []
        for number in range(SHARDS):
            with ShardWriter(root / f"{split}-{number:06d}.tar") as shard:
                for i in range(number, count, SHARDS):
                    vector = generator.standard_normal(DIM, dtype=np.float32)
                    members = {"signal.npy": encode_npy(vector), "cls": str(i % CLASSES).encode()}
                    shard.add(f"{split}-{i:06d}", members)
            shards.append(shard.info)
        splits[split] = SplitInfo(samples=count, shards=tuple(shards))
    signal = Modality(kind="vector", ext="npy", shape=(DIM,))
    classes = tuple(f"class{i}" for i in range(CLASSES))
    write_manifest(
        root, Manifest(name="bench", classes=classes, modalities={"signal": signal}, splits=splits)
    )


def _checkpoint_kinds(settings: Settings) -> list[Kind]:
    last = settings.warm_up + settings.steps
    every = max(1, last // (settings.checkpoints + 1))
    never = {"checkpoint_every": 10**6}
    return [
        Kind(
            name,
            1,
            settings.batch,
            settings.checkpoint_width,
            never
            if name == "none"
            else {"checkpoint_every": every, "async_checkpoint": name == "background"},
        )
        for name in ("none", "synchronous", "background")
    ]


def _scaling_kinds(settings: Settings) -> list[Kind]:
    many, batch, width = settings.processes, settings.batch, settings.width
    weak = [
        Kind(f"{s}, {many} processes", many, many * batch, width, {"strategy": s})
        for s in settings.strategies
    ]
    first = settings.strategies[0]
    strong = Kind(f"{first}, batch shared", many, batch, width, {"strategy": first})
    return [Kind("one process", 1, batch, width), strong, *weak]


def _in_turns(root: Path, kinds: Sequence[Kind], settings: Settings) -> dict[str, list[Measured]]:
    runs: dict[str, list[Measured]] = {kind.name: [] for kind in kinds}
    for number in range(settings.rounds):
        for place, kind in enumerate(kinds):
            out = Path(tempfile.mkdtemp(prefix=f"run-{number}-{place}-", dir=root))
            runs[kind.name].append(_measure(root / "data", out, kind, settings))
    return runs


def _measure(data: Path, out: Path, kind: Kind, settings: Settings) -> Measured:
    """Train once and read what the run wrote."""
    recipe = out.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(_recipe(data, kind, settings)), encoding="utf-8")
    code, _ = run_local(["train", str(recipe), "--out", str(out), "--json"], kind.ranks)
    if code != 0:
        raise UserError(f"the run '{kind.name}' ended with {code}: see its message above")
    return read_run(out, settings.warm_up)


def _recipe(data: Path, kind: Kind, settings: Settings) -> dict[str, Any]:
    return {
        "data": {"path": str(data), "batch": kind.batch, "streams": 8, "window": 256},
        "learners": [
            {
                "name": "mlp",
                "modality": "signal",
                "widths": [kind.width] * 3,
                "input": {"name": "vector", "dim": DIM},
            }
        ],
        "method": {"name": "erm", "unknown": "signal", "label_fraction": 1.0},
        "optim": {"name": "adamw", "lr": 1e-4},
        "engine": {
            "device": "cpu",
            "epochs": 10_000,
            "max_steps": settings.warm_up + settings.steps,
            "log_every": _EVERY,
            "checkpoint_every": 10**6,
            "threads": settings.threads,
            **kind.engine,
        },
    }


def read_run(out: Path, warm_up: int) -> Measured:
    """Times of a run on disk, its first `warm_up` steps aside."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    points = [p for p in board.Scalars("speed/steps_per_s") if p.step > warm_up]
    seconds = [1 / p.value for p in points]
    rows = (out / "checkpoints.jsonl").read_text("utf-8").splitlines()
    return Measured(median(seconds), sum(seconds) / len(seconds), [json.loads(row) for row in rows])


def _stalls(runs: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    """Seconds that training stood still for a checkpoint; the last one of a run does not count,
    since nothing is left to train beside it."""
    out: dict[str, Any] = {}
    for name in ("synchronous", "background"):
        rows = [row for run in runs[name] for row in run.checkpoints[:-1] or run.checkpoints]
        out[name] = {
            "MiB": median(row["bytes"] for row in rows) / 2**20,
            "checkpoints": len(rows),
            **{
                key: median(row[key] for row in rows)
                for key in ("stall_s", "wait_s", "snapshot_s", "write_s")
            },
        }
    for name, found in runs.items():
        out.setdefault(name, {})["mean_step_s"] = median(run.mean_step_s for run in found)
    out["stall_ratio"] = out["synchronous"]["stall_s"] / out["background"]["stall_s"]
    return out


def _scaling(
    kinds: Sequence[Kind], runs: Mapping[str, Sequence[Measured]], settings: Settings
) -> list[dict[str, Any]]:
    """Each kind beside one process, and each strategy beside the first one, round by round."""
    alone = [run.step_s for run in runs["one process"]]
    first = [
        run.step_s for run in runs[f"{settings.strategies[0]}, {settings.processes} processes"]
    ]
    rows = []
    for kind in kinds:
        seconds = [run.step_s for run in runs[kind.name]]
        speedup = median(
            (kind.batch / s) / (settings.batch / a) for s, a in zip(seconds, alone, strict=True)
        )
        weak = kind.ranks > 1 and kind.batch == settings.batch * kind.ranks
        over = median(s / f for s, f in zip(seconds, first, strict=True)) if weak else None
        rows.append(
            {
                "name": kind.name,
                "processes": kind.ranks,
                "batch": kind.batch,
                "step_s": median(seconds),
                "samples_per_s": kind.batch / median(seconds),
                "speedup": speedup,
                "efficiency": speedup / kind.ranks,
                "over_first_strategy": over,
            }
        )
    return rows


def table(result: Mapping[str, Any]) -> str:
    """The answer for people."""
    lines: list[str] = []
    if "checkpoints" in result:
        found = result["checkpoints"]
        lines.append("checkpoint    MiB     stall s  wait s   snapshot s  write s  mean step s")
        for name in ("synchronous", "background"):
            row = found[name]
            lines.append(
                f"{name:<12}  {row['MiB']:6.1f}  {row['stall_s']:7.4f}  {row['wait_s']:7.4f}  "
                f"{row['snapshot_s']:10.4f}  {row['write_s']:7.4f}  {row['mean_step_s']:11.4f}"
            )
        lines.append(f"{'none':<12}  {'':50}  {found['none']['mean_step_s']:8.4f}")
        lines.append(f"stall, synchronous / background: {found['stall_ratio']:.1f}")
    if "scaling" in result:
        lines += [
            "",
            "run                     batch  step s   samples/s  speedup  efficiency  over",
        ]
        for row in result["scaling"]:
            over = row["over_first_strategy"]
            lines.append(
                f"{row['name']:<22}  {row['batch']:5d}  {row['step_s']:6.4f}  "
                f"{row['samples_per_s']:10.0f}  {row['speedup']:7.2f}  {row['efficiency']:10.2f}  "
                + (f"{over:.2f}" if over else "-")
            )
        first = result["settings"]["strategies"][0]
        lines.append(f"over: time of a step / that of {first} with the same processes and batch")
    return "\n".join(lines).strip()
