"""An exported encoder as one graph, for runtimes that have neither outmodal nor transformers.

The graph's input is `x`, [batch, ...] as the preprocessing gives it, with a batch of any size. Its
outputs are `representation` and, where the encoder has a projection head, `embedding`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from outmodal.errors import UserError
from outmodal.models.export_folder import Export
from outmodal.models.graph_border import with_joined_borders

GraphKind = Literal["onnx", "torch"]
GRAPH_FILES: dict[GraphKind, str] = {"onnx": "model.onnx", "torch": "model.pt2"}
INPUT, BATCH = "x", "batch"
TOLERANCE = 1e-4
"""Largest difference between a graph and the encoder, of values up to 1 (relative above)."""

UNTRACEABLE = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
"""What exporters raise for a model that they cannot express; their own errors are RuntimeErrors."""


class EncoderGraph(nn.Module):
    """x -> {"representation", "embedding"} of an export."""

    def __init__(self, export: Export) -> None:
        super().__init__()
        self.learner = export.learner
        self.head = export.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return r [B, d_r] and, with a head, e [B, d]."""
        r: Tensor = self.learner(x)
        if self.head is None:
            return {"representation": r}
        return {"representation": r, "embedding": self.head(r)}


def output_names(export: Export) -> tuple[str, ...]:
    """Names of the graph's outputs, in their order."""
    return ("representation",) if export.head is None else ("representation", "embedding")


def write_graph(kind: GraphKind, export: Export, x: Tensor, folder: Path) -> None:
    """Write the graph into `folder`, read it back, and compare on x [n, ...].

    Raises:
        UserError: The packages for it are missing, or its exporter cannot express this learner.
        RuntimeError: The graph differs from the encoder.
    """
    from outmodal.models.graph_onnx import run_onnx, write_onnx
    from outmodal.models.graph_torch import run_program, write_program

    write = {"onnx": write_onnx, "torch": write_program}[kind]
    run = {"onnx": run_onnx, "torch": run_program}[kind]
    file = folder / GRAPH_FILES[kind]
    with quiet_exporters():
        try:
            write(export, traced(export, x), file)
        except UNTRACEABLE as error:
            raise untraceable(export, file.name, error) from error
        batches = (x, x[:1])  # of two sizes: the batch must not be frozen
        for rows, found in zip(batches, run(file, batches, output_names(export)), strict=True):
            compare(found, export.outputs(rows), file.name)


def traced(export: Export, x: Tensor) -> ExportedProgram:
    """The encoder as a torch.export program with a dynamic batch, its graph without notes.

    The notes that torch keeps at every operation hold source lines and paths of this machine.
    """
    return program_of(with_joined_borders(EncoderGraph(export).eval()), x)


def program_of(module: nn.Module, x: Tensor, name: str = INPUT) -> ExportedProgram:
    """Trace a module of one input `name` [n, ...]; any number of rows will do afterwards."""
    two = torch.cat([x[:1], x[:1]])  # a batch of one would be taken for a constant
    with torch.no_grad():
        program = export(module, (two,), dynamic_shapes={name: {0: Dim(BATCH)}})
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program


def compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raise RuntimeError where an output differs by more than TOLERANCE * max(1, largest value)."""
    for name, value in found.items():
        wanted = expected["repr" if name == "representation" else name]
        if value.shape != wanted.shape:
            raise RuntimeError(
                f"{what}: {name} has shape {list(value.shape)} where the encoder gives "
                f"{list(wanted.shape)}"
            )
        difference = float((value - wanted).abs().max())
        allowed = TOLERANCE * max(1.0, float(wanted.abs().max()))
        if not difference <= allowed:  # also where it is NaN
            raise RuntimeError(
                f"{what}: {name} differs from the encoder's by {difference:g} (at most "
                f"{allowed:g} is allowed): nothing was written"
            )


def untraceable(export: Export, file: str, error: BaseException) -> UserError:
    """What to say where an exporter gives up."""
    lines = str(error).strip().splitlines() or [""]
    return UserError(
        f"the learner '{export.info.learner.name}' cannot be written as {file}: "
        f"{type(error).__name__}: {lines[0][:200]}; leave out the option, or choose another learner"
    )


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Silence the notices of torch's exporters about packages and attributes that do not matter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
