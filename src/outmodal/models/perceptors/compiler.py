"""Whether torch.compile can work here: it needs a C++ compiler, and Triton where a GPU computes."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch

_CPP = ("g++", "c++", "clang++")


def lacks_compiler(device: torch.device) -> str:
    """Return what torch.compile lacks for `device` and the remedy; "" if it lacks nothing."""
    named = os.environ.get("CXX", "")
    if not any(shutil.which(name) for name in ((named,) if named else _CPP)):
        asked = f"{named} of $CXX" if named else ", ".join(_CPP)
        return f"no C++ compiler ({asked}): install one, or leave compile off"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "no Triton, which compiles for the GPU: pip install triton, or leave compile off"
    return ""
