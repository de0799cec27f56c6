"""The encoder as an ONNX graph, `model.onnx`, for ONNX Runtime and what else reads it.

    session = onnxruntime.InferenceSession("model.onnx")
    representation, embedding = session.run(None, {"x": x})

Written by torch's exporter from the torch.export program. Graphs whose weights do not fit into one
protocol buffer (2 GB) keep them in `model.onnx.data` beside it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from outmodal.errors import UserError
from outmodal.models.export_folder import Export
from outmodal.models.graph import BATCH, INPUT, output_names

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INLINE_BYTES = 1_500_000_000
"""Weights up to this size lie inside model.onnx."""

_ERRORS = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented")


def require_onnx() -> None:
    """Raise UserError with the command that installs what is missing for ONNX."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX needs packages that are not installed ({', '.join(missing)}): "
            f"pip install {' '.join(missing)}    # or: pip install 'outmodal[onnx]'"
        )


def write_onnx(export: Export, program: ExportedProgram, file: Path) -> None:
    """Convert a traced encoder, name its inputs and outputs, and check the file's form."""
    require_onnx()
    import onnx

    shape = (2, *export.info.input.shape)
    tokens = export.info.forward is not None and export.info.forward.argument == "input_ids"
    x = torch.ones(shape, dtype=torch.int64 if tokens else torch.float32)
    converted = torch.onnx.export(
        program,
        (x,),
        dynamo=True,
        dynamic_shapes={INPUT: {0: Dim(BATCH)}},
        verbose=False,
    )
    assert converted is not None
    _name_values(converted.model.graph, output_names(export))
    _drop_notes(converted.model)
    converted.save(file, external_data=_weight_bytes(export) > INLINE_BYTES)
    onnx.checker.check_model(str(file))


def run_onnx(
    file: Path, batches: Sequence[Tensor], names: tuple[str, ...]
) -> list[dict[str, Tensor]]:
    """Run ONNX Runtime on the CPU on each batch [n, ...].

    Raises UserError where it cannot run the graph.
    """
    require_onnx()
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        found = [session.run(list(names), {INPUT: x.numpy()}) for x in batches]
    except tuple(getattr(errors, name) for name in _ERRORS) as error:
        line = str(error).splitlines()[0][:200]
        raise UserError(f"ONNX Runtime cannot run {file.name}: {line}; leave out --onnx") from error
    return [
        {name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)}
        for outputs in found
    ]


def _name_values(graph: Any, names: tuple[str, ...]) -> None:
    """Give the outputs their names; inner values that have one of them step aside."""
    taken = {INPUT, *names}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in taken:
                value.name = f"inner_{value.name}"
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _drop_notes(model: Any) -> None:
    """Remove the exporter's notes: lines of source, with paths of this machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


def _weight_bytes(export: Export) -> int:
    modules = (export.learner, *(() if export.head is None else (export.head,)))
    return sum(p.numel() * p.element_size() for m in modules for p in m.state_dict().values())
