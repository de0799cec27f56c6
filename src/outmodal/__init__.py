"""outmodal pretrains encoders for new modalities against frozen encoders of known ones.

    import outmodal
    encoder = outmodal.load("my-encoder")      # what `outmodal export` wrote
    vectors = encoder.embed(samples)           # float32 [N, d], unit length

Importing the package imports nothing else; torch comes with the first use of a name below.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load": "outmodal.models.encoder",
    "Encoder": "outmodal.models.encoder",
    "Guesses": "outmodal.models.encoder",
    "UserError": "outmodal.errors",
}

__all__ = ["Encoder", "Guesses", "UserError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562). `__init__.pyi` tells type checkers the same."""
    if name not in _LAZY:
        raise AttributeError(f"module 'outmodal' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
