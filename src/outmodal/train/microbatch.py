"""The exact gradient of an objective over the whole batch, with the encoders' memory of a piece.

Gradient caching (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup", RepL4NLP 2021, section 3.2), in three phases:

1. Encode each piece of the batch without gradients; keep the representations, and the states of
   the random generators that each piece began with.
2. The objective on all representations, as leaves, over all ranks: its gradients by the
   representations and by the parameters that it uses itself.
3. Encode each piece again from its generator states, and differentiate sum(representation *
   gradient). The objective's own parameters join the last piece, as sum(parameter * gradient),
   so that the wrapper reduces them with the rest.

Dropout and other noise are drawn again as they were, so the gradient is that of the pieces'
forward passes taken together. Generators end where phase 2 left them: a run is repeated bit for
bit, also from a checkpoint, but one draw for the whole batch and draws for its pieces differ, so
with noise other values of `engine.micro_batch` give other (equally good) runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from outmodal.data.batch import Batch
from outmodal.errors import UserError
from outmodal.train import gather
from outmodal.train.backend import Backend
from outmodal.train.engine_config import EngineConfig
from outmodal.train.methods.base import Method, WholeBatchMethod
from outmodal.train.optim import trainable

Batches = Mapping[str, Batch]


class MicroBatches:
    """Takes the gradient of a step piece by piece.

    Args:
        backend: Wraps a `WholeBatchMethod`.
        rows: Rows of each stream on this rank in a piece; the last may be smaller.
    """

    def __init__(self, backend: Backend, rows: int) -> None:
        self._backend, self._rows = backend, rows
        self._device = gather.world().device
        self._known: set[str] = set()

    def gradient(
        self, batches: Batches, stage: str, step: int
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Leave the gradient of one step's loss in the wrapper, reduced over ranks.

        Args:
            batches: The step's batches, on any device: each piece is moved when its turn comes.
            stage: Name of the stage.
            step: Global step.

        Returns:
            The loss, detached, and the method's logs.
        """
        pieces = _pieces(batches, self._rows)
        encoded, rows, states = self._encode(pieces, stage, step)
        leaves = {name: t.requires_grad_(t.is_floating_point()) for name, t in encoded.items()}
        rest = {name: replace(b, x={}).to(self._device) for name, b in batches.items()}
        loss, logs = self._backend.router("objective", leaves, rest, stage, step)
        wanted, direct = self._gradients(loss, leaves)
        loss = loss.detach()
        del leaves, encoded
        after = _generators(self._device)
        for i, piece in enumerate(pieces):
            _set_generators(states[i], self._device)
            last = i + 1 == len(pieces)
            own = {name: wanted[name][span] for name, span in rows[i].items() if name in wanted}
            moved = {name: b.to(self._device) for name, b in piece.items()}
            args = (moved, stage, step, own, direct if last else {})
            value: Tensor = self._backend.call("replay", *args, last=last)
            if value.requires_grad or last:
                self._backend.backward(value, last)
        _set_generators(after, self._device)
        return loss, logs

    def _encode(
        self, pieces: Sequence[Batches], stage: str, step: int
    ) -> tuple[dict[str, Tensor], list[dict[str, slice]], list[list[Tensor]]]:
        """Representations of all rows, the rows of each piece in them, and the generators'
        states before each piece."""
        parts: dict[str, list[Tensor]] = {}
        ends: dict[str, int] = {}
        rows, states = [], []
        for piece in pieces:
            states.append(_generators(self._device))
            moved = {name: b.to(self._device) for name, b in piece.items()}
            with torch.no_grad():
                out: Mapping[str, Tensor] = self._backend.call(
                    "encode", moved, stage, step, last=False
                )
            spans = {}
            for name, t in out.items():
                start = ends.get(name, 0)
                ends[name] = start + len(t)
                spans[name] = slice(start, ends[name])
                parts.setdefault(name, []).append(t.detach())
            rows.append(spans)
        return {name: torch.cat(held) for name, held in parts.items()}, rows, states

    def _gradients(
        self, loss: Tensor, leaves: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """By representations and by the objective's own parameters; nothing where none is
        reached."""
        params = trainable(self._backend.router.method)
        named = [(name, t) for name, t in leaves.items() if t.requires_grad] + params
        grads = torch.autograd.grad(loss, [t for _, t in named], allow_unused=True)
        found = [(name, g) for (name, _), g in zip(named, grads, strict=True)]
        count = len(named) - len(params)
        wanted = {name: g for name, g in found[:count] if g is not None}
        direct = {name: g for name, g in found[count:] if g is not None}
        self._backend.uses_directly([name for name in direct if name not in self._known])
        self._known |= set(direct)
        return wanted, direct


def check_micro_batch(method: Method, config: EngineConfig) -> None:
    """Refuse what would make `engine.micro_batch` inexact or impossible.

    Raises:
        UserError: Names the key or module, and the remedy.
    """
    rows = config.micro_batch
    if not rows:
        return
    if not isinstance(method, WholeBatchMethod):
        raise UserError(
            f"engine.micro_batch={rows} needs a method whose objective compares the whole batch, "
            f"and '{_name(method)}' is none: set engine.micro_batch to 0, and engine.accumulate "
            "for a smaller memory"
        )
    if config.accumulate > 1:
        raise UserError(
            f"engine.micro_batch={rows} and engine.accumulate={config.accumulate} exclude each "
            "other: micro_batch alone bounds the memory, and its gradient is exact, so set "
            "engine.accumulate to 1"
        )
    if config.compile:
        raise UserError(
            "engine.micro_batch computes each piece twice, and compiled code need not draw the "
            "same dropout both times: set engine.compile to false or engine.micro_batch to 0"
        )
    _refuse_batch_statistics(method, rows)


def _refuse_batch_statistics(method: nn.Module, rows: int) -> None:
    method.train()
    for name, module in method.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise UserError(
                f"engine.micro_batch={rows} is not exact with {type(module).__name__} "
                f"('{name}'), whose result depends on the other rows of its piece: use a learner "
                "with group or layer normalisation, or set engine.micro_batch to 0"
            )


def _name(method: Method) -> str:
    return str(getattr(getattr(method, "config", None), "name", type(method).__name__))


def _pieces(batches: Batches, rows: int) -> list[dict[str, Batch]]:
    """The batches cut into pieces of `rows`; a stream without rows left is missing."""
    longest = max((len(b) for b in batches.values()), default=0)
    return [
        {name: b.rows(slice(at, at + rows)) for name, b in batches.items() if len(b) > at}
        for at in range(0, longest, rows)
    ]


def _generators(device: torch.device) -> list[Tensor]:
    """States of torch's generators that a forward pass may draw from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _set_generators(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
