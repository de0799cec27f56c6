"""The one place that knows ranks: the process group, and reductions with the right gradients.

The rule behind every function here: a rank differentiates its own loss, the wrapper averages
gradients over ranks, and the result must be the gradient of the objective on the global batch.
So an autograd-aware gather sums in its backward, and a masked mean divides by the global count.

Without a process group every function is that of a world of one.
"""

from __future__ import annotations

from outmodal.train.gather.agreement import (
    agree,
    barrier,
    broadcast_object,
    broadcast_tensors,
    max_over_ranks,
    mean_over_ranks,
)
from outmodal.train.gather.exchanges import (
    AutoExchange,
    ExchangeKind,
    GatherExchange,
    exchange,
)
from outmodal.train.gather.group import World, close_world, is_main, open_world, world
from outmodal.train.gather.meeting import RankExchange
from outmodal.train.gather.reduce import (
    global_mean,
    masked_mean,
    mean_tensors,
    seeded_noise,
    seeded_normal,
    seeded_numbers,
)
from outmodal.train.gather.ring import RingExchange
from outmodal.train.gather.rows import (
    all_gather_flat,
    all_gather_objects,
    all_gather_pieces,
    all_gather_rows,
    gather_with_grad,
    own_part,
    row_offset,
)

__all__ = [
    "AutoExchange",
    "ExchangeKind",
    "GatherExchange",
    "RankExchange",
    "RingExchange",
    "World",
    "agree",
    "all_gather_flat",
    "all_gather_objects",
    "all_gather_pieces",
    "all_gather_rows",
    "barrier",
    "broadcast_object",
    "broadcast_tensors",
    "close_world",
    "exchange",
    "gather_with_grad",
    "global_mean",
    "is_main",
    "masked_mean",
    "max_over_ranks",
    "mean_over_ranks",
    "mean_tensors",
    "open_world",
    "own_part",
    "row_offset",
    "seeded_noise",
    "seeded_normal",
    "seeded_numbers",
    "world",
]
