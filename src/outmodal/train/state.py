"""How weights and optimizer state lie in memory: the one place that knows DeepSpeed's sharding.

A `Layout` lists the fp32 *masters* that the optimizer steps on this rank, and converts any list
of tensors shaped like them (the masters themselves, Adam's moments, an EMA) to full tensors by
parameter name and back. Both ways only copy elements, so they are exact bit for bit, and the
full form knows nothing of ranks or stages: a checkpoint made under one sharding loads in another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from outmodal.train import gather

Named = list[tuple[str, nn.Parameter]]


class Layout(ABC):
    """Masters of this rank, and the two ways between local tensors and full named ones.

    Attributes:
        masters: Local fp32 tensors, in an order that is equal on all ranks.
        optimizer: The torch optimizer whose `state` is keyed by the masters.
    """

    masters: list[Tensor]
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def full(self, index: int, local: Tensor) -> dict[str, Tensor]:
        """Gather one local tensor shaped like `masters[index]` to full tensors by name.

        Collective: all ranks call it with the same index.
        """

    @abstractmethod
    def fill(self, index: int, local: Tensor, source: Mapping[str, Tensor]) -> None:
        """Copy this rank's part of the full tensors of `names(index)` into `local`."""

    @abstractmethod
    def names(self, index: int) -> list[str]:
        """Names of the parameters that live in `masters[index]`."""

    @abstractmethod
    def publish(self) -> None:
        """Make the weights that `forward` uses equal to the masters. Collective."""

    @abstractmethod
    def start_step(self) -> None:
        """Prepare for the first backward pass of a step."""

    @abstractmethod
    def gradients(self) -> list[Tensor | None]:
        """Local reduced gradients of a step, shaped like the masters; None for what the step
        passes over. Between the backward pass and the step, where gradients are whole until then
        (see `outmodal.train.gradients`)."""

    @abstractmethod
    def set_gradients(self, local: Sequence[Tensor | None]) -> None:
        """Step with these instead of what `gradients` gave."""

    def gather(
        self, local: Sequence[Tensor], keep: bool = True, only: set[str] | None = None
    ) -> dict[str, Tensor]:
        """Full CPU copies by name of local tensors, one a master. Collective.

        Args:
            local: As long as `masters`, each shaped like its master.
            keep: Return them here; False on ranks that only take part.
            only: Names to return; masters without any of them are passed over.
        """
        out: dict[str, Tensor] = {}
        for i, t in enumerate(local):
            if only is not None and only.isdisjoint(self.names(i)):
                continue
            for name, value in self.full(i, t.detach()).items():
                if keep and (only is None or name in only):
                    out[name] = value.to("cpu", copy=True).contiguous()
        return out

    def scatter(self, full: Mapping[str, Tensor], local: Sequence[Tensor]) -> None:
        """Inverse of `gather`, in place. Not collective."""
        for i, t in enumerate(local):
            self.fill(i, t.detach(), full)


class PlainLayout(Layout):
    """Every rank holds every parameter: one process, DDP, ZeRO 0."""

    def __init__(self, named: Named, optimizer: torch.optim.Optimizer) -> None:
        held = {id(p): name for name, p in named}
        self.optimizer = optimizer
        self.masters = [p for group in optimizer.param_groups for p in group["params"]]
        self._names = [held[id(p)] for p in self.masters]

    def names(self, index: int) -> list[str]:
        return [self._names[index]]

    def full(self, index: int, local: Tensor) -> dict[str, Tensor]:
        return {self._names[index]: local}

    def fill(self, index: int, local: Tensor, source: Mapping[str, Tensor]) -> None:
        local.copy_(source[self._names[index]])

    def publish(self) -> None:
        """Nothing to do: the masters are the weights."""

    def start_step(self) -> None:
        """Nothing to do: stepping drops the gradients."""

    def gradients(self) -> list[Tensor | None]:
        return [p.grad for p in self.masters]

    def set_gradients(self, local: Sequence[Tensor | None]) -> None:
        for p, gradient in zip(self.masters, local, strict=True):
            p.grad = gradient


class FlatLayout(Layout):
    """ZeRO 1 and 2: each group's parameters are laid end to end, padded, and cut into one equal
    part a rank (`DeepSpeedZeroOptimizer.single_partition_of_fp32_groups`)."""

    def __init__(self, named: Named, zero: Any) -> None:
        held = {id(p): name for name, p in named}
        self._zero = zero
        self.optimizer = zero.optimizer
        self.masters = list(zero.single_partition_of_fp32_groups)
        self._places = [
            [(held[id(p)], offset, p.shape) for p, offset in zip(params, offsets, strict=True)]
            for params, offsets in zip(
                zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets, strict=True
            )
        ]

    def names(self, index: int) -> list[str]:
        return [name for name, _, _ in self._places[index]]

    def full(self, index: int, local: Tensor) -> dict[str, Tensor]:
        flat = gather.all_gather_flat(local).flatten()
        return {
            name: flat.narrow(0, offset, shape.numel()).view(shape)
            for name, offset, shape in self._places[index]
        }

    def fill(self, index: int, local: Tensor, source: Mapping[str, Tensor]) -> None:
        flat = local.new_zeros(gather.world().size * local.numel())
        for name, offset, shape in self._places[index]:
            flat.narrow(0, offset, shape.numel()).copy_(source[name].flatten())
        local.copy_(gather.own_part(flat.view(-1, local.numel())))

    def publish(self) -> None:
        self._zero.update_lp_params()

    def start_step(self) -> None:
        """Nothing to do: stepping drops the gradients."""

    def gradients(self) -> list[Tensor | None]:
        """As the step reads them: a list of pieces a group (`averaged_gradients`), end to end."""
        return [
            None if group["idle"] else torch.cat([g.flatten() for g in self._pieces(i)]).float()
            for i, group in enumerate(self.optimizer.param_groups)
        ]

    def set_gradients(self, local: Sequence[Tensor | None]) -> None:
        for i, flat in enumerate(local):
            if flat is not None:
                pieces = self._pieces(i)
                for piece, new in zip(
                    pieces, torch.split(flat, [g.numel() for g in pieces]), strict=True
                ):
                    piece.copy_(new.view_as(piece))

    def _pieces(self, index: int) -> list[Tensor]:
        return [g.detach() for g in self._zero.averaged_gradients[index]]


