"""What a helper says about each row of a batch: the targets of synergy training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from outmodal.data.batch import Batch, StreamSpec
from outmodal.errors import UserError, nearest
from outmodal.models.features import FeatureNorm, feature_norm
from outmodal.models.guide import encode_guide, number_sentences, unrelated_sentences
from outmodal.train import gather
from outmodal.train.methods.base import Context
from outmodal.train.methods.synergy_config import Assign, SynergyConfig
from outmodal.train.together import on_main

MAIN, GUIDE = "train", "guide"
"""Names of the streams: the learner's samples, and the helper's where those are others."""

_SALT = 0x53594E
_NOISE_DIM = 512


class Targets(ABC):
    """Where the targets come from.

    Attributes:
        dim: Size of a target.
        guide: The modality whose features are targets; "" where a table or noise is.
        beside: Modalities that the learner's own samples must bring in training.
    """

    dim: int
    guide: str = ""
    beside: tuple[str, ...] = ()

    def streams(self) -> tuple[StreamSpec, ...]:
        """Streams beside the learner's."""
        return ()

    @abstractmethod
    def rows(self, batches: Mapping[str, Batch], step: int) -> tuple[Tensor, Tensor]:
        """Targets [B, dim] fp32 of the learner's rows, and [B] bool: which rows have one."""

    @abstractmethod
    def draw(self, label: Tensor, own: Tensor, seed: int) -> Tensor:
        """One seeded draw of targets [N, dim] fp32 for samples of another split, on the CPU.

        Args:
            label: [N] classes, -1 where unknown.
            own: [N, dim] these samples' own features of `guide`; [N, 0] where there is no guide.
            seed: Of the draw.
        """

    def state(self) -> dict[str, Tensor]:
        """What makes the same targets again without the helper."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave."""
        assert not self.state(), "targets with a state restore it"


