"""What every perceptor is: a frozen encoder of a modality that is already understood."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from outmodal.base import Config
from outmodal.data.manifest import Dataset
from outmodal.data.transform import Transform
from outmodal.errors import UserError
from outmodal.models.perceptors.compiler import lacks_compiler

Precision = Literal["fp32", "bf16"]
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Perceptor(Protocol):
    """A frozen encoder, outside the engine and no part of any module tree.

    Attributes:
        modality: The data set's name of the modality that it reads.
        dim: Size d of its embedding.
        identity: Name and checksum of the weights; features of one are never mixed with
            features of another.
        precision: Arithmetic of the encoder.
        transform: From a decoded value to its input.
        device: Where it computes.
    """

    modality: str
    dim: int
    identity: str
    precision: Precision
    transform: Transform
    device: torch.device

    def encode(self, x: Tensor) -> Tensor:
        """Return [B, dim] unit vectors in fp32, unscaled, for a batch of the transform's tensors.

        Moves `x` to the perceptor's device, and leaves the result there.
        """
        ...

    def raw(self, x: Tensor) -> Tensor:
        """As `encode`, with vectors as long as the encoder makes them."""
        ...

    def to(self, device: torch.device) -> Perceptor:
        """Move the weights; returns itself."""
        ...

    def tensors(self) -> list[Tensor]:
        """What it holds on its device: weights and buffers."""
        ...


class PerceptorBase(Config):
    """Base of the perceptor configurations.

    Attributes:
        precision: Arithmetic of the encoder; the embedding is fp32 in any case.
        compile: Whether the encoder goes through torch.compile, at its first batch.
        live: Whether a training run encodes every batch anew, instead of all of the data once
            before it.
        noise_std: Deviation of normal noise that is added to the normalised input (of images and
            sounds): another draw in every epoch where `live`, one for each sample where not. Its
            features carry another identity than those without noise.
    """

    precision: Precision = "fp32"
    compile: bool = False
    live: bool = False
    noise_std: float = Field(default=0.0, ge=0.0)

    def load(self, dataset: Dataset) -> FrozenPerceptor:
        """Read the weights. Raises UserError that names the file and the remedy."""
        raise NotImplementedError

    def reads(self) -> str:
        """Return the name of the modality that it encodes. Raises UserError without weights."""
        return str(getattr(self, "modality", ""))

    def identities(self) -> tuple[str, ...]:
        """Return what the loaded perceptor may call itself, whatever kind it reads; no weights
        are loaded. Raises UserError where there are none."""
        raise NotImplementedError

    def for_text(self, modality: str) -> PerceptorBase:
        """Return the configuration of the same weights' text side, for a text modality.

        Raises:
            UserError: This family has none.
        """
        raise UserError(f"this kind of perceptor reads one modality only, no '{modality}'")


class FrozenPerceptor:
    """A perceptor made of a transform and a module that returns [B, dim]."""

    def __init__(
        self,
        modality: str,
        identity: str,
        transform: Transform,
        tower: nn.Module,
        precision: Precision = "fp32",
        *,
        dim: int | None = None,
        compiled: bool = False,
    ) -> None:
        """Freeze `tower`.

        Args:
            modality, identity, transform: See Perceptor.
            tower: Returns [B, dim] of whatever length.
            precision: Arithmetic of the tower.
            dim: Size of the embedding; None measures it on the transform's stand-in input, which
                costs a forward pass.
            compiled: Whether the first batch has the tower compiled for the device it is on.
        """
        self.modality = modality
        self.identity = identity
        self.precision = precision
        self.transform = transform
        self.device = torch.device("cpu")
        self._dtype = _DTYPES[precision]
        self._tower = tower.to(self._dtype).eval().requires_grad_(False)
        self._to_compile = False
        if dim is None:
            blank = torch.zeros((1, *transform.shape), dtype=transform.dtype)
            dim = int(self.encode(blank).shape[1])
        self.dim = dim
        self._to_compile = compiled

    def encode(self, x: Tensor) -> Tensor:
        """See Perceptor.encode. An input that the encoder maps to zero stays zero.

        Raises UserError if the tower is to be compiled and there is no compiler.
        """
        return F.normalize(self.raw(x), dim=-1, eps=1e-6)

    def raw(self, x: Tensor) -> Tensor:
        """See Perceptor.raw and `encode`."""
        if self._to_compile:
            self._compile()
        x = x.to(self.device)
        if x.is_floating_point():
            x = x.to(self._dtype)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            features: Tensor = self._tower(x).float()
            return features

    def _compile(self) -> None:
        if lacking := lacks_compiler(self.device):
            raise UserError(f"perceptor of '{self.modality}': torch.compile lacks {lacking}")
        self._tower.compile()
        self._to_compile = False

    def tensors(self) -> list[Tensor]:
        """See Perceptor.tensors."""
        return [*self._tower.parameters(), *self._tower.buffers()]

    def to(self, device: torch.device) -> FrozenPerceptor:
        """See Perceptor.to."""
        self._tower.to(device)
        self.device = device
        return self
