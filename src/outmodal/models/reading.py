"""Reading model folders safely: no code and no pickle from them, checksums, plain errors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from outmodal.errors import UserError

_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and reports while a model is read or written."""
    level = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()


def read_part(loader: Any, folder: Path, what: str, **options: Any) -> Any:
    """Call `loader.from_pretrained` on a local folder; `what` names the part in the message.

    Weights that a checkpoint lacks are drawn at random; torch's generator is left as it was.

    Raises:
        UserError: transformers cannot read this part; its own first line is repeated.
    """
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            return loader.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **options
            )
    except _UNREADABLE as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{folder}: transformers cannot read its {what}: {line}; restore the file from where "
            "the model came from, or choose another folder"
        ) from None


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(files: Sequence[Path]) -> str:
    """Return 16 hex digits that stand for the bytes of these files in this order."""
    if len(files) == 1:
        return sha256_file(files[0])[:16]
    joined = "".join(sha256_file(f) for f in files)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]