class TableTargets(Targets):
    """One of a few vectors for each row: sentences that a text encoder read once, for instance.

    Raises:
        UserError: Every class is to have a row, and there are too few.
    """

    def __init__(self, table: Tensor, assign: Assign, context: Context) -> None:
        classes = len(context.classes)
        if assign == "per_class" and len(table) < classes:
            raise UserError(
                f"target_assign 'per_class': the table of targets has {len(table)} rows and the "
                f"data set {classes} classes: use level 2, or another target_assign"
            )
        self.table, self.assign = table.float(), assign
        self.dim = int(table.shape[1])
        self._seed = context.seed
        samples = len(context.labels[context.train_split])
        generator = torch.Generator().manual_seed(context.seed)
        self._kept = torch.randint(len(table), (samples,), generator=generator)

    def rows(self, batches: Mapping[str, Batch], step: int) -> tuple[Tensor, Tensor]:
        batch = batches[MAIN]
        device = batch.index.device
        if self.table.device != device:
            self.table, self._kept = self.table.to(device), self._kept.to(device)
        numbers, there = self._numbers(batch, step)
        return self.table[numbers.to(device, non_blocking=True)], there

    def _numbers(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        everywhere = torch.ones_like(batch.valid)
        if self.assign == "per_class":
            return batch.label.clamp(min=0), batch.label >= 0
        if self.assign == "per_sample":
            return self._kept[batch.index.clamp(min=0)], everywhere
        if self.assign == "constant":
            return torch.zeros_like(batch.label), everywhere
        drawn = gather.seeded_numbers(len(batch), len(self.table), self._seed, step, _SALT)
        return drawn, everywhere

    def draw(self, label: Tensor, own: Tensor, seed: int) -> Tensor:
        table = self.table.cpu()
        if self.assign == "per_class":
            return table[label.clamp(min=0)]
        if self.assign == "constant":
            return table[torch.zeros_like(label)]
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(label), generator=generator)
        return table[order % len(table)]

    def state(self) -> dict[str, Tensor]:
        return {"targets.table": self.table.cpu()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        table = state["targets.table"].float()
        _check_rows(len(table), len(self.table))
        self.table = table


class NoiseTargets(Targets):
    """Gaussian vectors of the length `sqrt(dim) * scale`, others in every step: a control."""

    def __init__(self, dim: int, scale: float, seed: int) -> None:
        self.dim, self._scale, self._seed = dim, scale, seed

    def rows(self, batches: Mapping[str, Batch], step: int) -> tuple[Tensor, Tensor]:
        batch = batches[MAIN]
        noise = gather.seeded_normal(len(batch), self.dim, self._seed, step, _SALT)
        return noise.to(batch.index.device) * self._scale, torch.ones_like(batch.valid)

    def draw(self, label: Tensor, own: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(len(label), self.dim, generator=generator) * self._scale

    def state(self) -> dict[str, Tensor]:
        return {"targets.noise": torch.tensor([self.dim, self._scale], dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._scale = float(state["targets.noise"][1])


class PairedTargets(Targets):
    """The features of the sample's own description."""

    def __init__(self, guide: str, dim: int, norm: FeatureNorm) -> None:
        self.dim, self.guide, self.beside = dim, guide, (guide,)
        self._norm = norm

    def rows(self, batches: Mapping[str, Batch], step: int) -> tuple[Tensor, Tensor]:
        batch = batches[MAIN]
        return feature_norm(batch.x[self.guide], self._norm), batch.present[self.guide]

    def draw(self, label: Tensor, own: Tensor, seed: int) -> Tensor:
        return feature_norm(own, self._norm)


class ShuffledTargets(Targets):
    """The features of other samples, drawn uniformly: a stream in an order of its own.

    Where chance brings a row its own sample, the row has no target in this step: what is left is
    uniform over the others, and does not depend on who shares a rank with whom.
    """

    def __init__(self, context: Context, guide: str, dim: int, norm: FeatureNorm) -> None:
        self.dim, self.guide = dim, guide
        self._norm = norm
        self._spec = StreamSpec(GUIDE, context.train_split, (guide,), context.batch)

    def streams(self) -> tuple[StreamSpec, ...]:
        return (self._spec,)

    def rows(self, batches: Mapping[str, Batch], step: int) -> tuple[Tensor, Tensor]:
        mine, other = batches[MAIN], batches[GUIDE]
        there = other.valid & other.present[self.guide] & (other.index != mine.index)
        return feature_norm(other.x[self.guide], self._norm), there

    def draw(self, label: Tensor, own: Tensor, seed: int) -> Tensor:
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))
        other = torch.empty_like(order)
        other[order] = order.roll(1)  # one cycle: nobody stays
        return feature_norm(own[other], self._norm)


def make_targets(context: Context, config: SynergyConfig) -> Targets:
    """The targets of a resolved configuration.

    Raises:
        UserError: `guide` is no vector modality, the helper cannot be loaded, or `dim` is another
            size than theirs.
    """
    found = _make(context, config)
    if config.dim not in (None, found.dim):
        raise UserError(
            f"method.dim is {config.dim}, but the targets have {found.dim} numbers each, and the "
            "latents must have as many: leave method.dim out"
        )
    return found


def _make(context: Context, config: SynergyConfig) -> Targets:
    norm, assign, kept = config.target_norm, config.target_assign, config.kept
    assert norm is not None
    assert assign is not None
    if "targets.table" in kept:
        if config.targets == "text" and config.level == 2:
            _check_rows(len(kept["targets.table"]), max(1, len(context.classes)))
        return TableTargets(kept["targets.table"], assign, context)
    if "targets.noise" in kept:
        dim, scale = kept["targets.noise"].tolist()
        return NoiseTargets(int(dim), scale, context.seed)
    if config.targets == "gaussian":
        return _gaussian(context, config)
    if config.reads_guide:
        dim = _guide_size(context, config.guide)
        if config.targets == "samples":
            return ShuffledTargets(context, config.guide, dim, norm)
        return PairedTargets(config.guide, dim, norm)
    return TableTargets(_table(context, config), assign, context)


def _check_rows(rows: int, wanted: int) -> None:
    """Raise UserError where a checkpoint's table is not one of this data set."""
    if rows != wanted:
        raise UserError(
            f"the checkpoint's table of targets has {rows} rows, and the data set asks for {wanted}"
            ", one for each class: its classes are others than those of the run; train a new run"
        )


def _gaussian(context: Context, config: SynergyConfig) -> Targets:
    """Noise as large as what it stands for: the helper's table, the guide's features, or 1."""
    dim, scale = config.dim or _NOISE_DIM, 1.0
    if config.helper is not None:
        table = _table(context, config)
        dim, scale = int(table.shape[1]), float(table.square().mean().sqrt())
    elif config.guide:
        dim = _guide_size(context, config.guide)
        scale = 1.0 if config.target_norm == "l2_sqrtd" else dim**-0.5
    if config.target_assign == "per_step":
        return NoiseTargets(dim, scale, context.seed)
    assert config.target_assign is not None
    generator = torch.Generator().manual_seed(context.seed)
    drawn = torch.randn(max(1, len(context.classes)), dim, generator=generator)
    return TableTargets(drawn * scale, config.target_assign, context)


def _guide_size(context: Context, guide: str) -> int:
    if guide not in context.dims:
        raise UserError(
            f"method.guide is '{guide}', which is no vector modality of the data set"
            f"{nearest(guide, context.dims)}: store the helper's features with `outmodal embed`, "
            "or name a perceptor of it in `perceptors`"
        )
    return context.dims[guide]


def _table(context: Context, config: SynergyConfig) -> Tensor:
    """One row a number (a class, at level 2), made by the main process and read by all."""
    assert config.helper is not None
    assert config.target_norm is not None
    if config.level == 1:
        sentences = unrelated_sentences()
    else:
        sentences = number_sentences(config.sentence, max(1, len(context.classes)))
    helper = config.helper
    on_main(lambda: encode_guide(helper, sentences) is None)
    return feature_norm(encode_guide(helper, sentences), config.target_norm)
