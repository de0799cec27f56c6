"""Perceptors that outmodal itself exported."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from outmodal.data.manifest import Dataset
from outmodal.models.export_folder import HEAD, Export, is_weights, load_export
from outmodal.models.perceptors.base import FrozenPerceptor, PerceptorBase
from outmodal.models.reading import weights_digest


class ExportedPerceptor(PerceptorBase):
    """An encoder that `outmodal export` wrote, with its head.

    Attributes:
        modality: The data set's modality to encode; None is the name that the export's own
            training data had for it.
        path: Folder of the export.
    """

    name: Literal["exported"] = "exported"
    modality: str | None = None
    path: str

    def load(self, dataset: Dataset) -> FrozenPerceptor:
        export = self._export()
        modality = self.modality or export.info.modality
        transform = export.transform(dataset, modality)
        return FrozenPerceptor(
            modality,
            identity(export),
            transform,
            ExportTower(export),
            self.precision,
            compiled=self.compile,
        )

    def reads(self) -> str:
        return self.modality or self._export().info.modality

    def identities(self) -> tuple[str, ...]:
        return (identity(self._export()),)

    def _export(self) -> Export:
        return load_export(Path(self.path).expanduser())


class ExportTower(nn.Module):
    """x -> e of an export."""

    def __init__(self, export: Export) -> None:
        super().__init__()
        self.learner = export.learner
        self.head = export.head

    def forward(self, x: Tensor) -> Tensor:
        r: Tensor = self.learner(x)
        return r if self.head is None else self.head(r)


def identity(export: Export) -> str:
    """Name and checksum of the weights that make the embedding, wherever the folder lies."""
    names = sorted(name for name in export.info.files if is_weights(name))
    files = [export.folder / name for name in names]
    if export.head is not None:
        files.append(export.folder / HEAD)
    return f"exported:{export.info.name}@{weights_digest(files)}"
