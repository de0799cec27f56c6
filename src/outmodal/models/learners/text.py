"""A learner over token ids, from transformers' configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import BertConfig, BertModel

from outmodal.data.inputs import TokenInput
from outmodal.errors import UserError
from outmodal.models.learners.base import Learner, LearnerBase
from outmodal.models.learners.layered import Layered

PAD = 0


@dataclass(frozen=True)
class _Size:
    width: int
    depth: int
    heads: int


SIZES = {
    "tiny": _Size(128, 2, 2),
    "mini": _Size(256, 4, 4),
    "small": _Size(512, 4, 8),
    "base": _Size(768, 12, 12),
    "large": _Size(1024, 24, 16),
}


class TextLearner(LearnerBase):
    """A BERT-style encoder (Devlin et al., NAACL 2019). Dropout is off.

    Attributes:
        size: tiny 128x2x2, mini 256x4x4, small 512x4x8, base 768x12x12, large 1024x24x16 (width,
            depth, heads), or custom with the three given.
        width, depth, heads: For size custom only.
        pool: First token, or the mean over all tokens that are not padding.
        attention: Attention implementation of transformers.
    """

    name: Literal["bert"] = "bert"
    size: Literal["tiny", "mini", "small", "base", "large", "custom"] = "base"
    width: int | None = Field(default=None, gt=0)
    depth: int | None = Field(default=None, gt=0)
    heads: int | None = Field(default=None, gt=0)
    pool: Literal["cls", "mean"] = "cls"
    attention: Literal["sdpa", "eager"] = "sdpa"

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = (self.width, self.depth, self.heads)
        if self.size == "custom" and None in given:
            raise ValueError("size custom wants width, depth and heads")
        if self.size != "custom" and given != (None, None, None):
            raise ValueError(f"width, depth and heads are for size custom, not {self.size}")
        if self.width and self.heads and self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self

    def build(self) -> Learner:
        return TextEncoder(self)


class TextEncoder(Learner, Layered):
    """BertModel without pooling layer, padding masked, pooled by `pool`."""

    def __init__(self, config: TextLearner) -> None:
        if not isinstance(config.input, TokenInput):
            raise UserError(
                f"learner 'bert' for '{config.modality}' reads token ids, but its input is "
                f"'{config.input.name}': choose input 'tokens'"
            )
        size = SIZES.get(config.size) or _Size(
            config.width or 0, config.depth or 0, config.heads or 0
        )
        architecture = BertConfig(
            vocab_size=config.input.vocab_size,
            hidden_size=size.width,
            num_hidden_layers=size.depth,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.width,
            max_position_embeddings=config.input.length,
            type_vocab_size=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=PAD,
            attn_implementation=config.attention,
        )
        backbone = BertModel(architecture, add_pooling_layer=False)
        super().__init__(config, backbone, size.width, config.pool)
        self.depth = size.depth

    def forward(self, x: Tensor) -> Tensor:
        mask = _mask(x)
        found = self.backbone(input_ids=x, attention_mask=mask.long())
        return self.pooled(found.last_hidden_state, mask)

    def first(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Layered.first`."""
        embeddings: Any = self.backbone.embeddings
        return embeddings(input_ids=x), _mask(x)

    def onward(self, hidden: Tensor, mask: Tensor, start: int, stop: int) -> Tensor:
        """See `Layered.onward`."""
        encoder: Any = self.backbone.encoder
        shut = torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device)
        shut = shut.masked_fill(~mask, torch.finfo(hidden.dtype).min)[:, None, None, :]
        for layer in encoder.layer[start:stop]:
            out = layer(hidden, shut)
            hidden = out[0] if isinstance(out, tuple) else out  # a tuple before transformers 5
        return hidden

    def pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """See `Layered.pooled`."""
        if self.pool == "cls":
            return hidden[:, 0]
        weights = mask.to(hidden.dtype)[:, :, None]
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def _mask(x: Tensor) -> Tensor:
    """[B, L] bool: tokens that are not padding."""
    mask = x != PAD
    # an absent text is all padding; attention over nothing would be NaN
    mask[:, 0] = True
    return mask
