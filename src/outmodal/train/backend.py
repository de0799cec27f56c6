"""What runs a step: one process, DDP or DeepSpeed ZeRO behind one small interface.

Accelerate is the front for all of them. Under DeepSpeed only `prepare` is Accelerate's: its
`backward` would step at once, and between the gradient and the step lies our guard. The layouts
of `outmodal.train.state` give access to masters and moments whatever the sharding.
"""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from outmodal.data.batch import Batch
from outmodal.errors import UserError
from outmodal.train import gather, gradients
from outmodal.train.deepspeed_setup import (
    Precision,
    deepspeed_accelerator,
    expect,
    no_rank_variables,
    own_broadcast,
    quiet_accelerate,
    rank_variables,
    register_parameters,
)
from outmodal.train.methods.base import Method, WholeBatchMethod
from outmodal.train.optim import Reached, trainable
from outmodal.train.state import FlatLayout, Layout, PartitionLayout, PlainLayout

Strategy = Literal["single", "ddp", "zero0", "zero1", "zero2", "zero3"]


class Router(nn.Module):
    """Lets both the training step and inference pass through one wrapped `forward`.

    DDP and ZeRO act on the wrapper's forward only, and ZeRO 3 must see tuples and dictionaries
    come out of a module, hence the plain types.
    """

    def __init__(self, method: Method, autocast: torch.dtype | None, device: torch.device) -> None:
        super().__init__()
        self.method = method
        self._autocast, self._device = autocast, device

    def forward(self, kind: str, *args: Any) -> Any:
        """("train", batches, stage, step) -> (loss, logs); ("infer", what, batch) -> outputs.

        For `outmodal.train.microbatch`: ("encode", batches, stage, step) -> representations;
        ("objective", representations, batches, stage, step) -> (loss, logs); ("replay", batches,
        stage, step, gradients by representation, gradients by parameter) -> `surrogate`.
        """
        enabled = self._autocast is not None
        with torch.autocast(self._device.type, dtype=self._autocast, enabled=enabled):
            if kind == "train":
                out = self.method.forward(*args)
                return out.loss.float(), dict(out.logs)
            if kind == "infer":
                return self.method.infer(*args)
            assert isinstance(self.method, WholeBatchMethod)
            if kind == "encode":
                return self.method.encode(*args)
            if kind == "objective":
                out = self.method.objective(*args)
                return out.loss.float(), dict(out.logs)
            *inputs, wanted, direct = args
            return surrogate(self.method.encode(*inputs), wanted, self.method, direct)


def surrogate(
    encoded: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    method: nn.Module,
    direct: Mapping[str, Tensor],
) -> Tensor:
    """Scalar whose gradient by representations and by parameters is given.

    Args:
        encoded: Representations [n, ...] with a graph.
        wanted: Gradients by their names; those without one are passed over.
        method: Holds the parameters.
        direct: Gradients by names of parameters that the objective itself uses.
    """
    terms = [(encoded[name] * grad).sum().float() for name, grad in wanted.items()]
    for name, grad in direct.items():
        p = method.get_parameter(name)
        assert p.shape == grad.shape, f"{name} is not gathered: {p.shape}"
        terms.append((p * grad).sum().float())
    total = torch.zeros((), device=terms[0].device if terms else None)
    for term in terms:
        total = total + term
    return total


class Backend(ABC):
    """A wrapped method that can be stepped.

    Attributes:
        layout: Access to masters and optimizer state.
    """

    layout: Layout

    def __init__(self, router: Router, reached: Reached, clip: float) -> None:
        self.router, self.reached, self.clip = router, reached, clip
        self.last_norm = float("nan")

    @property
    @abstractmethod
    def wrapped(self) -> Any:
        """The wrapper to call instead of the router."""

    @abstractmethod
    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate the gradient of `loss`; reduce it over ranks where it is the `last`."""

    @abstractmethod
    def step(self) -> bool:
        """Clip, and step the reached groups unless the gradient's norm is not finite.

        Returns:
            True where the step was taken. `last_norm` is the norm before clipping. The
            gradients are gone in any case. All ranks agree.
        """

    def edit(self, stage: str, step: int) -> None:
        """Let the method change the whole gradient before it is clipped (`Method.edit_gradients`).
        Collective."""
        gradients.edit(self.router.method, self.layout, stage, step)

    def start_step(self) -> None:
        """Forget the last step's gradients."""
        self.reached.reset()
        self.layout.start_step()

    def call(self, kind: str, *args: Any, last: bool) -> Any:
        """`Router.forward` through the wrapper; gradients are reduced over ranks where `last`."""
        with contextlib.nullcontext() if last else self.no_sync():
            return self.wrapped(kind, *args)

    def train_loss(self, *args: Any, last: bool) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Loss of one micro-batch through the wrapper."""
        loss, logs = self.call("train", *args, last=last)
        return loss, logs

    def uses_directly(self, names: Sequence[str]) -> None:
        """Note parameters that the router uses outside the forward of their module."""
        del names  # only sharded ones must be gathered for it

    def infer(self, what: str, batch: Batch) -> dict[str, Tensor]:
        """Outputs of a full pass's batch, without gradients."""
        with torch.no_grad():
            out: dict[str, Tensor] = self.wrapped("infer", what, batch)
        return out

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which gradients are not reduced."""
        return contextlib.nullcontext()

    def sync_buffers(self) -> None:
        """Make running statistics those of the main process, as DDP does before a forward."""
        if gather.world().size > 1:
            gather.broadcast_tensors(list(self.router.buffers()))

    def close(self) -> None:
        """Let go of everything that this backend registered outside itself."""
        self.reached.close()
        AcceleratorState._reset_state(reset_partial_state=True)


class PlainBackend(Backend):
    """One process, or DDP."""

    def __init__(
        self, router: Router, optimizer: torch.optim.Optimizer, reached: Reached, clip: float
    ) -> None:
        super().__init__(router, reached, clip)
        w = gather.world()
        size = w.size
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        with quiet_accelerate(), no_rank_variables() if size == 1 else contextlib.nullcontext():
            self._accelerator = Accelerator(
                cpu=w.device.type == "cpu",
                step_scheduler_with_optimizer=False,
                kwargs_handlers=[
                    DistributedDataParallelKwargs(
                        find_unused_parameters=True, broadcast_buffers=False
                    )
                ],
            )
            ranks = self._accelerator.num_processes
            expect(ranks == size, f"{ranks} ranks")
            if size > 1:
                # DDP looks for parameters that a step does not reach, and advises against it on
                # every rank whenever it finds none: so let it always find one.
                router.register_parameter(
                    "unreached", nn.Parameter(torch.zeros(1, device=w.device))
                )
            self._model = self._accelerator.prepare_model(router)
        expect(isinstance(self._model, DistributedDataParallel) == (size > 1), type(self._model))
        self.layout = PlainLayout(trainable(router.method), optimizer)
        self._optimizer = optimizer

    @property
    def wrapped(self) -> Any:
        return self._model

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        manager: contextlib.AbstractContextManager[Any] = self._accelerator.no_sync(self._model)
        return manager

    def backward(self, loss: Tensor, last: bool) -> None:
        with contextlib.nullcontext() if last else self.no_sync():
            self._accelerator.backward(loss)

    def step(self) -> bool:
        params = _fill_missing(self._optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        self.last_norm = float(norm)
        finite = bool(torch.isfinite(norm))
        if finite:
            if self.clip > 0:
                torch.nn.utils.clip_grads_with_norm_(params, self.clip, norm)
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return finite


def _fill_missing(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Give every parameter of a reached group a gradient; return the parameters of all groups."""
    params: list[Tensor] = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is None and not group["idle"]:
                p.grad = torch.zeros_like(p)
            params.append(p)
    return params


