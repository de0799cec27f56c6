"""The encoder as a torch.export program, `model.pt2`.

    program = torch.export.load("model.pt2").module()
    program(x)["representation"], program(x)["embedding"]

Loading needs torch alone. The format is a zip of JSON and raw weights that *may* hold pickles
(example inputs, tensor subclasses, script objects). Files written here hold none, and a file that
would is refused; for anybody's .pt2 that is not promised, so load only those that you trust.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from outmodal.models.export_folder import Export


def write_program(export: Export, program: ExportedProgram, file: Path) -> None:
    """Save a traced encoder. Raises RuntimeError if the file would hold a pickle."""
    torch.export.save(program, file)
    held = pickles(file)
    if held:
        raise RuntimeError(f"{file.name} would hold pickles: {', '.join(held)}")


def run_program(
    file: Path, batches: Sequence[Tensor], names: tuple[str, ...]
) -> list[dict[str, Tensor]]:
    """Load the program and run it on each batch [n, ...]."""
    program = torch.export.load(file).module()
    with torch.no_grad():
        found = [program(x) for x in batches]
    return [{name: outputs[name] for name in names} for outputs in found]


def pickles(file: Path) -> list[str]:
    """Members of a .pt2 that are pickles, or that its tables say are."""
    found = []
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            data = archive.read(name) if name.endswith((".json", ".pt")) else b""
            if name.endswith(".pt") and data:
                found.append(name)
            elif name.endswith("_config.json"):
                table = json.loads(data).get("config", {})
                found += [f"{name}: {key}" for key, entry in table.items() if _pickled(entry)]
    return found


def _pickled(entry: dict[str, object]) -> bool:
    return bool(entry.get("use_pickle"))
