"""Modules that follow others: the momentum encoder of He et al. (CVPR 2020, Eq. 2)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from outmodal.errors import UserError


class Momentum:
    """Copies of modules whose weights are a running mean of the originals', in fp32.

    copy <- decay * copy + (1 - decay) * original, at each `follow`; at the first, the original
    itself. The copies are no part of any module tree, so that no engine trains, shards or rounds
    them: they are whole on every rank, and belong into a method's state. They are in eval mode,
    and their running statistics are the originals': what a copy gives for a row does not depend on
    the other rows, which is what MoCo's shuffled batch norm is for.

    Args:
        modules: Name -> original, before it is wrapped or moved.
        decay: Of the mean, below 1.
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self.decay = decay
        self._originals = dict(modules)
        self._copies = {
            name: copy.deepcopy(module).float().eval().requires_grad_(False)
            for name, module in modules.items()
        }
        self._started = False

    def __getitem__(self, name: str) -> nn.Module:
        return self._copies[name]

    @torch.no_grad()
    def follow(self, share: float = 1.0) -> None:
        """Move the copies by `share` of a step: two halves move them as far as a whole.

        Raises:
            UserError: The originals are cut over ranks.
        """
        weight = 1.0 - self.decay**share if self._started else 1.0
        for name, original in self._originals.items():
            device = next(original.parameters()).device
            held = self._copies[name].to(device)
            for own, theirs in zip(held.parameters(), original.parameters(), strict=True):
                if own.shape != theirs.shape:
                    raise UserError(
                        "engine.strategy zero3 cuts the weights over ranks, and a momentum encoder "
                        "follows whole ones at every step: choose engine.strategy zero2 or ddp"
                    )
                own.lerp_(theirs.detach().float(), weight)
            for mine, given in zip(held.buffers(), original.buffers(), strict=True):
                mine.copy_(given)
        self._started = True

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs: the copies' tensors as "NAME/TENSOR"; {} before `follow`."""
        return dict(self._tensors()) if self._started else {}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self._started = bool(state)
        for name, held in self._tensors() if state else ():
            held.copy_(state[name])

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, module in self._copies.items():
            for key, held in (*module.named_parameters(), *module.named_buffers()):
                yield f"{name}/{key}", held
