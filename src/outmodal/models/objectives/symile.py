"""Symile: contrast of whole tuples by their multilinear inner product.

MIP(a, b, c, ...) = sum_k a_k b_k c_k ... of unit vectors. Each modality is the anchor in turn: its
vector must find the tuple of its own sample among tuples that the batch's other samples form.

Source: Saporta, Puli, Goldstein, Ranganath: Contrasting with Symile, NeurIPS 2024
(arXiv 2411.01053), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from outmodal.errors import UserError
from outmodal.models.kernels.nce import nce
from outmodal.models.objectives.base import (
    Embedded,
    Objective,
    ObjectiveOutput,
    ObjectiveSettings,
)
from outmodal.models.objectives.dense import cross_entropy_rows

MOST_ENTRIES = 2**28  # of the tuples' products, and of the logits, under `n_squared`


class SymileConfig(ObjectiveSettings):
    """Symile, for two or more modalities; its score is the MIP.

    Attributes:
        negatives: n: as many tuples as samples, each modality shuffled by itself; n_squared: all
            N^(M-1) tuples, for small batches.
        largest_scale: MIPs of unit vectors shrink with the number of modalities, so the learned
            scale may grow further than that of cosines.
    """

    name: Literal["symile"] = "symile"
    negatives: Literal["n", "n_squared"] = "n"
    largest_scale: float = 1.0e6

    def build(self, modalities: Sequence[str], dim: int) -> Symile:
        return Symile(modalities, self)


class Symile(Objective):
    """Mean over anchors m of CE(scale * MIP(e^m_n, tuple n'), n), over complete samples.

    Samples that lack a modality take no part.
    """

    together = True

    def __init__(self, modalities: Sequence[str], config: SymileConfig) -> None:
        super().__init__(modalities, config)
        self.negatives = config.negatives

    def evaluate_batch(self, batch: Embedded) -> ObjectiveOutput:
        everyone = [batch.exchange.gather(e) for e in batch.units]
        whole = batch.exchange.gather(batch.complete.float()) > 0.5
        contrast = self._shuffled if self.negatives == "n" else self._all_tuples
        losses = [contrast(batch, m, everyone, whole) for m in range(len(batch.names))]
        return self.report({"tuples": torch.stack(losses).mean()})

    def _shuffled(
        self, batch: Embedded, anchor: int, everyone: Sequence[Tensor], whole: Tensor
    ) -> Tensor:
        """`n`: the tuple in column n' takes each modality from another sample; the one in the
        anchor's own column is its true tuple."""
        others = [m for m in range(len(batch.names)) if m != anchor]
        first = batch.exchange.offset(len(batch.held))
        own = slice(first, first + len(batch.held))
        drawn = []
        for m in others:
            seed = (batch.step * len(batch.names) + anchor) * len(batch.names) + m
            order = shuffle(whole, seed) if len(others) > 1 else torch.arange(len(whole))
            drawn.append(everyone[m][order.to(whole.device)[own]])
        tuples, positives = _product(drawn), _product([batch.units[m] for m in others])
        lengths = torch.cat([tuples.detach(), positives.detach()]).norm(dim=1)
        longest = F.pad(lengths, (0, 1)).amax()  # of no rows: 0
        # products are short: lengthened to 1 at most, so that a bound on logits by the scale holds
        reach = batch.exchange.gather(longest[None]).amax().clamp(min=1e-20)
        return nce(
            batch.units[anchor],
            tuples / reach,
            self.scale() * reach,
            both=False,
            positives=positives / reach,
            present=batch.complete,
            exchange=batch.exchange,
            impl=self.impl,
            names=(batch.names[anchor], "the tuples"),
            check=False,
        )

    def _all_tuples(
        self, batch: Embedded, anchor: int, everyone: Sequence[Tensor], whole: Tensor
    ) -> Tensor:
        """`n_squared`: every combination of the other modalities' samples is a column."""
        others = [m for m in range(len(batch.names)) if m != anchor]
        count, own = len(whole), torch.arange(len(batch.held), device=whole.device)
        self._fits(count, len(others), batch.units[0])
        tuples, live = everyone[others[0]], whole
        partner = own + batch.exchange.offset(len(own))
        place = partner
        for m in others[1:]:
            tuples = (tuples[:, None] * everyone[m][None]).flatten(0, 1)
            live = (live[:, None] & whole[None]).flatten()
            place = place * count + partner
        wide = torch.promote_types(tuples.dtype, torch.float32)
        logits = self.scale() * (batch.units[anchor].to(wide) @ tuples.to(wide).T)
        return batch.mean(cross_entropy_rows(logits, place, live), batch.complete)

    def _fits(self, count: int, others: int, e: Tensor) -> None:
        if count**others * max(e.shape) > MOST_ENTRIES:
            raise UserError(
                f"objective.negatives 'n_squared' compares each of {count} samples with "
                f"{count}^{others} tuples, too many to hold: use 'n', or a smaller data.batch"
            )

    def score(self, query: Mapping[str, Tensor], candidates: Tensor, target: str) -> Tensor:
        """MIP of the query's modalities and the candidate."""
        return _product(list(query.values())) @ candidates.T


def _product(vectors: Sequence[Tensor]) -> Tensor:
    wide = [v.to(torch.promote_types(v.dtype, torch.float32)) for v in vectors]
    return reduce(torch.mul, wide)


def shuffle(whole: Tensor, seed: int) -> Tensor:
    """A permutation [N] that maps the rows where `whole` [N] holds onto one another at random.

    Equal for equal arguments, so that all ranks draw the same; the device is not waited for.
    """
    count = len(whole)
    noise = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    key = noise.to(whole.device) + count * (~whole).long()
    place = torch.argsort((~whole).long(), stable=True)
    return torch.empty_like(key).scatter_(0, place, torch.argsort(key))
