"""MixUp and CutMix: neighbours of a batch are blended, and so are their labels.

    rows 2k and 2k + 1 of the global batch are a pair; with one share s in 0..1 for both
    x_2k <- s x_2k + (1 - s) x_2k+1       or, CutMix, a box of x_2k+1 of area 1 - s in x_2k
    loss_2k <- s CE(label_2k) + (1 - s) CE(label_2k+1)           and the same the other way round

All numbers are functions of the seed, the epoch and the key of the pair's first row. Neighbours lie
on one rank whenever every rank has an even number of rows (that is checked), so pixels and labels
are the same for any number of ranks and after a resume; and for any number of micro-batches that
leaves each stream of the loader an even number of rows in one (`data.batch` / `data.streams` /
`engine.accumulate`). Neighbours are as random as the order of the samples in its window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from outmodal.base import Config
from outmodal.data.draws import Draw
from outmodal.errors import UserError

_STEPS = 4096  # of the tables that turn uniform numbers into those of a Beta distribution


class MixingConfig(Config):
    """Blending of neighbouring samples and of their labels.

    Attributes:
        mixup: MixUp's a: shares are drawn from Beta(a, a) (Zhang et al., ICLR 2018); 0 is off.
        cutmix: The same of CutMix (Yun et al., ICCV 2019); inputs must have height and width.
        p: Share of the pairs that are mixed.
        switch: Share of CutMix among mixed pairs where both are on.
    """

    mixup: float = Field(default=0.0, ge=0.0)
    cutmix: float = Field(default=0.0, ge=0.0)
    p: float = Field(default=1.0, gt=0.0, le=1.0)
    switch: float = Field(default=0.5, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _something_is_on(self) -> Self:
        if not (self.mixup or self.cutmix):
            raise ValueError("neither `mixup` nor `cutmix` is above 0: leave mixing out")
        return self


@dataclass(frozen=True)
class Mixing:
    """What a stream mixes.

    Attributes:
        config: How.
        names: Modalities and views; the others stay a sample's own.
    """

    config: MixingConfig
    names: tuple[str, ...]


@dataclass(frozen=True)
class Mixed:
    """What became of the labels of a mixed batch.

    Attributes:
        label: [B] the pair's other label.
        share: [B] fp32, weight of the row's own label; the other's is the rest.
    """

    label: Tensor
    share: Tensor

    def rows(self, chosen: slice | Tensor) -> Mixed:
        """Return some of the rows."""
        return Mixed(self.label[chosen], self.share[chosen])


@dataclass(frozen=True)
class Mixer:
    """Mixes the batches of one epoch of one stream.

    Attributes:
        mixing: What, and how.
        draw: Seed and epoch of the numbers.
    """

    mixing: Mixing
    draw: Draw

    @property
    def config(self) -> MixingConfig:
        """How."""
        return self.mixing.config

    def __call__(
        self,
        x: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        label: Tensor,
        key: Tensor,
        valid: Tensor,
    ) -> tuple[dict[str, Tensor], Mixed]:
        """Mix finished inputs; all that is mixed of a pair alike. A pair stays as it is where a
        row has no label or lacks something.

        Args:
            x: modality or view -> [B, ...], floating point where it is mixed.
            present: modality or view -> [B] bool.
            label: [B] classes, -1 where unknown.
            key: [B] numbers of the samples' keys.
            valid: [B] bool, False on padding rows.

        Raises:
            UserError: An odd number of rows, or inputs that cannot be mixed.
        """
        if len(label) % 2:
            raise UserError(
                f"method.mixing blends pairs, and a micro-batch of this process has {len(label)} "
                "rows: choose data.batch and engine.accumulate so that it has an even number"
            )
        names = self.mixing.names
        able = torch.stack([valid, label >= 0, *(present[name] for name in names)]).all(0)
        pairs = able.view(-1, 2).all(1)
        numbers = self.draw.uniforms(key[::2], "mixing", 5)
        on = pairs & (numbers[:, 0] < self.config.p)
        cut = on & (numbers[:, 1] < self._cuts())
        share = torch.where(cut, self._shares(numbers[:, 2], self.config.cutmix), 1.0)
        blend = on & ~cut
        share = torch.where(blend, self._shares(numbers[:, 2], self.config.mixup), share)
        done, seen = dict(x), share
        for name in names:
            done[name], seen = self._blended(name, x[name], share, cut, numbers[:, 3:])
        other = label.view(-1, 2).flip(1).reshape(-1)
        return done, Mixed(other, seen.repeat_interleave(2, output_size=len(label)))

    def _cuts(self) -> float:
        """Share of CutMix among mixed pairs."""
        if not (self.config.mixup and self.config.cutmix):
            return float(self.config.cutmix > 0)
        return self.config.switch

    @staticmethod
    def _shares(uniform: Tensor, a: float) -> Tensor:
        """Numbers [B] of Beta(a, a) from uniform ones, by their quantiles."""
        if not a:
            return torch.ones_like(uniform)
        table = _quantiles(a, uniform.device)
        place = uniform * _STEPS
        below = place.long().clamp(max=_STEPS - 1)
        return torch.lerp(table[below], table[below + 1], place - below)

    def _blended(
        self, name: str, x: Tensor, share: Tensor, cut: Tensor, centre: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x with every pair mixed, and the pairs' shares as they came out."""
        if not x.is_floating_point():
            raise UserError(
                f"method.mixing cannot blend '{name}', which are whole numbers (tokens): leave "
                "mixing out"
            )
        axes = (1,) * (x.ndim - 1)
        weight = share.view(-1, *axes)
        if self.config.cutmix:
            if x.ndim < 4:
                raise UserError(
                    f"method.mixing.cutmix wants inputs with height and width, and '{name}' has "
                    f"the shape {tuple(x.shape[1:])}: set it to 0 and use mixup"
                )
            outside = _outside(share, centre, *x.shape[-2:])
            share = torch.where(cut, outside.mean((1, 2)), share)
            kept = outside.view(-1, *(1,) * (x.ndim - 3), *x.shape[-2:])
            weight = torch.where(cut.view(-1, *axes), kept, weight)
        first, second = x.view(-1, 2, *x.shape[1:]).unbind(1)
        weight = weight.to(x.dtype)
        mixed = (torch.lerp(second, first, weight), torch.lerp(first, second, weight))
        return torch.stack(mixed, 1).flatten(0, 1), share


def _outside(share: Tensor, centre: Tensor, height: int, width: int) -> Tensor:
    """[P, height, width] fp32: 0 inside of boxes of area about 1 - share around centres [P, 2] in
    0..1, cut off at the edges; 1 elsewhere."""
    side = (1.0 - share).sqrt()
    inside = [_span(centre[:, axis], side, size) for axis, size in enumerate((height, width))]
    return 1.0 - inside[0][:, :, None] * inside[1][:, None, :]


def _span(centre: Tensor, side: Tensor, size: int) -> Tensor:
    """[P, size] fp32, 1 within half of a side (as a share of `size`) of the centre."""
    at = torch.arange(size, device=centre.device)
    middle = (centre * size).floor()[:, None]
    half = ((side * size).floor() / 2).floor()[:, None]
    return ((at >= middle - half) & (at < middle + half)).float()


@lru_cache(maxsize=16)
def _quantiles(a: float, device: torch.device) -> Tensor:
    """[steps + 1] fp32: quantiles of Beta(a, a) at equal distances."""
    from scipy.stats import beta

    at = torch.linspace(0, 1, _STEPS + 1, dtype=torch.float64)
    return torch.from_numpy(beta.ppf(at.numpy(), a, a)).float().to(device)
