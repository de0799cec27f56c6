"""What every method's configuration is: its keys, and what it builds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from outmodal.base import Config

if TYPE_CHECKING:
    from outmodal.train.methods.base import Context, Method


class MethodSettings(Config, ABC):
    """Keys of a method's `method:` section.

    A method that a recipe can name adds `name: Literal["..."] = "..."`, by which the section's
    class is found, and `build`.
    """

    @abstractmethod
    def build(self, context: Context) -> Method:
        """Make the method for a run; new weights are drawn from torch's global generator.

        Raises:
            UserError: The configuration does not fit the data set or the learners.
        """

    def resolved(self) -> MethodSettings:
        """The configuration with every key that a preset decides written out."""
        return self

    def restored(self, state: Mapping[str, Tensor]) -> MethodSettings:
        """The configuration as a checkpoint's method state allows to build it: without what only
        training needs."""
        return self

    def imagined(self, classes: int) -> MethodSettings:
        """The configuration as an estimate can build it, without encoders that only training
        needs."""
        return self
