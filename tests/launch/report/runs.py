"""Runs to report on: trained ones, and folders that are written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from outmodal.launch.config import load_config
from outmodal.launch.running import run_plan
from outmodal.train.run import train
from tests.data.tiny import make_tiny

HEAD = """
data: {{path: {data}, batch: 16, streams: 4, window: 16}}
optim: {{name: adam, lr: 1.0e-2}}
engine: {{epochs: 4, device: cpu, log_every: 1, threads: 1}}
learners:
  - name: mlp
    modality: force
    widths: [12]
    input: {{name: series, length: 16, channels: 3}}
"""
_POSE = """
  - name: mlp
    modality: pose
    widths: [12]
    input: {name: vector, dim: 7}
"""
METHODS = {
    "cox": "\nmethod: {name: cox, unknown: force, known: [pose], label_fraction: 0.5, "
    "warmup_epochs: 2, vib_hidden: 16, vib_latent: 8}\n",
    "erm": "\nmethod: {name: erm, unknown: force, label_fraction: 0.5}\n",
    "align": _POSE + "method: {name: align, modalities: [force, pose]}\n",
    "ume_mma": _POSE + "method: {name: ume_mma}\n",
}


def trained(root: Path, names: Sequence[str]) -> dict[str, Path]:
    """Train tiny runs on one data set of two modalities; name -> folder."""
    data = make_tiny(root / "data", 64, 4, ("force", "pose"), test=20)
    runs = {}
    for name in names:
        recipe = root / f"{name}.yaml"
        recipe.write_text(HEAD.format(data=data.root) + METHODS[name], "utf-8")
        runs[name] = root / name
        train(run_plan(load_config(str(recipe), ["--out", str(runs[name])]), runs[name]))
    return runs


def line(step: int, split: str, **values: float | None) -> str:
    """A line of metrics.jsonl."""
    record = {"step": step, "epoch": 0, "stage": "one", "split": split, "values": values}
    return json.dumps(record, sort_keys=True) + "\n"


def by_hand(root: Path, metrics: str = "", config: str = "seed: 0\n", *, done: bool = True) -> Path:
    """A run's folder without a checkpoint."""
    root.mkdir(parents=True)
    (root / "config.yaml").write_text(config, "utf-8")
    (root / "metrics.jsonl").write_bytes(metrics.encode())
    if done:
        (root / "result.json").write_text('{"step": 2, "metrics": {}}', "utf-8")
    return root


def boarded(root: Path, tag: str, values: Sequence[float], begin: int = 1, purge: int = 0) -> Path:
    """Write scalars for TensorBoard at steps begin, begin + 1, ...; returns the file."""
    folder = root / "tensorboard"
    before = set(folder.glob("*"))
    with SummaryWriter(str(folder), purge_step=purge or None) as board:
        for step, value in enumerate(values, begin):
            board.add_scalar(tag, value, step)
    (made,) = set(folder.glob("*")) - before
    return made
