"""Texts of perceptors: CLIP's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from outmodal.data.clip_bpe import END, START, Unescape, clean, load_bpe
from outmodal.data.decode import DecodeError
from outmodal.data.manifest import Dataset
from outmodal.data.notice import Notice
from outmodal.data.transform import BaseInput, Transform, Value


class ClipTokenInput(BaseInput):
    """Token ids [context] int64: the start, the text's, the end, then padding.

    Attributes:
        context: Tokens; a longer text loses what is beyond, and keeps the end token.
        padding: Id that fills up.
        unescape: Which HTML entities become characters: "always" all, twice over;
            "outside_tags" those of texts without "<", once.
        vocabulary: Folder with merges.txt (and vocab.json, if it has one) of a CLIP checkpoint;
            None for OpenAI's vocabulary, which both perceptors have.
    """

    kinds: ClassVar[tuple[str, ...]] = ("text",)
    name: Literal["clip_tokens"] = "clip_tokens"
    context: int = Field(default=77, ge=3)
    padding: int = Field(default=0, ge=0)
    unescape: Unescape = "always"
    vocabulary: Path | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.context,)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        self.spec(dataset, modality)
        return ClipTokens(self, modality)


class ClipTokens(Transform):
    """Texts to [context] int64.

    Attributes:
        truncated: Counts the texts that were longer than the context.
    """

    def __init__(self, config: ClipTokenInput, modality: str) -> None:
        super().__init__(config, config.shape, torch.int64)
        self.settings = config
        self.modality = modality
        self.truncated = Notice()
        self.tokenizer = load_bpe(config.vocabulary)
        self.ends = (self.tokenizer.token_to_id(START), self.tokenizer.token_to_id(END))

    def __call__(self, value: Value, key: str) -> Tensor:
        if not isinstance(value, str):
            raise DecodeError(f"expected text, got an array of shape {value.shape}")
        s = self.settings
        ids = self.tokenizer.encode(clean(value, s.unescape), add_special_tokens=False).ids
        room = s.context - 2
        if len(ids) > room:
            self.truncated.add(
                f"text of '{self.modality}' has {len(ids) + 2} tokens, and the perceptor reads "
                f"{s.context}: the rest is cut off, here and of further texts"
            )
        tokens = torch.full((s.context,), s.padding, dtype=torch.int64)
        kept = [self.ends[0], *ids[:room], self.ends[1]]
        tokens[: len(kept)] = torch.tensor(kept)
        return tokens

    def blank(self, raw: bool = False) -> Tensor:
        return self(" ", "")

    def zeros(self) -> Tensor:
        """Return the tokens of an empty text."""
        return self("", "")
