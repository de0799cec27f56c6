"""One rank of test_ranks.py: gradients of each method on this rank's part of a global batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from outmodal.data.batch import Batch
from outmodal.train import gather
from outmodal.train.methods import (
    AlignConfig,
    AnyMethodConfig,
    CoxConfig,
    DiagnoseRelearnConfig,
    EntMinConfig,
    ErmConfig,
    InfoBridgeConfig,
    InfoNceConfig,
    JointTrainConfig,
    MissingDetectionConfig,
    MmParetoConfig,
    MultiTaskConfig,
    NaiveConfig,
    OgmGeConfig,
    PmrConfig,
    ReconBoostConfig,
    SynergyConfig,
    UmeMmaConfig,
    UnimodalConfig,
    build_method,
)
from tests.train.methods.fakes import Passes, make_context, make_world

THREE = ("touch", "image", "text")  # two learners and a vector
OBJECTIVES: dict[str, dict[str, Any]] = {
    "clip": {"name": "clip"},
    "clip_ib": {"name": "clip_ib"},
    "siglip": {"name": "siglip"},
    "symile": {"name": "symile"},
    "symile_squared": {"name": "symile", "negatives": "n_squared"},
    "gram": {"name": "gram"},
    "triangle": {"name": "triangle"},
    "triangle_root": {"name": "triangle", "area": "root"},
    "ova_ib": {"name": "ova_ib", "temperature": 0.1},
    "ova_ib_mlp": {"name": "ova_ib", "temperature": 0.1, "projector": "mlp"},
    "ova_ib_paper": {"name": "ova_ib", "temperature": 0.1, "fidelity": "paper"},
}


def aligning(objective: str, **keys: Any) -> AlignConfig:
    """Alignment of three modalities under an objective."""
    given = {"modalities": THREE, "head": {"dim": 8}, "objective": OBJECTIVES[objective], **keys}
    return AlignConfig.model_validate(given)


def tabled(**keys: Any) -> SynergyConfig:
    """Synergy with a table that no encoder made."""
    config = SynergyConfig.model_validate({"unknown": "touch", "targets": "gaussian", **keys})
    table = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    return config.restored({"targets.table": table})


SMALL = {"unknown": "touch", "vib_hidden": 16, "vib_latent": 4, "warmup_epochs": 1}
CONFIGS: dict[str, AnyMethodConfig] = {
    "erm": ErmConfig(unknown="touch"),
    "entmin": EntMinConfig(unknown="touch"),
    "align": AlignConfig(),
    **{f"align_{name}": aligning(name) for name in OBJECTIVES},
    "align_ring": aligning("clip", exchange="ring"),
    "align_ova_ring": aligning("ova_ib", exchange="ring"),
    "align_gram_gather": aligning("gram", exchange="gather"),
    **{f"align_{name}_absent": aligning(name) for name in ("clip", "symile", "gram", "ova_ib")},
    **{
        f"cox_{explore}": CoxConfig.model_validate({**SMALL, "explore": explore})
        for explore in ("mean_posterior", "all_pairs", "knn")
    },
    "synergy": tabled(),
    "synergy_side": tabled(latent_map="side", latent_loss="cosine"),
    "synergy_kept": tabled(target_assign="per_sample", label_fraction=0.5),
    "synergy_gaussian": SynergyConfig(unknown="touch", targets="gaussian", dim=9),
    "synergy_samples": SynergyConfig(unknown="touch", targets="samples", guide="image"),
    "synergy_paired": SynergyConfig(unknown="touch", level=3, guide="image", smoothing=0.1),
    "synergy_absent": SynergyConfig(unknown="touch", level=3, guide="text"),
    "cox_code": CoxConfig.model_validate({**SMALL, "fidelity": "code"}),
    **{
        f"cox_unsup_{name}": CoxConfig.model_validate(
            {**SMALL, "setting": "unsup", "warmup_epochs": 2, **keys}
        )
        for name, keys in {
            "bootstrap": {},
            "warmup": {},
            "warmup_random": {"warm_pairs": "class_random"},
            "main": {},
            "main_apart": {"im_paired": False, "dist_agg": "rms"},
            "main_paper": {"fidelity": "paper"},
        }.items()
    },
}
BALANCED: tuple[tuple[AnyMethodConfig, str], ...] = (
    (UnimodalConfig(modalities=("touch",)), "train"),
    (JointTrainConfig(modalities=THREE), "train"),
    (InfoNceConfig(modalities=THREE), "train"),
    (OgmGeConfig(modalities=THREE), "modulated"),
    (PmrConfig(modalities=THREE), "rebalanced"),
    (MmParetoConfig(modalities=THREE), "train"),
    (DiagnoseRelearnConfig(modalities=THREE, holdout=0.2, every=1), "train"),
    (ReconBoostConfig(modalities=THREE), "turn:touch"),
)
FUSION: dict[str, tuple[AnyMethodConfig, str]] = {
    "fusion_naive": (NaiveConfig(modalities=THREE), "train"),
    "fusion_multilabel": (UmeMmaConfig(modalities=THREE, answer="multilabel"), "fusion"),
    "fusion_multi_task": (MultiTaskConfig(modalities=THREE, fuse="mean_probs"), "train"),
    "fusion_detection": (MissingDetectionConfig(modalities=THREE), "train"),
    **{
        f"fusion_ume_mma_{stage}": (UmeMmaConfig(modalities=THREE, complete_epochs=2), stage)
        for stage in ("unimodal", "fusion", "complete")
    },
    "fusion_ume_mma_frozen": (UmeMmaConfig(modalities=THREE, freeze_encoders=True), "fusion"),
    "fusion_ume_mma_extra": (
        UmeMmaConfig(modalities=THREE, extra_drop=True, one=True, fuse="mean_probs"),
        "fusion",
    ),
    **{f"fusion_{config.name}": (config, stage) for config, stage in BALANCED},
    **{
        f"fusion_infobridge_{name}": (
            InfoBridgeConfig.model_validate({"modalities": THREE, "buffer": 48, **keys}),
            "train",
        )
        for name, keys in {
            "mlp": {},
            "bilinear": {"critic": "bilinear", "neg": "any_T"},
            "cluster": {"context": "cluster", "n0": 1},
            "retrieval": {"context": "retrieval"},
            "alternate": {"context": "const", "update": "alternate"},
        }.items()
    },
}
"""Name -> method and stage. One rank's samples all lack a modality."""
CONFIGS |= {name: config for name, (config, _) in FUSION.items()}