class PartitionLayout(Layout):
    """ZeRO 3: each parameter is cut into one equal padded part a rank, and the parts of a
    subgroup's parameters lie end to end (`fp32_partitioned_groups_flat`)."""

    def __init__(self, named: Named, zero: Any) -> None:
        held = {id(p): name for name, p in named}
        self._zero = zero
        self.optimizer = zero.optimizer
        self.masters = list(zero.fp32_partitioned_groups_flat)
        self._places = [_subgroup_places(params, held) for params in zero.fp16_groups]

    def names(self, index: int) -> list[str]:
        return [name for name, _, _, _ in self._places[index]]

    def full(self, index: int, local: Tensor) -> dict[str, Tensor]:
        parts = gather.all_gather_flat(local)
        return {
            name: parts[:, offset : offset + part].flatten()[: shape.numel()].view(shape)
            for name, offset, part, shape in self._places[index]
        }

    def fill(self, index: int, local: Tensor, source: Mapping[str, Tensor]) -> None:
        size = gather.world().size
        for name, offset, part, shape in self._places[index]:
            padded = local.new_zeros(size * part)
            padded[: shape.numel()].copy_(source[name].flatten())
            local.narrow(0, offset, part).copy_(gather.own_part(padded.view(size, part)))

    def publish(self) -> None:
        zero = self._zero
        zero._partition_all_parameters()
        for i in range(len(self.masters)):
            zero._reassign_or_swap_out_partitioned_parameters(i)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def start_step(self) -> None:
        """DeepSpeed keeps the last gradient of a parameter that a step does not reach."""
        self._zero.grad_partitions_flat_buffer.zero_()

    def gradients(self) -> list[Tensor | None]:
        raise NotImplementedError("ZeRO 3 holds no whole gradients")

    def set_gradients(self, local: Sequence[Tensor | None]) -> None:
        raise NotImplementedError("ZeRO 3 holds no whole gradients")


def _subgroup_places(
    params: Sequence[Any], held: Mapping[int, str]
) -> list[tuple[str, int, int, torch.Size]]:
    places, offset = [], 0
    for p in params:
        part = int(p.partition_numel())
        places.append((held[id(p)], offset, part, torch.Size(p.ds_shape)))
        offset += part
    return places


# --- optimizer state by name -----------------------------------------------------------------


def optimizer_state(layout: Layout, keep: bool = True) -> dict[str, Tensor]:
    """Full optimizer state as {"exp_avg/NAME": tensor, ..., "step/NAME": scalar}. Collective.

    Parameters that were never stepped have no entry.
    """
    out: dict[str, Tensor] = {}
    for i, master in enumerate(layout.masters):
        held = layout.optimizer.state.get(master, {})
        for key in sorted(held):
            value = held[key]
            if not torch.is_tensor(value):
                continue
            if value.shape != master.shape:  # a counter, shared by all parameters of the master
                full = {name: value for name in layout.names(i)}
            else:
                full = layout.full(i, value.detach())
            if keep:
                out |= {
                    f"{key}/{name}": t.detach().to("cpu", copy=True).contiguous()
                    for name, t in full.items()
                }
    return out


def load_optimizer_state(layout: Layout, state: Mapping[str, Tensor]) -> None:
    """Restore what `optimizer_state` returned, whatever the sharding it was made under.

    A master whose parameters were stepped unequally often under another sharding takes the
    largest count.
    """
    keys = sorted({name.split("/", 1)[0] for name in state})
    for i, master in enumerate(layout.masters):
        present = [k for k in keys if any(f"{k}/{n}" in state for n in layout.names(i))]
        if not present:
            layout.optimizer.state.pop(master, None)
            continue
        layout.optimizer.state[master] = {
            key: _restored(layout, i, master, key, state) for key in present
        }


def _restored(
    layout: Layout, i: int, master: Tensor, key: str, state: Mapping[str, Tensor]
) -> Tensor:
    names = [n for n in layout.names(i) if f"{key}/{n}" in state]
    first = state[f"{key}/{names[0]}"]
    if key == "step":
        count = max(float(state[f"{key}/{n}"]) for n in names)
        return torch.tensor(count, dtype=first.dtype)
    local = torch.zeros_like(master, requires_grad=False)
    layout.fill(i, local, _Defaults(state, key, master))
    return local


class _Defaults(dict[str, Tensor]):
    """Look up "KEY/NAME"; zeros where a parameter has no entry of its own."""

    def __init__(self, state: Mapping[str, Tensor], key: str, like: Tensor) -> None:
        super().__init__()
        self._state, self._key, self._like = state, key, like

    def __missing__(self, name: str) -> Tensor:
        found = self._state.get(f"{self._key}/{name}")
        return self._like.new_zeros(1) if found is None else found  # one zero, broadcast
