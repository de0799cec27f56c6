"""What every perceptor is: a frozen encoder of a modality that is already understood."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outmodal.base import Config
from outmodal.data.manifest import Dataset
from outmodal.data.transform import Transform

Precision = Literal["fp32", "bf16"]
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Perceptor(Protocol):
    """A frozen encoder, outside the engine and no part of any module tree.

    Attributes:
        modality: The data set's name of the modality that it reads.
        dim: Size d of its embedding.
        identity: Name and checksum of the weights; features of one are never mixed with
            features of another.
        transform: From a decoded value to its input.
    """

    modality: str
    dim: int
    identity: str
    transform: Transform

    def encode(self, x: Tensor) -> Tensor:
        """Return [B, dim] unit vectors in fp32, unscaled, for a batch of the transform's tensors.

        Moves `x` to the perceptor's device, and leaves the result there.
        """
        ...

    def to(self, device: torch.device) -> Perceptor:
        """Move the weights; returns itself."""
        ...


class PerceptorBase(Config):
    """Base of the perceptor configurations.

    Attributes:
        precision: Arithmetic of the encoder; the embedding is fp32 in any case.
    """

    precision: Precision = "fp32"

    def load(self, dataset: Dataset) -> FrozenPerceptor:
        """Read the weights. Raises UserError that names the file and the remedy."""
        raise NotImplementedError


class FrozenPerceptor:
    """A perceptor made of a transform and a module that returns [B, dim]."""

    def __init__(
        self,
        modality: str,
        identity: str,
        transform: Transform,
        tower: nn.Module,
        precision: Precision = "fp32",
    ) -> None:
        """Freeze `tower`; its output size is measured on the transform's stand-in input."""
        self.modality = modality
        self.identity = identity
        self.transform = transform
        self.device = torch.device("cpu")
        self._dtype = _DTYPES[precision]
        self._tower = tower.to(self._dtype).eval().requires_grad_(False)
        self.dim = int(self.encode(transform.zeros()[None]).shape[1])

    def encode(self, x: Tensor) -> Tensor:
        """See Perceptor.encode. An input that the encoder maps to zero stays zero."""
        x = x.to(self.device)
        if x.is_floating_point():
            x = x.to(self._dtype)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return F.normalize(self._tower(x).float(), dim=-1, eps=1e-6)

    def to(self, device: torch.device) -> FrozenPerceptor:
        """See Perceptor.to."""
        self._tower.to(device)
        self.device = device
        return self
