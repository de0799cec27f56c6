"""Full passes over the data for a method, between epochs: see `methods.base.Passes`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from outmodal.data.batch import Batch, StreamSpec
from outmodal.train import gather
from outmodal.train.backend import Backend
from outmodal.train.shares import all_rows


class EnginePasses:
    """Runs passes through a backend's wrapper.

    Args:
        backend: What the engine trains with.
        open_pass: Gives this rank's batches of a pass.
    """

    def __init__(
        self, backend: Backend, open_pass: Callable[[StreamSpec], Iterator[Batch]]
    ) -> None:
        self._backend, self._open_pass = backend, open_pass

    def infer(self, what: str, spec: StreamSpec) -> dict[str, Tensor]:
        """See `Passes.infer`."""
        training = self._backend.router.training
        self._backend.router.eval()
        rows: dict[str, list[Tensor]] = {}
        index: list[Tensor] = []
        device = gather.world().device
        for batch in self._open_pass(spec):
            out = self._backend.infer(what, batch.to(device))
            valid = batch.valid.cpu()
            index.append(batch.index[valid].cpu())
            for name, value in out.items():
                rows.setdefault(name, []).append(value.detach().cpu()[valid])
        self._backend.router.train(training)
        return _ordered(rows, index)

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        """See `Passes.weights`."""
        found, layout = self._names(module), self._backend.layout
        gathered = layout.gather(layout.masters, only=set(found))
        return {found[full]: value.float() for full, value in gathered.items()}

    @torch.no_grad()
    def set_weights(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """See `Passes.set_weights`."""
        layout = self._backend.layout
        every = layout.gather(layout.masters)
        every |= {full: weights[own] for full, own in self._names(module).items() if own in weights}
        layout.scatter(every, layout.masters)
        layout.publish()

    def _names(self, module: nn.Module) -> dict[str, str]:
        """Names of a submodule's parameters in the method -> in the submodule."""
        own = {id(p): name for name, p in module.named_parameters()}
        method = self._backend.router.method
        return {full: own[id(p)] for full, p in method.named_parameters() if id(p) in own}


def _ordered(rows: dict[str, list[Tensor]], index: list[Tensor]) -> dict[str, Tensor]:
    """Gather over ranks and sort by index: selections are sorted, so this is their order."""
    if not index:
        return {}
    places = gather.all_gather_rows(torch.cat(index)).cpu()
    order = torch.argsort(places, stable=True)
    if len(torch.unique(places)) != len(places):
        raise RuntimeError("a pass gave a sample twice")
    return {name: all_rows(torch.cat(parts))[order] for name, parts in rows.items()}
