"""What every learner is: a trainable encoder from one modality's inputs to representations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from outmodal.base import Config
from outmodal.data.inputs import InputConfig
from outmodal.errors import UserError

Pool = Literal["cls", "mean", "pooler", "last", "none"]
"""How a backbone's output becomes one vector.

cls: first token of last_hidden_state; mean: mean over (unmasked) positions of last_hidden_state;
pooler: pooler_output; last: the last time step; none: the backbone returns the vector itself.
"""

PatchSide = Annotated[int, Field(gt=0)]
Patch = PatchSide | tuple[PatchSide, PatchSide]
"""Side of a square patch, or height and width."""

PICTURE = "pictures or spectrograms [channels, height, width]"


class LearnerBase(Config):
    """Base of the learner configurations.

    Attributes:
        modality: The data set's name of the modality that this learner encodes.
        input: How a decoded value becomes the learner's input.
    """

    modality: str
    input: InputConfig

    def build(self) -> Learner:
        """Make the learner with weights drawn from torch's global generator."""
        raise NotImplementedError

    def expect(self, axes: tuple[int, ...], what: str) -> tuple[int, ...]:
        """Return the input's shape, or raise UserError where its number of axes does not fit."""
        shape = self.input.shape
        if len(shape) not in axes:
            raise UserError(
                f"learner '{getattr(self, 'name', '?')}' for '{self.modality}' reads {what}, but "
                f"input '{self.input.name}' gives a tensor of shape {shape}: choose another "
                "learner or input"
            )
        return shape


class Learner(nn.Module, ABC):
    """A trainable encoder.

    Attributes:
        config: Its configuration; `config.build()` makes another of the same shape.
        modality: Name of the modality that it encodes.
        dim: Size d_r of the representation.
        pool: How the backbone's output becomes one vector.
        backbone: What an export saves: a transformers model where transformers has the
            architecture, otherwise a plain module that returns [B, dim].
    """

    def __init__(self, config: LearnerBase, backbone: nn.Module, dim: int, pool: Pool) -> None:
        super().__init__()
        self.config = config
        self.modality = config.modality
        self.dim = dim
        self.pool: Pool = pool
        self.backbone = backbone

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return r [B, dim] for inputs x [B, ...] of the configured input's shape."""

    @property
    def recomputable(self) -> bool:
        """Whether the backbone has blocks that `checkpoint_activations` can switch."""
        return bool(getattr(self.backbone, "supports_gradient_checkpointing", False))

    def checkpoint_activations(self) -> None:
        """Keep only the inputs of the backbone's blocks for the backward (Chen et al., 2016).

        Raises:
            UserError: The backbone has no blocks that can be computed again.
        """
        backbone: Any = self.backbone
        if not self.recomputable:
            raise UserError(
                f"engine.activation_checkpointing: learner "
                f"'{getattr(self.config, 'name', '?')}' for '{self.modality}' cannot compute its "
                "blocks again: leave the key out, or choose a transformers architecture that can "
                "(vit, bert, wav2vec2)"
            )
        current = "activation_checkpointing_enable"  # its name since transformers 5
        switch = getattr(backbone, current, None) or backbone.gradient_checkpointing_enable
        backbone.config.use_cache = False  # of keys and values: nothing here generates
        switch({"use_reentrant": False})

    @property
    def in_transformers(self) -> bool:
        """Whether `transformers.AutoModel` loads the saved backbone."""
        return isinstance(self.backbone, PreTrainedModel)


def side(height: int, width: int) -> int | tuple[int, int]:
    """Return one number for a square: configurations of square models stay as usual."""
    return height if height == width else (height, width)
