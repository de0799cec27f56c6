"""From a run on disk to an export: the newest checkpoint's encoder, verified on real samples."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from outmodal.data.decode import DecodeError, decode
from outmodal.data.manifest import Dataset
from outmodal.data.shards import read_shard
from outmodal.data.transform import Transform
from outmodal.errors import UserError
from outmodal.models.card import CardInfo
from outmodal.models.export import export_encoder
from outmodal.train.run import RunPlan, restore_method

CHECK_SAMPLES = 16


def export_run(
    plan: RunPlan, out: Path, card: CardInfo, *, modality: str | None = None, force: bool = False
) -> Path:
    """Export one encoder of a run.

    Args:
        plan: The run, as its config.yaml describes it.
        out: New folder to write.
        card: What the model card says.
        modality: Which encoder; None where the run trained only one.
        force: Replace an existing folder.

    Raises:
        UserError: No complete checkpoint, an unknown modality, an existing folder, or a data
            set without samples of the modality.
    """
    method, transforms, dataset = restore_method(plan)
    parts = method.export_parts(modality)
    name = parts.learner.modality
    inputs = sample_inputs(dataset, plan.data.eval_split, name, transforms[name])
    return export_encoder(
        parts.learner,
        transforms[name],
        out,
        head=parts.head,
        classifier=parts.classifier,
        classes=dataset.manifest.classes,
        card=card,
        sample_inputs=inputs,
        feature_norm=parts.feature_norm,
        force=force,
    )


def sample_inputs(
    dataset: Dataset, split: str, modality: str, transform: Transform, count: int = CHECK_SAMPLES
) -> Tensor:
    """The first good samples of a modality as encoder inputs, [count, ...]."""
    spec = dataset.modality(modality)
    member = f"{modality}.{spec.ext}"
    rows: list[Tensor] = []
    for shard in dataset.split(split).shards:
        for _, key, members in read_shard(dataset.shard_path(shard)):
            if member in members:
                try:
                    rows.append(transform(decode(spec, members[member]), key))
                except DecodeError:
                    continue
            if len(rows) == count:
                return torch.stack(rows)
    if not rows:
        raise UserError(
            f"split '{split}' of {dataset.root} has no sample of '{modality}' to verify the "
            "export with: export on a data set that has some"
        )
    return torch.stack(rows)
