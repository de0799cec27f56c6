"""One rank of test_viewed_ranks.py: three steps of each method on its part of a global batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from outmodal.train import gather
from outmodal.train.methods import (
    FreeMatchConfig,
    MixTextConfig,
    MocoConfig,
    MocoCoxConfig,
    SslConfig,
    build_method,
)
from tests.train.methods.fakes import Passes
from tests.train.methods.viewed import viewed_context, viewed_world, words_learner

TOUCH = {"unknown": "touch"}
CONNECTED = {**TOUCH, "vib_hidden": 16, "vib_latent": 4, "warmup_epochs": 1}
# decays and sizes at which three steps move everything
FAST = {"momentum": 0.5, "queue": 40, "contrast_dim": 8}
CONFIGS: dict[str, Any] = {
    "ssl": SslConfig.model_validate(TOUCH),
    "ssl_unsup": SslConfig.model_validate({**TOUCH, "setting": "unsup"}),
    "ssl_words": SslConfig(unknown="words"),
    "moco": MocoConfig.model_validate({**TOUCH, **FAST}),
    "moco_alone": MocoConfig.model_validate({**TOUCH, **FAST, "lambda_entropy": 0.0}),
    "moco_unsup": MocoConfig.model_validate({**TOUCH, **FAST, "setting": "unsup"}),
    "moco_cox": MocoCoxConfig.model_validate({**CONNECTED, **FAST}),
    "moco_cox_unsup": MocoCoxConfig.model_validate(
        {**CONNECTED, **FAST, "setting": "unsup", "warmup_epochs": 2}
    ),
    "freematch": FreeMatchConfig.model_validate({**TOUCH, "unlabelled_ratio": 2, "ema": 0.5}),
    "mixtext": MixTextConfig(unknown="words", unlabelled_ratio=2),
}
ABSENT = {f"{name}_absent": name for name in ("ssl", "moco_unsup", "freematch", "mixtext")}
"""Cases where no sample holds the modality: every subset is empty on every rank."""


def steps_of(name: str) -> dict[str, Tensor]:
    """Rank-averaged gradients, logs and state after three steps of plain gradient descent."""
    world = viewed_world(train=200, test=40)
    # most of the rows without the modality, in index order, fall on one rank
    gone = range(200) if name in ABSENT else range(60)
    world.absent["train"] = {"touch": list(gone), "words": list(gone)}
    config = CONFIGS[ABSENT.get(name, name)]
    learner = words_learner() if config.unknown == "words" else None
    method = build_method(config, viewed_context(world, learner))
    out: dict[str, Tensor] = {}
    passes = Passes(world, method)
    for epoch, stage in enumerate(stage.name for stage in method.stages()):
        method.on_epoch_start(epoch, stage, passes)
        for step in range(3 if stage != "bootstrap" else 1):
            logs = _step(method, world, stage, 10 * epoch + step)
            out |= {f"{name}/{stage}/{step}/{k}": t for k, t in logs.items()}
    for key, p in method.named_parameters():
        out[f"{name}/grad/{key}"] = torch.zeros_like(p) if p.grad is None else p.grad.clone()
    return out | {f"{name}/state/{k}": t.clone() for k, t in method.method_state().items()}


def _step(method: Any, world: Any, stage: str, step: int) -> dict[str, Tensor]:
    specs = list(method.streams(stage))
    drawn = world.step(specs, step)
    batches = {}
    for spec in specs:
        if spec.name in drawn:
            order = drawn[spec.name].index.sort().values
            whole = world.batch(spec, order.numpy())
            size, count = gather.world().size, len(whole) // gather.world().size
            assert count * size == len(whole)
            begin = gather.row_offset(count)
            batches[spec.name] = whole.rows(slice(begin, begin + count))
    method.zero_grad()
    result = method(batches, stage, step)
    result.loss.backward()
    with torch.no_grad():
        for p in method.parameters():
            if p.grad is not None and gather.world().size > 1:
                dist.all_reduce(p.grad)
                p.grad /= gather.world().size
            if p.grad is not None:
                p -= 0.05 * p.grad
    return {k: v.detach().clone() for k, v in result.logs.items()}


def main(job: Mapping[str, Any]) -> None:
    """Run all cases; every rank writes its own file, so that states can be compared."""
    torch.set_num_threads(1)
    gather.open_world("cpu")
    names = [*CONFIGS, *ABSENT]
    results = {k: v for name in names for k, v in steps_of(name).items()}
    held = {k: v.contiguous().clone() for k, v in results.items()}
    save_file(held, f"{job['out']}-{gather.world().rank}.safetensors")
    gather.barrier()
