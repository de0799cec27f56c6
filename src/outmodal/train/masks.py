"""Which modalities training takes away from a sample: a pure function of seed, epoch and key.

Missing-modality augmentation of "What Makes for Robust Multi-Modal Models in the Face of Missing
Modalities?" (Li et al., 2023, section 3.3), for any number of modalities: with two, each is taken
away with half of the total probability, and never both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from outmodal.base import Config
from outmodal.data.draws import Draw

MOST = 40  # modalities: a subset's number has to fit in the 48 bits of a draw


class DropConfig(Config):
    """Keys of the methods that take modalities away in training.

    Attributes:
        p_drop_total: Probability that a sample loses something: a proper subset of its modalities,
            all subsets equally likely. With two modalities each is lost with half of it.
        one: Take exactly one modality away in place of a subset.
        extra_drop: Whether samples that lack a modality as they are may lose more. Otherwise they
            count as augmented.
    """

    p_drop_total: float = Field(default=0.6, ge=0.0, le=1.0)
    one: bool = False
    extra_drop: bool = False

    def drops(self) -> Drops:
        """Make what draws."""
        return Drops(self.p_drop_total, self.one, self.extra_drop)


@dataclass(frozen=True)
class Drops:
    """Draws what samples lose.

    Attributes:
        total: Probability that a sample loses something.
        one: Exactly one modality, in place of a proper subset.
        extra: Also from samples that lack something.
    """

    total: float
    one: bool = False
    extra: bool = False

    def taken(self, seed: int, epoch: int, keys: Tensor, present: Tensor) -> Tensor:
        """What samples lose beside what they lack; never all that a sample has.

        Args:
            seed: Of the run.
            epoch: Number of the epoch.
            keys: [B] int64, `key_number` of the samples' keys.
            present: [B, M] bool, what they have.

        Returns:
            [B, M] bool.
        """
        drawn = self.drawn(seed, epoch, keys, present.shape[1])
        if not self.extra:
            drawn = drawn & present.all(dim=1, keepdim=True)
        taken = drawn & present
        return taken & (present & ~taken).any(dim=1, keepdim=True)

    def drawn(self, seed: int, epoch: int, keys: Tensor, count: int) -> Tensor:
        """[B, count] bool: none, or a non-empty proper subset of `count` modalities.

        Raises:
            ValueError: More than 40 modalities.
        """
        if count > MOST:
            raise ValueError(f"{count} modalities: the most are {MOST}")
        if count < 2:
            return torch.zeros(len(keys), count, dtype=torch.bool, device=keys.device)
        numbers = Draw(seed, epoch).uniforms(keys, "missing modalities", 3).double()
        loses, fine = numbers[:, 0] < self.total, numbers[:, 1] + numbers[:, 2] * 2.0**-24
        places = torch.arange(count, device=keys.device)
        if self.one:
            subset = (fine * count).long()[:, None] == places
        else:
            number = 1 + (fine * (2**count - 2)).long()  # a bit for each modality
            subset = ((number[:, None] >> places) & 1).bool()
        return subset & loses[:, None]
