"""A tiny data set of three modalities, a recipe for it, and plans of tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from outmodal.data.manifest import Dataset
from outmodal.launch.reproduce.cells import Plan, Request, plan_table
from outmodal.launch.reproduce.table import chosen_rows, load_table
from tests.data.tiny import make_tiny

NAMES = ("pose", "force", "text")
RECIPE = """
data: {batch: 8, streams: 2}
learners:
  - {name: mlp, modality: pose, widths: [8, 8], input: {name: vector, dim: 7}}
  - name: cnn1d
    modality: force
    widths: [8]
    input: {name: series, length: 16, channels: 3}
method: {name: align, head: {dim: 8}, prototypes: false}
optim: {name: adam, lr: 1.0e-2}
engine: {epochs: 2, device: cpu, threads: 1}
"""


def make_data(root: Path, **options: Any) -> Dataset:
    """48 training samples of three classes."""
    return make_tiny(root, **{"samples": 48, "shards": 4, "modalities": NAMES, **options})


def make_recipe(root: Path) -> str:
    """Path of the recipe."""
    path = root / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


def planned(dataset: Dataset, table: str, out: Path = Path("out"), **asked: Any) -> Plan:
    """The plan of all rows of a table."""
    spec = load_table(table)
    asked = {"seeds": 1, "rows": chosen_rows(spec, ()), **asked}
    return plan_table(spec, dataset, Request(out, **asked))
