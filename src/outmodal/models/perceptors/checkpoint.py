"""Released checkpoints: their tensors read safely and one after another, their keys compared.

Files are mapped into memory, and mapped anew for every part that is read: pages count as this
process's memory until their mapping goes. Filling a module in another precision therefore needs
little more memory than the module.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from outmodal.errors import UserError
from outmodal.models.reading import weights_digest

Shapes = Mapping[str, torch.Size]

log = logging.getLogger(__name__)

_PART = 64 * 2**20
"""Bytes that are read through one mapping; a larger tensor has one of its own."""

_SHOWN = 12
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}
"""Types as safetensors names them; weights have no others."""

T = TypeVar("T")
_UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError)


class Checkpoint:
    """The tensors of some files, by name.

    Attributes:
        files: The files, in order.
        shapes: Shape of every tensor.
        dtypes: Types of the tensors.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Read the names. Raises UserError for a file that is damaged or holds something else."""
        self.files = tuple(files)
        self.shapes: dict[str, torch.Size] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._file: dict[str, Path] = {}
        for file in files:
            for name, (shape, dtype) in _readable(file, _index).items():
                if name in self._file:
                    raise UserError(
                        f"{name} is in {self._file[name]} and in {file}: keep the files of one "
                        "checkpoint in the folder, and no others"
                    )
                self.shapes[name], self.dtypes[name], self._file[name] = shape, dtype, file

    @property
    def label(self) -> str:
        """What messages call it."""
        first = str(self.files[0])
        return first if len(self.files) == 1 else f"{first} and {len(self.files) - 1} more"

    @property
    def digest(self) -> str:
        """16 hex digits that stand for the files' bytes; of one file, how its sha256 begins."""
        stats = [file.stat() for file in self.files]
        return _digest(self.files, tuple((s.st_size, s.st_mtime_ns) for s in stats))

    def read(self, names: Iterable[str], keep: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) on the CPU.

        A tensor keeps its mapping. To `keep` them, each file is mapped once; otherwise copy what
        is needed and let go.
        """
        wanted = set(names)
        for file in self.files:
            own = [name for name in self.shapes if name in wanted and self._file[name] == file]
            for part in [own] if keep and own else _parts(own, self._bytes):
                mapped = _readable(file, partial(_map, names=part))
                yield from mapped.items()
                del mapped

    def _bytes(self, name: str) -> int:
        return self.shapes[name].numel() * self.dtypes[name].itemsize


@lru_cache(maxsize=16)
def _digest(files: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> str:
    """Digest of files, once for all perceptors of one process; `stamps` notice a change."""
    return weights_digest(files)


def _parts(names: Sequence[str], size: Callable[[str], int]) -> Iterator[list[str]]:
    """Cut `names` where their sizes add up to more than _PART."""
    part: list[str] = []
    held = 0
    for name in names:
        if part and held + size(name) > _PART:
            yield part
            part, held = [], 0
        part.append(name)
        held += size(name)
    if part:
        yield part


def _readable(file: Path, read: Callable[[Path], T]) -> T:
    """Return read(file). Raises UserError for a file that is damaged or holds something else."""
    try:
        return read(file)
    except UnpicklingError:
        raise UserError(
            f"{file} holds other things than tensors, and outmodal runs no code out of files: "
            "download the checkpoint again from its public home"
        ) from None
    except _UNREADABLE as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{file} cannot be read ({line[:200]}): it is damaged or was not downloaded to its "
            f"end ({file.stat().st_size if file.exists() else 0} bytes are here); download it again"
        ) from None


def _index(file: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Name -> (shape, type) of a file's tensors. Their bytes are not touched."""
    if file.suffix != ".safetensors":
        return {name: (tensor.shape, tensor.dtype) for name, tensor in _map_zip(file).items()}
    with safe_open(file, "pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {
            name: (torch.Size(part.get_shape()), _DTYPES[part.get_dtype()])
            for name, part in slices.items()
        }


