"""Measures the peak memory of loading an ImageBind of random weights in bf16.

    python -m tests.models.loading_memory FOLDER [--huge] [--format safetensors]

Writes a float32 checkpoint into FOLDER (4.8 GB with --huge) unless it is there, then loads every
tower in a process of its own and reports bytes. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from outmodal.models.perceptors.checkpoint import Checkpoint
from outmodal.models.perceptors.imagebind import SIZES, expected_shapes, load_tower, read_settings
from outmodal.models.perceptors.imagebind_towers import ImageBindSettings

HUGE = ImageBindSettings()


def small() -> ImageBindSettings:
    """Every tower with an eighth of its blocks, and a short vocabulary."""
    towers = {
        name: sizes.model_copy(
            update={"blocks": max(1, sizes.blocks // 8), "vocabulary": sizes.vocabulary // 16}
        )
        for name, sizes in HUGE.towers.items()
    }
    return ImageBindSettings(towers=towers)


def write(folder: Path, settings: ImageBindSettings, suffix: str) -> Path:
    """Store random float32 weights and their sizes; returns the file. Needs little memory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SIZES).write_text(settings.model_dump_json())
    plain, file = folder / "imagebind.safetensors", folder / f"imagebind{suffix}"
    if not plain.exists():
        _write_safetensors(plain, expected_shapes(settings))
    if not file.exists():
        with safe_open(plain, "pt") as opened:
            torch.save({name: opened.get_tensor(name) for name in opened.keys()}, file)  # noqa: SIM118
    return file


def _write_safetensors(file: Path, shapes: Mapping[str, torch.Size]) -> None:
    """Write the format by hand, the same random numbers over and over."""
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * shape.numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = (np.random.default_rng(0).normal(size=1 << 20) * 0.02).astype(np.float32).tobytes()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        while end > 0:
            out.write(block[:end])
            end -= len(block)


def memory(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmHWM is the peak, mapped files included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def load_all(file: Path) -> dict[str, int]:
    """Load all towers in bf16; returns the weights' bytes, and what the peak grew by."""
    settings = read_settings(file.parent)
    before = memory("VmRSS")
    checkpoint = Checkpoint([file])
    towers = [load_tower(checkpoint, settings, name, torch.bfloat16) for name in settings.towers]
    held = sum(t.nbytes for tower in towers for t in tower.state_dict().values())
    return {"weights": held, "peak": memory("VmHWM") - before}


def measure(file: Path) -> dict[str, int]:
    """Run `load_all` in a fresh process."""
    command = [sys.executable, "-m", "tests.models.loading_memory", str(file), "--load"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, int] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--huge", action="store_true")
    parser.add_argument("--format", default="pth", choices=["pth", "safetensors"])
    parser.add_argument("--load", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.load:
        print(json.dumps(load_all(args.folder)))
        return
    settings = HUGE if args.huge else small()
    figures = measure(write(args.folder, settings, f".{args.format}"))
    print(json.dumps({**figures, "ratio": figures["peak"] / figures["weights"]}))


if __name__ == "__main__":
    main()
