"""`outmodal bench kernels`: losses over all pairs against other people's, side by side."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from outmodal.launch.bench.kernel_accuracy import check, errors, small
from outmodal.launch.bench.kernel_memory import peak_bytes
from outmodal.launch.bench.kernel_problems import (
    OURS,
    PEERS,
    SETS,
    Problem,
    Sizes,
    draw,
    make_problem,
)
from outmodal.launch.bench.timing import ratio, spent_in_turns

MIB = 2**20
HEADLINE = "open_clip"
"""The peer whose time over ours is the figure at the top."""


def bench_kernels(
    problems: Sequence[Sizes], peers: Sequence[str] | None, repeats: int
) -> dict[str, Any]:
    """Measure every problem, all alternatives of one in turns.

    Args:
        problems: What to solve.
        peers: Names among PEERS; None: all of the operation's.
        repeats: Calls of each alternative that count.

    Returns:
        "speedup", how many times longer open_clip's eager loss takes than ours (CPU seconds on a
        CPU, seconds else; median over rounds), and "memory_ratio", its peak over ours, or None
        where it was not measured; "machine"; "rows", see `measure`.
    """
    rows: list[dict[str, Any]] = []
    for sizes in problems:
        wanted = [p for p in PEERS[sizes.op] if peers is None or p in peers]
        rows += measure(sizes, [OURS, *wanted], repeats)
    headline = next((r for r in rows if r["op"] == "nce" and r["name"] == HEADLINE), {})
    return {
        "speedup": headline.get("ratio"),
        "memory_ratio": headline.get("memory_ratio"),
        "machine": machine(problems[0].device),
        "rows": rows,
    }


def measure(sizes: Sizes, names: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """One record for every alternative, ours first.

    Returns:
        "op", "problem", "name"; "missing", why it was not measured, or ""; "ms" and "cpu_s",
        medians; "tflops", by convention (see Sizes.flops); "peak_mib" over the inputs; "errors"
        against fp64, see kernel_accuracy.errors; "ratio" and "memory_ratio", its time and its
        peak over ours.
    """
    device = torch.device(sizes.device)
    problem = make_problem(sizes, names, sets=SETS if device.type == "cuda" else 1)
    calls = {name: problem.call(name) for name in problem.losses}
    for name, call in calls.items():
        _warm(call, name, problem)
    calls = {name: call for name, call in calls.items() if name not in problem.missing}
    spent = spent_in_turns(calls, repeats, device)
    peaks = {name: peak_bytes(sizes, name) for name in calls}
    accuracy = _accuracy(sizes, list(calls))
    seconds = {
        name: [s.cpu if device.type == "cpu" else s.wall for s in rounds]
        for name, rounds in spent.items()
    }
    rows = []
    for name in names:
        row: dict[str, Any] = {"op": sizes.op, "problem": sizes.text(), "name": name}
        row["missing"] = problem.missing.get(name, "")
        if name in calls:
            wall = median(s.wall for s in spent[name])
            ours, peak = peaks[OURS], peaks[name]
            row |= {
                "ms": 1e3 * wall,
                "cpu_s": median(s.cpu for s in spent[name]),
                "tflops": sizes.flops() / median(seconds[name]) / 1e12,
                "peak_mib": None if peak is None else peak / MIB,
                "errors": accuracy[name],
                "ratio": ratio(seconds[name], seconds[OURS]),
                "memory_ratio": peak / ours if peak is not None and ours else None,
            }
        rows.append(row)
    return rows


def _warm(call: Callable[[], object], name: str, problem: Problem) -> None:
    """First call: compiles, and shows whether there is memory enough. A peer that fails is told
    of as one that is missing."""
    try:
        call()
    except Exception as error:  # other people's code and compilers fail in their own ways
        if name == OURS and not isinstance(error, torch.OutOfMemoryError):
            raise
        text = (str(error).strip() or "no message").splitlines()[0]
        problem.missing[name] = f"failed: {type(error).__name__}: {text}"


def _accuracy(sizes: Sizes, names: Sequence[str]) -> dict[str, dict[str, float]]:
    few = small(sizes)
    problem = make_problem(few, names)
    return {name: errors(problem, name, draw(few, 1)) for name in problem.losses}


def check_kernels(problems: Sequence[Sizes]) -> dict[str, Any]:
    """Our errors against fp64 beside what is let pass: "passed", and "checks", all of them."""
    checks = [record for sizes in problems for record in check(sizes)]
    device = problems[0].device
    return {
        "passed": all(c["passed"] for c in checks),
        "machine": machine(device),
        "checks": checks,
    }


def machine(device: str) -> dict[str, Any]:
    """Where it was measured."""
    cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


# --- for people ------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """The measurements for people."""
    lines = [_machine_line(result)]
    head = ("ms", "CPU s", "TFLOP/s", "peak MiB", "error", "ratio", "mem.")
    problem = ""
    for row in result["rows"]:
        if row["problem"] != problem:
            problem = row["problem"]
            lines.append(f"{problem:<42} " + " ".join(f"{h:>9}" for h in head))
        if row["missing"]:
            lines.append(f"  {row['name']:<40} {row['missing']}")
        else:
            lines.append(f"  {row['name']:<40} " + _figures(row))
    lines.append("ratio and mem.: its time and its peak memory over ours; error: worst, to fp64")
    return "\n".join(lines)


def _figures(row: dict[str, Any]) -> str:
    numbers = [
        (row["ms"], ".1f"),
        (row["cpu_s"], ".3f"),
        (row["tflops"], ".4g"),
        (row["peak_mib"], ".0f"),
        (max(row["errors"].values()), ".1e"),
        (row["ratio"], ".2f"),
        (row["memory_ratio"], ".1f"),
    ]
    return " ".join(f"{'-' if v is None else format(v, f):>9}" for v, f in numbers)


def check_table(result: dict[str, Any]) -> str:
    """The checks for people."""
    lines = [_machine_line(result)]
    for c in result["checks"]:
        verdict = "ok" if c["passed"] else "FAILED"
        name = f"{c['problem']}, {c['case']}: {c['what']}"
        lines.append(f"{name:<60} {c['error']:9.1e}  at most {c['gate']:.0e}  {verdict}")
    return "\n".join(lines)


def _machine_line(result: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in result["machine"].items())
