"""Where the latents of synergy runs lie: distances between learner, helper and trained latents.

Of the paper "Can One Modality Model Synergize Training of Other Modality Models?" (ICLR 2025):
P_i are the latents of the same architecture at alpha 0, P_j the helper's targets, and the trained
latents should lie between them. Its alpha* needs P*, the latents of an ideal encoder, which nobody
has: it is computed with the latents of another run in its place, and is then called a proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outmodal.errors import UserError
from outmodal.train.evaluation import LocalPasses
from outmodal.train.intervals import Bootstrap
from outmodal.train.latents_board import Points, write_board
from outmodal.train.methods import Synergy
from outmodal.train.methods.synergy_report import LATENTS, Latents, drawn, latents_of
from outmodal.train.representations import Encoder
from outmodal.train.results import Evaluation, Of, Table
from outmodal.train.run import RunPlan, restore_method
from outmodal.train.sources import RunSource
from outmodal.train.wasserstein import alpha_star, gaussian_w2, sliced_w2, unit_mean_norm

_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "gaussian": gaussian_w2,
    "sliced": sliced_w2,
}
PLAIN = Bootstrap()


def latents_task(
    encoder: Encoder,
    split: str,
    against: RunPlan | None,
    proxy: RunPlan | None = None,
    bootstrap: Bootstrap = PLAIN,
    board: Path | None = None,
) -> Evaluation:
    """Distances W2 between sets of latents of a split, each scaled to unit mean norm.

    Args:
        encoder: Of a run of method synergy, on its own data, with `split` as the method's
            evaluation split.
        split: What is encoded, at most 5,000 samples of it.
        against: The same run at alpha 0.
        proxy: What stands for an ideal encoder: a run with paired descriptions, level 3.
        bootstrap: Unused: distances between sets have no samples to resample here.
        board: TensorBoard's folder of the run, which gets the numbers and the points.

    Returns:
        "latent_loss", and of each estimator (see `train.wasserstein`) "delta_ij" (learner alone to
        targets), "learner_trained" and "target_trained"; with a proxy also "proxy/delta_i",
        "proxy/delta_j", "proxy/delta_k" (of the trained latents), "proxy/alpha_star" within 0..1,
        and "proxy/alpha_star_outside", 1 where the formula's own value is not.

    Raises:
        UserError: One of them is no synergy run, or their latents differ in size.
    """
    if against is None:
        raise UserError("--task latents compares two runs: name the one at alpha 0, --against RUN")
    source = encoder.source
    if not isinstance(source, RunSource) or not isinstance(source.method, Synergy):
        raise UserError(f"{source.name} is no run of method synergy, which --task latents is for")
    if not source.own:
        raise UserError("--task latents is for a run's own data set: leave --data out")
    method = source.method
    passes = LocalPasses(method, encoder.dataset, source.inputs, encoder.data)
    try:
        own = latents_of(method, passes, split, _places(method, split))
    finally:
        passes.close()
    alone = run_latents(against, split, encoder.device)
    sets = {"trained": own.z, "target": own.target, "learner": alone.z}
    if proxy is not None:
        sets["star"] = run_latents(proxy, split, encoder.device).z
    _check(sets)
    table = Table(bootstrap)
    table.number("latent_loss", own.loss)
    values = {"latent_loss": own.loss}
    for name in _ESTIMATORS:
        for key, value in distances(sets, name).items():
            table.number(f"{name}/{key}", value, Of(combination=name))
            values[f"{name}/{key}"] = value
    if board is not None:
        step = int((source.checkpoint or "step-0").rpartition("-")[2])
        write_board(board, step, values, _points(alone, own), method.context.classes)
    names = {"against": str(against.out), "proxy": str(proxy.out) if proxy else None}
    return table.done(len(own.z), **names, most=LATENTS)


def run_latents(plan: RunPlan, split: str, device: torch.device) -> Latents:
    """Latents and targets of a run of method synergy on a split, at most 5,000 samples.

    Raises:
        UserError: It is no such run, has no checkpoint, or its data lack the split.
    """
    changed = replace(plan, data=plan.data.model_copy(update={"eval_split": split}))
    method, inputs, dataset = restore_method(changed)
    if not isinstance(method, Synergy):
        raise UserError(
            f"{plan.out} is no run of method synergy: name one, of alpha 0 for instance"
        )
    passes = LocalPasses(method.to(device), dataset, inputs, changed.data)
    try:
        return latents_of(method, passes, split, _places(method, split))
    finally:
        passes.close()


def distances(sets: Mapping[str, Tensor], estimator: str) -> dict[str, float]:
    """See `latents_task`; `sets` are "learner", "target", "trained", and "star" where there is a
    proxy."""
    measure = _ESTIMATORS[estimator]
    unit = {name: unit_mean_norm(rows) for name, rows in sets.items()}

    def between(a: str, b: str) -> float:
        return measure(unit[a], unit[b])

    found = {
        "delta_ij": between("learner", "target"),
        "learner_trained": between("learner", "trained"),
        "target_trained": between("target", "trained"),
    }
    if "star" not in sets:
        return found
    delta_i, delta_j = between("star", "learner"), between("star", "target")
    best = alpha_star(delta_i, delta_j, found["delta_ij"])
    return found | {
        "proxy/delta_i": delta_i,
        "proxy/delta_j": delta_j,
        "proxy/delta_k": between("star", "trained"),
        "proxy/alpha_star": best.value,
        "proxy/alpha_star_outside": float(best.outside),
    }


def _points(alone: Latents, trained: Latents) -> list[Points]:
    """The three sets of the paper's Figure 3. A target has the class of the sample that it was
    drawn for, where all have one."""
    whole = len(trained.target) == len(trained.z)
    unknown = torch.full((len(trained.target),), -1)
    return [
        Points("learner alone", alone.z, alone.label),
        Points("helper's targets", trained.target, trained.label if whole else unknown),
        Points("trained", trained.z, trained.label),
    ]


def _places(method: Synergy, split: str) -> NDArray[np.int64] | None:
    return drawn(len(method.context.labels[split]), method.context.seed)


def _check(sets: Mapping[str, Tensor]) -> None:
    sizes = {name: rows.shape[1] for name, rows in sets.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(
            f"the latents differ in size ({told}): compare runs with targets of one helper"
        )
    empty = [name for name, rows in sets.items() if len(rows) < 2]
    if empty:
        raise UserError(
            f"no two samples of the split have {' and '.join(empty)} latents: choose another split"
        )
