"""An exported encoder as a Python object: samples in, vectors out.

import outmodal
encoder = outmodal.load("my-encoder")
vectors = encoder.embed(["a.wav", "b.wav"])        # float32 [2, d], unit length
guesses = encoder.classify(["a.wav", "b.wav"]).names
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outmodal.data.decode import DecodeError
from outmodal.data.manifest import Modality
from outmodal.data.transform import Transform
from outmodal.errors import UserError, nearest
from outmodal.models.export_folder import Export, ExportInfo, load_export
from outmodal.models.features import feature_norm, unit_norm

Sample = NDArray[Any] | str | bytes | os.PathLike[str]
"""A decoded value, a file's path, or a file's bytes; see `Encoder.embed`."""

Output = Literal["embedding", "representation"]
Vectors = NDArray[np.float32]

_VALUES = {
    "image": "uint8 or uint16 [height, width, channels]",
    "video": "uint8 [frames, height, width, 3]",
    "audio": "float [samples], one channel",
    "text": "str",
    "series": "float [steps, channels]",
    "vector": "float [size]",
}
_NPY = b"\x93NUMPY"


@dataclass(frozen=True)
class Guesses:
    """What a classifier says.

    Attributes:
        names: [N] the likeliest class of each sample.
        probabilities: float32 [N, C], rows sum to 1.
        classes: [C] names of the columns.
    """

    names: tuple[str, ...]
    probabilities: Vectors
    classes: tuple[str, ...]


def load(
    folder: str | os.PathLike[str], *, device: str = "auto", modality: str | None = None
) -> Encoder:
    """Open an export, every file verified by its checksum. No code and no pickle is read from it.

    Args:
        folder: What `outmodal export` wrote.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1" and so on.
        modality: What the encoder is expected to read; None takes whatever it is.

    Raises:
        UserError: No export, a changed file, an unusable device, or an encoder of another
            modality.
    """
    export = load_export(Path(folder).expanduser())
    if modality not in (None, export.info.modality):
        raise UserError(
            f"{folder} does not know '{modality}': it encodes '{export.info.modality}' "
            f"({export.info.kind}){nearest(modality, [export.info.modality])}"
        )
    return Encoder(export, _device(device))


class Encoder:
    """An exported encoder with its preprocessing, in eval mode.

    Attributes:
        info: The export's record: modality, kind, sizes, input.
        classes: Class names in the order of the logits; empty without a classifier.
        device: Where it computes.
    """

    def __init__(self, export: Export, device: torch.device) -> None:
        self._export = export
        self._transform = _clean_transform(export)
        self.info: ExportInfo = export.info
        self.classes = export.info.classes if export.classifier is not None else ()
        self.device = device
        for module in (export.learner, export.head, export.classifier):
            if module is not None:
                module.to(device)

    @property
    def modality(self) -> str:
        """Name that the training data had for what it reads."""
        return self.info.modality

    def embed(
        self,
        samples: Iterable[Sample],
        *,
        batch: int = 64,
        output: Output = "embedding",
        unit: bool = True,
    ) -> Vectors:
        """Encode samples.

        Args:
            samples: Each is a decoded value, a file's path or a file's bytes. Decoded values by
                kind: image uint8 or uint16 [H, W, C]; video uint8 [F, H, W, 3]; audio float [T]
                at the input's sample rate (`info.input.sample_rate`); text str; series float
                [T, C]; vector float [d]. A str is the text itself for encoders of text (give a
                `pathlib.Path` for a file) and a path for all others. Files are decoded and
                resampled as in training. No training noise is added.
            batch: Samples that are encoded together; memory grows with it, results do not change
                beyond rounding.
            output: "embedding" (after the projection head, if there is one) or "representation".
            unit: Scale every vector to length 1.

        Returns:
            float32 [N, d], in the order of the samples, on the CPU.

        Raises:
            UserError: A sample that is not what the encoder reads; names it by its position.
        """
        if output not in ("embedding", "representation"):
            known = ("embedding", "representation")
            raise UserError(f"there is no output '{output}'{nearest(output, known)}")
        size = self.info.embed_dim if output == "embedding" else self.info.repr_dim
        parts = [np.empty((0, size), np.float32)]
        for x in self._batches(samples, batch):
            vectors = self._represent(x) if output == "representation" else self._embedding(x)
            parts.append((unit_norm(vectors) if unit else vectors.float()).cpu().numpy())
        return np.concatenate(parts)

    def classify(self, samples: Iterable[Sample], *, batch: int = 64) -> Guesses:
        """Classify samples, given as for `embed`.

        Raises:
            UserError: The export has no classifier, or a sample is not what the encoder reads.
        """
        classifier, norm = self._export.classifier, self.info.classifier_norm
        if classifier is None or norm is None:
            raise UserError(
                f"{self._export.folder} has no classifier: its run trained none; compare "
                "embeddings with those of labelled samples, or train one on them"
            )
        parts = [torch.empty(0, len(self.classes))]
        for x in self._batches(samples, batch):
            with torch.no_grad():
                logits = classifier(feature_norm(self._embedding(x), norm))
            parts.append(logits.float().softmax(dim=1).cpu())
        probabilities = torch.cat(parts)
        names = tuple(self.classes[i] for i in probabilities.argmax(dim=1).tolist())
        return Guesses(names, probabilities.numpy(), self.classes)

    def prepare(self, sample: Sample, position: int = 0) -> Tensor:
        """The model's input of one sample, [*info.input.shape] on the CPU."""
        try:
            return self._input(sample)
        except DecodeError as error:
            raise UserError(
                f"sample {position}{_named(sample)} does not fit: {error.reason}; encoder "
                f"'{self.info.name}' reads {self.modality} ({self.info.kind}): "
                f"{_VALUES[self.info.kind]}, prepared to {list(self.info.input.shape)}"
            ) from None
        except OSError as error:
            raise UserError(
                f"sample {position}: cannot read {sample!s}: {error.strerror or error}"
            ) from None

    def _input(self, sample: Sample) -> Tensor:
        if isinstance(sample, np.ndarray):
            return self._transform(_finite(sample), "")
        if isinstance(sample, str) and self.info.kind == "text":
            return self._transform(sample, "")
        if isinstance(sample, str | os.PathLike):
            return self._decoded(Path(sample).expanduser().read_bytes())
        if isinstance(sample, bytes):
            return self._decoded(sample)
        raise DecodeError(f"expected an array, a path or bytes, got {type(sample).__name__}")

    def _decoded(self, data: bytes) -> Tensor:
        """The input of a file, decoded as the data set's members are."""
        spec = Modality(
            kind=self.info.kind,
            ext="npy" if data.startswith(_NPY) else "file",
            sample_rate=getattr(self.info.input, "sample_rate", None),
        )
        return self._transform.read(spec, data, "")

    def _batches(self, samples: Iterable[Sample], batch: int) -> Iterator[Tensor]:
        if isinstance(samples, str | bytes | os.PathLike):
            raise UserError(
                f"expected a sequence of samples, got one {type(samples).__name__}: put it into a "
                "list"
            )
        if batch < 1:
            raise UserError(f"batch is {batch}: give 1 or more")
        queue, start = iter(samples), 0
        while part := list(islice(queue, batch)):
            yield self._stacked(part, start).to(self.device)
            start += len(part)

    def _stacked(self, samples: Sequence[Sample], start: int) -> Tensor:
        return torch.stack([self.prepare(sample, start + i) for i, sample in enumerate(samples)])

    def _represent(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            r: Tensor = self._export.learner(x)
        return r

    def _embedding(self, x: Tensor) -> Tensor:
        r = self._represent(x)
        if self._export.head is None:
            return r
        with torch.no_grad():
            e: Tensor = self._export.head(r)
        return e

    def __repr__(self) -> str:
        return (
            f"Encoder('{self.info.name}', {self.modality} ({self.info.kind}) -> "
            f"{self.info.embed_dim}, {len(self.classes)} classes, {self.device})"
        )


def _clean_transform(export: Export) -> Transform:
    """The export's preprocessing without the noise that training added."""
    config = export.info.input
    if getattr(config, "noise", None) is not None:
        config = config.model_copy(update={"noise": None})
    return config.build(None, export.info.modality, export.folder)


def _finite(value: NDArray[Any]) -> NDArray[Any]:
    """The array itself, as decoders would let it pass."""
    if value.dtype.kind not in "fiub":
        raise DecodeError(f"expected numbers, got an array of {value.dtype}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise DecodeError("values that are not finite")
    return value


def _named(sample: Sample) -> str:
    return f" ({sample!s})" if isinstance(sample, os.PathLike) else ""


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        line = str(error).splitlines()[0]
        raise UserError(f"device '{name}' cannot be used: {line}; give auto or cpu") from None
    return device
