"""`outmodal bench perceptors`: towers against stock parts, cached features against live ones."""

from __future__ import annotations

import dataclasses
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from torch import Tensor

from outmodal.launch.bench.cached import compare_epochs
from outmodal.launch.bench.timing import in_turns, ratio
from outmodal.launch.bench.towers import Pair, Size, make_pair
from outmodal.models.perceptors.compiler import lacks_compiler


def bench_perceptors(
    towers: Sequence[str],
    size: Size,
    *,
    batch: int,
    repeats: int,
    samples: int,
    rounds: int,
    precision: str,
    compiled: bool,
    device: torch.device,
) -> dict[str, Any]:
    """Measure everything, one tower in memory at a time.

    Args:
        towers: Some of `towers.TOWERS`.
        size: Of the towers.
        batch: Inputs of one forward pass.
        repeats: Forward passes of each alternative that count.
        samples: Of an epoch; 0 leaves the epochs out.
        rounds: Epochs of each kind that count.
        precision: "fp32" or "bf16".
        compiled: Whether to measure torch.compile as well, where there is a compiler.
        device: Where to compute.

    Returns:
        "machine", "settings", "compile" (the reason why nothing was compiled, or ""), "towers"
        (one record each, see `measure`) and "cached_epoch" (see CachedEpoch, or None).
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    why_not = lacks_compiler(device) if compiled else "switched off"
    measured = []
    for name in towers:
        pair = make_pair(name, size, dtype, device)
        measured.append(measure(pair, batch, repeats, not why_not, device))
    epoch = None
    if samples:
        with tempfile.TemporaryDirectory() as folder:
            per_step = min(batch, samples)
            epoch = compare_epochs(Path(folder), size, samples, per_step, rounds, device, dtype)
    return {
        "machine": _machine(device),
        "settings": {"size": size, "precision": precision, "batch": batch, "repeats": repeats},
        "compile": why_not,
        "towers": measured,
        "cached_epoch": None if epoch is None else dataclasses.asdict(epoch),
    }


def measure(
    pair: Pair, batch: int, repeats: int, compiled: bool, device: torch.device
) -> dict[str, Any]:
    """Time one pair, all alternatives in turns.

    Returns:
        "name", "stock", "parameters"; "difference", the largest between entries of both unit
        vectors; "per_second", inputs a second by alternative, medians; "ratio", how many times
        faster than stock ours is, median of the rounds, eager and compiled.
    """
    x = pair.inputs(batch)
    modes: dict[str, Callable[[Any], Any]] = {"eager": lambda tower: tower}
    if compiled:
        modes["compiled"] = torch.compile
    calls = {
        f"{whose}_{mode}": _call(wrap(tower), x)
        for mode, wrap in modes.items()
        for whose, tower in (("outmodal", pair.ours), ("stock", pair.theirs))
    }
    with torch.no_grad():
        out = {name: call() for name, call in calls.items()}
        seconds = in_turns(calls, repeats, device)
    return {
        "name": pair.name,
        "stock": pair.stock,
        "parameters": pair.parameters,
        "difference": float((out["outmodal_eager"] - out["stock_eager"]).abs().max()),
        "per_second": {name: batch / median(rounds) for name, rounds in seconds.items()},
        "ratio": {
            mode: ratio(seconds[f"stock_{mode}"], seconds[f"outmodal_{mode}"]) for mode in modes
        },
    }


def _call(tower: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    return lambda: tower(x)


def _machine(device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(result: dict[str, Any]) -> str:
    """The result for people: a line for each tower and mode, and one for the epochs."""
    machine = result["machine"]
    lines = [", ".join(f"{key} {value}" for key, value in machine.items())]
    lines.append(f"{'inputs a second':<34} {'outmodal':>9} {'stock':>9} {'ratio':>6}  stock is")
    for tower in result["towers"]:
        for mode, times in tower["ratio"].items():
            ours, stock = (tower["per_second"][f"{who}_{mode}"] for who in ("outmodal", "stock"))
            name = f"{tower['name']}, {tower['parameters'] / 1e6:.0f} M, {mode}"
            lines.append(f"{name:<34} {ours:9.2f} {stock:9.2f} {times:6.2f}  {tower['stock']}")
    if result["compile"]:
        lines.append(f"not compiled: {result['compile']}")
    if epoch := result["cached_epoch"]:
        lines.append(
            f"an epoch over cached features is {epoch['speedup']:.1f} times faster: "
            f"{1e3 * epoch['cached']:.2f} ms a sample, live {1e3 * epoch['live']:.1f} ms "
            f"({epoch['samples']} samples; encoding once took {1e3 * epoch['encode_once']:.1f} ms "
            "a sample)"
        )
    return "\n".join(lines)
