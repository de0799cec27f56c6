"""Texts that a perceptor encodes once into a table: class prompts, arbitrary numbers, captions.

What a batch needs of a table is picked by row; no text is encoded during training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outmodal.data.decode import DecodeError
from outmodal.errors import UserError
from outmodal.models.perceptors.base import Perceptor

GAP = "{}"
"""Where a template takes the name of a class."""

_BATCH = 256
_NUMBER = "This is about class #{}."


@torch.no_grad()
def encode_texts(perceptor: Perceptor, texts: Sequence[str], *, raw: bool = False) -> Tensor:
    """Return the [n, d] unit vectors of texts, in fp32 on the perceptor's device.

    Equal texts are encoded once, and give equal rows. `raw` leaves vectors as long as the
    encoder makes them.

    Raises:
        UserError: There is no text, or the perceptor does not read texts.
    """
    if not texts:
        raise UserError("no text to encode: give at least one")
    distinct = list(dict.fromkeys(texts))
    rows = []
    for start in range(0, len(distinct), _BATCH):
        inputs = [_input(perceptor, text) for text in distinct[start : start + _BATCH]]
        rows.append((perceptor.raw if raw else perceptor.encode)(torch.stack(inputs)))
    row_of = {text: row for row, text in enumerate(distinct)}
    e = torch.cat(rows)
    return e[torch.tensor([row_of[text] for text in texts], device=e.device)]


def _input(perceptor: Perceptor, text: str) -> Tensor:
    try:
        return perceptor.transform(text, "")
    except DecodeError as error:
        raise UserError(
            f"perceptor of '{perceptor.modality}' ({perceptor.identity}) does not read the text "
            f"{text[:40]!r}: {error.reason}; name a perceptor of a text modality"
        ) from None


def class_prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every class in every template, one class after the other; "_" in names becomes a blank.

    >>> class_prompts(["dog", "sea_lion"], ["{}", "a {}"])
    ['dog', 'a dog', 'sea lion', 'a sea lion']

    Raises:
        UserError: There is no class or template, or a template without its gap.
    """
    if not classes:
        raise UserError("the data set names no classes: prompts for classes need their names")
    if not templates:
        raise UserError(f"no template given: name at least one, such as 'a photo of a {GAP}.'")
    for template in templates:
        if template.count(GAP) != 1:
            raise UserError(f"template '{template}' needs {GAP} once, where the class name goes")
    names = [name.replace("_", " ") for name in classes]
    return [template.replace(GAP, name) for name in names for template in templates]


def number_prompts(count: int) -> list[str]:
    """Prompts that say of a class nothing but its number, one for each of `count` classes.

    >>> number_prompts(2)
    ['This is about class #0.', 'This is about class #1.']
    """
    return [_NUMBER.format(number) for number in range(count)]


@dataclass(frozen=True)
class PromptTable:
    """One vector a row, made once by a frozen encoder.

    Attributes:
        vectors: [C, d] fp32.
        perceptor: Identity of what made them.
        prompts: For each row the prompts that it is made of.
    """

    vectors: Tensor
    perceptor: str
    prompts: tuple[tuple[str, ...], ...]

    @staticmethod
    def build(
        perceptor: Perceptor, prompts: Sequence[str], *, each: int = 1, unit: bool = True
    ) -> PromptTable:
        """Encode prompts into a table on the perceptor's device.

        Args:
            perceptor: Reads texts.
            prompts: C * each texts.
            each: Prompts that make one row, which is the mean of their unit vectors.
            unit: Scale rows to length 1 (a mean of several is shorter).

        Raises:
            UserError: `prompts` are no multiple of `each`, or see `encode_texts`.
        """
        if each < 1 or len(prompts) % each:
            raise UserError(f"{len(prompts)} prompts do not make rows of {each} each")
        groups = tuple(tuple(prompts[i : i + each]) for i in range(0, len(prompts), each))
        e = encode_texts(perceptor, prompts).reshape(len(groups), each, -1).mean(dim=1)
        return PromptTable(
            torch.nn.functional.normalize(e, dim=1, eps=1e-6) if unit else e,
            perceptor.identity,
            groups,
        )

    def __len__(self) -> int:
        return len(self.vectors)

    def rows(self, numbers: Tensor) -> Tensor:
        """Return [B, d], the rows of [B] classes or captions, on the table's device."""
        return self.vectors[numbers.to(self.vectors.device)]

    def to(self, device: torch.device) -> PromptTable:
        """Return the table with its vectors on `device`."""
        return PromptTable(self.vectors.to(device), self.perceptor, self.prompts)
