"""What a checkpoint holds of a running training, and putting it back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from outmodal.train import rng
from outmodal.train.ema import Ema
from outmodal.train.methods.base import Method
from outmodal.train.state import Layout, load_optimizer_state, optimizer_state

PARTS = ("weights", "optimizer", "ema", "method", "rng")
"""Files of tensors in a checkpoint."""


def take(
    method: Method, layout: Layout, ema: Ema | None, keep: bool
) -> dict[str, dict[str, Tensor]]:
    """CPU copies of everything that a resumed run needs, by part and name. Collective.

    Args:
        keep: False on ranks that only take part: they get no tensors.
    """
    saved = set(method.state_dict().keys())
    buffers = {n: _held(b) for n, b in method.named_buffers() if n in saved}
    return {
        "weights": layout.gather(layout.masters, keep) | buffers,
        "optimizer": optimizer_state(layout, keep),
        "ema": ema.state(keep) if ema else {},
        "method": {k: _held(t) for k, t in method.method_state().items()},
        "rng": rng.gathered_state(),
    }


def put_back(
    tensors: Mapping[str, Mapping[str, Tensor]], method: Method, layout: Layout, ema: Ema | None
) -> None:
    """Restore what `take` returned, except the generators, whatever the sharding. Collective."""
    weights = tensors["weights"]
    layout.scatter(weights, layout.masters)
    layout.publish()
    for name, buffer in method.named_buffers():
        if name in weights:
            buffer.copy_(weights[name])
    load_optimizer_state(layout, tensors["optimizer"])
    if ema is not None:
        ema.load(tensors["ema"])
    method.load_method_state(tensors["method"])


def _held(t: Tensor) -> Tensor:
    return t.detach().to("cpu", copy=True).contiguous()
