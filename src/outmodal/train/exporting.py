"""From a run on disk to an export: the newest checkpoint's encoder, verified on real samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from outmodal.data.batch import Batch
from outmodal.data.decode import DecodeError, decode
from outmodal.data.manifest import Dataset
from outmodal.data.shards import read_shard
from outmodal.data.transform import Transform
from outmodal.errors import UserError
from outmodal.models.card import CardInfo
from outmodal.models.export import export_encoder
from outmodal.models.graph import GraphKind
from outmodal.train.methods import Method
from outmodal.train.run import RunPlan, restore_method

CHECK_SAMPLES = 16


def export_run(
    plan: RunPlan,
    out: Path,
    card: CardInfo,
    *,
    modality: str | None = None,
    ema: bool = True,
    graphs: Sequence[GraphKind] = (),
    force: bool = False,
) -> Path:
    """Export one encoder of a run.

    Args:
        plan: The run, as its config.yaml describes it.
        out: New folder to write.
        card: What the model card says.
        modality: Which encoder; None where the run trained only one.
        ema: Take the averaged weights where the run kept them.
        graphs: Graphs to write as well, see `models.graph`.
        force: Replace an existing folder.

    Raises:
        UserError: No complete checkpoint, an unknown modality, an existing folder, or a data
            set without samples of the modality.
        RuntimeError: What was written differs from what the run's own method gives.
    """
    method, transforms, dataset = restore_method(plan, ema)
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
        own=own_outputs(method, name, inputs, classified=parts.classifier is not None),
        graphs=graphs,
        force=force,
    )


def own_outputs(method: Method, modality: str, x: Tensor, classified: bool) -> dict[str, Tensor]:
    """What the method itself gives for inputs x [n, ...]: "repr", "embedding" and, where it
    classifies, "logits"."""
    n = len(x)
    every = torch.ones(n, dtype=torch.bool)
    batch = Batch(
        index=torch.arange(n),
        label=torch.full((n,), -1),
        x={modality: x},
        present={modality: every},
        valid=every,
    )
    with torch.no_grad():
        found = method.infer(f"embedding:{modality}", batch)
        own = {"repr": found["representation"], "embedding": found["embedding"]}
        if classified:
            own["logits"] = method.infer(f"logits:{modality}", batch)["logits"]
    return own


def sample_inputs(
    dataset: Dataset, split: str, modality: str, transform: Transform, count: int = CHECK_SAMPLES
) -> Tensor:
    """The first good samples of a modality as encoder inputs, [count, ...]."""
    rows: list[Tensor] = []
    for shard in dataset.split(split).shards:
        spec = dataset.modality_in(shard, modality)
        if spec is None:
            continue
        member = f"{modality}.{spec.ext}"
        for _, key, members in read_shard(dataset.shard(shard)):
            if member in members:
                try:
                    rows.append(transform(decode(spec, members[member]), key))
                except DecodeError:
                    continue
            if len(rows) == count:
                return torch.stack(rows)
    if not rows:
        raise UserError(
            f"split '{split}' of {dataset.where} has no sample of '{modality}' to verify the "
            "export with: export on a data set that has some"
        )
    return torch.stack(rows)