def _map(file: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Map some of a file's tensors; nothing is copied."""
    if file.suffix != ".safetensors":
        held = _map_zip(file)
        return {name: held[name] for name in names}
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in names}


def _map_zip(file: Path) -> dict[str, Tensor]:
    """Map what torch.save wrote."""
    if not zipfile.is_zipfile(file):
        raise ValueError("no archive of torch.save, as torch has written it since version 1.6")
    content = torch.load(str(file), map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise UserError(
            f"{file} holds a {type(content).__name__} that is no plain dictionary of tensors: it "
            "is no released checkpoint of a perceptor"
        )
    return content


def fill(
    module: nn.Module,
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    dtype: torch.dtype,
    change: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
) -> None:
    """Give a module that was built on the meta device its tensors, in precision `dtype`.

    Args:
        module: Its parameters are replaced.
        checkpoint: Compared with the module's keys before.
        keys: Name in the module -> name in the checkpoint.
        dtype: If all tensors have it already, they stay mapped from their files.
        change: Applied to (name in the module, tensor) before the precision changes.
    """
    names = {keys[name]: name for name in module.state_dict()}
    state: dict[str, Tensor] = {}
    keep = all(checkpoint.dtypes[key] == dtype for key in names)
    for key, tensor in checkpoint.read(names, keep):
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{checkpoint.label}: {key} is of type {kind}, which no weight is")
        state[names[key]] = change(names[key], tensor).to(dtype, copy=not keep)
    module.load_state_dict(state, strict=True, assign=True)


def compare(found: Shapes, expected: Shapes, label: str, what: str) -> None:
    """Raise UserError that lists what differs, unless keys and shapes are the expected ones.

    The message draws the layers of a kind together and is cut where it gets long; the log has
    every key.

    Args:
        found: Of the checkpoint `label`.
        expected: Of the module.
        what: What the checkpoint should be.
    """
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    shapes = [name for name in expected if name in found and found[name] != expected[name]]
    if not (missing or extra or shapes):
        return
    lines = [f"{label} is not the checkpoint of {what}; its keys look like {looks_like(found)}:"]
    if missing:
        log.info("missing from %s: %s", label, ", ".join(missing))
        lines.append(f"  missing ({len(missing)}): {_listed(missing)}")
    if extra:
        log.info("not expected in %s: %s", label, ", ".join(extra))
        lines.append(f"  not expected ({len(extra)}): {_listed(extra)}")
    if shapes:
        log.info("of another shape in %s: %s", label, ", ".join(shapes))
        sizes = {n: f" is {[*found[n]]}, expected {[*expected[n]]}" for n in shapes}
        lines.append(f"  of another shape ({len(shapes)}): {_listed(shapes, sizes)}")
    lines.append("set path to the right file, or download it again")
    raise UserError("\n".join(lines))


def looks_like(names: Iterable[str]) -> str:
    """Name the family that a checkpoint's keys belong to."""
    text = "\n".join(names)
    for sign, family in (
        ("modality_preprocessors.", "ImageBind"),
        (".temporal_attn.", "a video checkpoint of LanguageBind"),
        ("vision_model.", "LanguageBind or CLIP"),
    ):
        if sign in text:
            return family
    return "no perceptor that outmodal knows"


def _listed(names: Sequence[str], notes: Mapping[str, str] | None = None) -> str:
    """Names with layers of one kind drawn together: "layers.*.fc1.weight (24)"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\.\d+(?=\.)", ".*", name), []).append(name)
    shown = []
    for pattern, group in list(groups.items())[:_SHOWN]:
        note = (notes or {}).get(group[0], "")
        shown.append(f"{group[0]}{note}" if len(group) == 1 else f"{pattern}{note} ({len(group)})")
    more = len(groups) - len(shown)
    return ", ".join(shown) + (f", and {more} more kinds" if more else "")