def own_rows(batch: Batch) -> Batch:
    """This rank's contiguous part of a global batch."""
    world = gather.world()
    count = len(batch) // world.size
    return batch.rows(slice(world.rank * count, (world.rank + 1) * count))


def labelled(batch: Batch) -> Batch:
    """With several labels a sample, none for some."""
    target = torch.stack([batch.label % 2, batch.label // 2, batch.index % 2, batch.index % 3], 1)
    return replace(
        batch,
        target=target.clamp_max(1).float().masked_fill(batch.index[:, None] % 5 == 0, torch.nan),
    )


def gradients(name: str) -> dict[str, Tensor]:
    """Rank-averaged gradients and logs of two steps of a method."""
    world = make_world(train=200, test=40)
    # uneven masks: most of the missing rows fall on one rank
    world.absent["train"] = {"touch": list(range(60)), "image": list(range(50, 100))}
    if name.endswith("_absent"):
        world.absent["train"]["text"] = list(range(200))
    if name in FUSION:
        world.absent["train"] = {"touch": list(range(140)), "image": list(range(150, 190))}
    config = CONFIGS[name]
    learners = ("touch", "image") if name.startswith(("align", "fusion")) else ()
    method = build_method(config, make_context(world, learners=learners))
    stage = [s.name for s in method.stages()][-1]
    if name in FUSION:
        stage = FUSION[name][1]
    if name.startswith("cox_unsup"):
        stage = name.split("_")[2]
        method.on_epoch_start(0, "bootstrap", Passes(world, method))
    method.on_epoch_start(1, stage, Passes(world, method))
    out: dict[str, Tensor] = {}
    for step in range(2):
        batches = world.step(list(method.streams(stage)), step)
        # in index order, so that the rows without a modality meet one rank
        for spec in method.streams(stage):
            if spec.name in batches:
                batches[spec.name] = world.batch(
                    spec, batches[spec.name].index.sort().values.numpy()
                )
        if name == "fusion_multilabel":
            batches = {n: labelled(b) for n, b in batches.items()}
        result = method({n: own_rows(b) for n, b in batches.items()}, stage, step)
        result.loss.backward()
        out |= {f"{name}/{step}/{k}": v.detach().clone() for k, v in result.logs.items()}
    reduced = {}
    for key, p in method.named_parameters():
        grad = torch.zeros_like(p) if p.grad is None else p.grad.clone()
        if gather.world().size > 1:
            dist.all_reduce(grad)
        reduced[key] = grad / gather.world().size
    method.edit_gradients(reduced, stage, 0)
    return out | {f"{name}/grad/{key}": grad for key, grad in reduced.items()}


def main(job: Mapping[str, Any]) -> None:
    """Compute all methods' gradients; the main rank writes them to `job["out"]`."""
    torch.set_num_threads(1)
    gather.open_world("cpu")
    results = {k: v for name in CONFIGS for k, v in gradients(name).items()}
    if gather.is_main():
        save_file({k: v.contiguous() for k, v in results.items()}, job["out"])
    gather.barrier()
