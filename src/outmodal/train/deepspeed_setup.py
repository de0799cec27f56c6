"""Making Accelerate and DeepSpeed do what was asked, on CPU or GPU, or say that they do not."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from outmodal.train import gather

Precision = Literal["fp32", "bf16"]

PERSISTENT_BELOW = 100_000  # ZeRO 3 keeps parameters smaller than this whole on every rank


def deepspeed_accelerator(stage: int, precision: Precision, clip: float) -> Accelerator:
    """An Accelerator that will train ZeRO `stage`, whatever device there is."""
    from accelerate.utils import DeepSpeedPlugin

    cpu = gather.world().device.type == "cpu"
    if cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ.pop("ACCELERATE_USE_CPU", None)
    _prepare_deepspeed(cpu)
    plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_config(stage, precision, clip))
    accelerator = Accelerator(
        deepspeed_plugin=plugin,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo" if cpu else "nccl")],
    )
    expect(accelerator.distributed_type.name == "DEEPSPEED", accelerator.distributed_type)
    expect(accelerator.num_processes == gather.world().size, accelerator.num_processes)
    return accelerator


def deepspeed_config(stage: int, precision: Precision, clip: float) -> dict[str, Any]:
    """DeepSpeed's configuration; everything that it would otherwise guess is given."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # never used: our loader makes the batches
        "gradient_accumulation_steps": 1,  # we divide the loss and set the boundaries
        "gradient_clipping": clip,
        "steps_per_print": sys.maxsize,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": True},
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "stage3_param_persistence_threshold": PERSISTENT_BELOW,
        },
    }


def _prepare_deepspeed(cpu: bool) -> None:
    """Keep DeepSpeed's log off stdout. On a CPU, tell it that none of its C++ extensions works
    before it tries out which do: it would need a compiler, and build one at the first run."""
    import deepspeed
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    for handler in logging.getLogger("DeepSpeed").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    if cpu:
        names = [*ALL_OPS, "deepspeed_not_implemented"]
        deepspeed.ops.__compatible_ops__ = dict.fromkeys(names, False)


@contextlib.contextmanager
def own_broadcast() -> Iterator[None]:
    """DeepSpeed 0.19 sends initial parameters as bytes and fails on a scalar (a logit scale);
    `make_backend` has sent them already."""
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.partition_parameters import Init

    def partition(self: Any, param: Any) -> None:
        self._convert_to_deepspeed_param(param)
        param.partition()

    before = DeepSpeedEngine._broadcast_model, Init._zero_init_param
    DeepSpeedEngine._broadcast_model, Init._zero_init_param = lambda self: None, partition
    try:
        yield
    finally:
        DeepSpeedEngine._broadcast_model, Init._zero_init_param = before


@contextlib.contextmanager
def quiet_accelerate() -> Iterator[None]:
    """No advice about what is chosen on purpose; and the number of threads stays ours."""
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


@contextlib.contextmanager
def no_rank_variables() -> Iterator[None]:
    """A launcher sets them for a single process too; Accelerate then wraps it in DDP."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    before = {name: os.environ.pop(name, None) for name in names}
    try:
        yield
    finally:
        os.environ.update({k: v for k, v in before.items() if v is not None})


@contextlib.contextmanager
def rank_variables() -> Iterator[None]:
    """Accelerate and DeepSpeed read the ranks from the environment, at any time."""
    w = gather.world()
    wanted = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "RANK": str(w.rank),
        "LOCAL_RANK": str(w.local_rank),
        "WORLD_SIZE": str(w.size),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT", "29500"),
    }
    before = {k: os.environ.get(k) for k in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def register_parameters(router: nn.Module, params: Iterable[nn.Parameter]) -> None:
    """ZeRO 3 gathers a module's parameters around that module's forward; the method's own ones
    (a logit scale) are used inside the router's."""
    from deepspeed.runtime.zero import register_external_parameter

    for p in params:
        register_external_parameter(router, p)


def expect(holds: bool, got: object) -> None:
    """Accelerate falls back to plain training in silence; do not."""
    if not holds:
        raise RuntimeError(f"the training layer did not set up as asked: got {got}")
