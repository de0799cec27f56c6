"""Inputs of hub perceptors: a model folder's own preprocessing, wrapped as transforms.

Sounds and texts differ in length. Their tensors have one shape all the same, filled up at the
end with a value that no input holds (NaN, and -1), and the tower runs every row at its own
length: features do not depend on what else is in the batch, nor on how models treat padding.
"""

from __future__ import annotations

from math import gcd
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly
from torch import Tensor

from outmodal.data.decode import DecodeError
from outmodal.data.picture import with_channels
from outmodal.data.transform import BaseInput, Transform, Value, array, as_tensor

NO_SOUND = float("nan")
NO_TOKEN = -1


class HubInput(BaseInput):
    """What decides a hub transform beside the settings in the model's folder.

    Attributes:
        processor: transformers' class that prepares the input.
        limit: Longest sound in samples or text in tokens; 0 for images.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "audio", "text")
    processor: str
    limit: int


class HubTransform(Transform):
    """Base: holds transformers' processor and saves it as it is."""

    def __init__(
        self, processor: Any, limit: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        super().__init__(HubInput(processor=type(processor).__name__, limit=limit), shape, dtype)
        self.processor = processor

    def save(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)


class HubImage(HubTransform):
    """Pictures [H, W, C] to pixel_values [c, h, w]; grey becomes RGB, 16 bits become 8."""

    def __init__(self, processor: Any, channels: int) -> None:
        super().__init__(processor, 0, (), torch.float32)
        self.channels = channels
        self.shape = tuple(self._run(np.zeros((64, 64, channels), np.uint8)).shape)

    def __call__(self, value: Value, key: str) -> Tensor:
        pixels = with_channels(array(value, 3), self.channels)
        if pixels.dtype == np.uint16:
            pixels = np.rint(pixels / 257.0).astype(np.uint8)
        x = self._run(pixels)
        if tuple(x.shape) != self.shape:
            raise DecodeError(f"the preprocessor gave shape {tuple(x.shape)}, not {self.shape}")
        return x

    def _run(self, pixels: NDArray[np.uint8]) -> Tensor:
        done = self.processor(
            images=[pixels], return_tensors="np", input_data_format="channels_last"
        )
        return as_tensor(np.asarray(done["pixel_values"][0]))


class HubSound(HubTransform):
    """Clips to [samples] ending in NaN, or to a fixed spectrogram where the model reads one.

    Sounds are resampled from `stored` to the model's rate; what lies beyond `seconds`, or beyond
    the extractor's own longest clip, is cut off (extractors would cut at a random place).
    """

    def __init__(self, extractor: Any, stored: int, seconds: float, shortest: int) -> None:
        rate = int(extractor.sampling_rate)
        longest = int(getattr(extractor, "nb_max_samples", 0)) or round(seconds * rate)
        self.longest = max(longest, shortest)
        super().__init__(extractor, self.longest, (), torch.float32)
        common = gcd(stored, rate)
        self.up, self.down, self.rate = rate // common, stored // common, rate
        self.name = str(extractor.model_input_names[0])
        self.shortest = shortest
        probe = self._extract(np.zeros(self.longest, np.float32))
        self.is_wave = probe.ndim == 1
        self.shape = (self.longest,) if self.is_wave else probe.shape

    def __call__(self, value: Value, key: str) -> Tensor:
        wave = array(value, 1)
        if self.up != self.down:
            wave = resample_poly(wave, self.up, self.down)
        wave = wave[: self.longest].astype(np.float32)
        if len(wave) < self.shortest:
            wave = np.pad(wave, (0, self.shortest - len(wave)))
        values = self._extract(wave)
        if not self.is_wave:
            return as_tensor(values)
        filled = np.full(self.shape, NO_SOUND, np.float32)
        filled[: len(values)] = values
        return as_tensor(filled)

    def _extract(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        done = self.processor(wave, sampling_rate=self.rate, return_tensors="np")
        return np.asarray(done[self.name][0], np.float32)


class HubText(HubTransform):
    """Texts to token ids [length] ending in -1.

    A tokenizer that gives no attention mask belongs to a model that reads its padding: there
    the padding's ids stay.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        super().__init__(tokenizer, length, (length,), torch.int64)
        self.masked = "attention_mask" in tokenizer.model_input_names

    def __call__(self, value: Value, key: str) -> Tensor:
        if not isinstance(value, str):
            raise DecodeError("expected text, got an array")
        length = self.shape[0]
        padding = False if self.masked else "max_length"
        ids = self.processor(value, truncation=True, max_length=length, padding=padding)
        filled = torch.full((length,), NO_TOKEN)
        tokens = torch.tensor(ids["input_ids"], dtype=torch.int64)
        filled[: len(tokens)] = tokens
        return filled

    def blank(self, raw: bool = False) -> Tensor:
        return self(" ", "")

    def zeros(self) -> Tensor:
        return self("", "")