class ZeroBackend(Backend):
    """DeepSpeed ZeRO 0 to 3."""

    def __init__(
        self,
        router: Router,
        optimizer: torch.optim.Optimizer,
        reached: Reached,
        clip: float,
        stage: int,
        precision: Precision,
    ) -> None:
        super().__init__(router, reached, clip)
        self._stage = stage
        self._named = trainable(router.method)
        warnings.filterwarnings("ignore", ".*torch.distributed.* is deprecated", FutureWarning)
        self._environment = contextlib.ExitStack()
        self._environment.enter_context(rank_variables())
        exact = {name: p.detach().clone() for name, p in self._named} if precision == "bf16" else {}
        with quiet_accelerate():
            self._accelerator = deepspeed_accelerator(stage, precision, clip if stage else 0.0)
            with own_broadcast():
                self._engine, _ = self._accelerator.prepare(router, optimizer)
        expect(type(self._engine).__name__ == "DeepSpeedEngine", type(self._engine))
        expect(self._engine.zero_optimization_stage() == stage, "another ZeRO stage")
        if stage == 3:
            register_parameters(router, router.method.parameters(recurse=False))
        self._optimizer = optimizer
        self.layout = self._find_layout()
        if exact:  # DeepSpeed made the fp32 masters of weights that it had rounded
            self.layout.scatter(exact, self.layout.masters)
            self.layout.publish()

    def _find_layout(self) -> Layout:
        if self._stage == 0:
            return PlainLayout(self._named, self._optimizer)
        kind = PartitionLayout if self._stage == 3 else FlatLayout
        return kind(self._named, self._engine.optimizer)

    @property
    def wrapped(self) -> Any:
        return self._engine

    def uses_directly(self, names: Sequence[str]) -> None:
        if self._stage == 3:
            used = [self.router.method.get_parameter(name) for name in names]
            register_parameters(self.router, used)

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def step(self) -> bool:
        if self._stage == 0:
            return self._plain_step()
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        taken = not self._engine.optimizer.overflow
        self.last_norm = float(norm) if taken and norm is not None else float("nan")
        return taken

    def _plain_step(self) -> bool:
        params = _fill_missing(self._optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        self.last_norm = float(norm)
        finite = bool(torch.isfinite(norm))
        if finite and self.clip > 0:
            torch.nn.utils.clip_grads_with_norm_(params, self.clip, norm)
        if finite:
            self._engine.step()
        self._engine.zero_grad()
        return finite

    def close(self) -> None:
        """DeepSpeed on gloo ends in SIGABRT now and then unless it is taken down in this order."""
        self._engine.destroy()
        del self._engine, self._accelerator, self.layout
        super().close()
        self._environment.close()
        gc.collect()


def make_backend(
    method: Method,
    optimizer: torch.optim.Optimizer,
    strategy: Strategy,
    precision: Precision,
    clip: float,
    compiled: bool = False,
) -> Backend:
    """Wrap a method for `strategy`.

    Raises:
        UserError: The combination is not supported.
    """
    if strategy == "zero0" and precision == "bf16":
        raise UserError(
            "engine.strategy zero0 with engine.precision bf16 trains with another optimizer than "
            "the other strategies: choose ddp or zero1 for bf16"
        )
    gradients.check_edits(method, strategy)
    device = gather.world().device
    router = Router(method.to(device), torch.bfloat16 if precision == "bf16" else None, device)
    gather.broadcast_tensors([*router.parameters(), *router.buffers()])
    if compiled:
        router.compile()
    reached = Reached(optimizer.param_groups)
    if strategy in ("single", "ddp"):
        return PlainBackend(router, optimizer, reached, clip)
    return ZeroBackend(router, optimizer, reached, clip, int(strategy[-1]), precision)
