"""`outmodal bench search`: the exact search of COX's anchors at full size, in bounded memory.

The search runs in a process of its own, whose largest resident set is the figure: the matrix of
distances would be far larger than the features, and must never exist. Run as a program this file
takes the settings in JSON and prints what was measured.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from outmodal.launch.bench.kernel_peers import chunked_cdist
from outmodal.launch.bench.kernels import machine
from outmodal.launch.bench.timing import ratio, spent_in_turns
from outmodal.train import gather
from outmodal.train.nearest import nearest_over_ranks

MIB = 2**20
OURS = "outmodal"


@dataclass(frozen=True)
class Settings:
    """A search: n rows against mo columns of k modalities, all of width d.

    Attributes:
        checked: Rows that brute force searches again.
        device: cpu or cuda.
        threads: CPU threads; 0 leaves torch's own number.
    """

    n: int
    mo: int
    d: int
    k: int = 1
    checked: int = 64
    device: str = "cpu"
    threads: int = 0


def bench_search(settings: Settings, peer_n: int, repeats: int) -> dict[str, Any]:
    """Measure the search, and peers beside it at a size that they can hold.

    Args:
        settings: Of the search.
        peer_n: Rows and columns of the comparison; 0 leaves it out.
        repeats: Calls of each alternative that count.

    Returns:
        "search", see `measure`; "peers", see `compare`; "machine".
    """
    found = _in_process(settings)
    threads = settings.threads or torch.get_num_threads()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        peers = compare(settings, peer_n, repeats) if peer_n else []
        return {"search": found, "peers": peers, "machine": machine(settings.device)}
    finally:
        torch.set_num_threads(before)


def features(rows: int, width: int, seed: int) -> Tensor:
    """Unit vectors [rows, width] on the CPU, made in place: nothing of their size beside them."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return x.div_(torch.linalg.vector_norm(x, dim=1, keepdim=True))


def measure(settings: Settings) -> dict[str, Any]:
    """The search in this process.

    Returns:
        The settings; "wall_s" and "cpu_s", all threads together; "gflops", 2 K N M d operations
        over the CPU's seconds (the wall's on a GPU); "features_mib"; "peak_mib", the largest
        resident set of the process with everything in it, features and libraries too; "over_mib",
        the part of it beyond what was resident when the search began; "device_mib", the most on
        the GPU, None on a CPU; "matrix_mib", what the distances would take in fp32; "wrong", the
        rows of those checked where brute force finds another column.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    gather.open_world("cuda" if settings.device == "cuda" else "cpu")
    z = features(settings.n, settings.d, 0)
    v = [features(settings.mo, settings.d, 1 + i) for i in range(settings.k)]
    before = _peak_mib()
    wall, cpu = time.perf_counter(), time.process_time()
    _, index = nearest_over_ranks(z, v)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak, on_gpu = _peak_mib(), settings.device == "cuda"
    operations = 2.0 * settings.k * settings.n * settings.mo * settings.d
    return {
        **asdict(settings),
        "threads": torch.get_num_threads(),
        "wall_s": wall,
        "cpu_s": cpu,
        "gflops": operations / (wall if on_gpu else cpu) / 1e9,
        "features_mib": (settings.n + settings.k * settings.mo) * settings.d * 4 / MIB,
        "peak_mib": peak,
        "over_mib": peak - before,
        "device_mib": torch.cuda.max_memory_allocated() / MIB if on_gpu else None,
        "matrix_mib": settings.k * settings.n * settings.mo * 4 / MIB,
        "wrong": _wrong(z, v, index, settings.checked),
    }


def _wrong(z: Tensor, v: list[Tensor], index: Tensor, checked: int) -> int:
    """How many of some rows, spread evenly, brute force gives another column."""
    rows = sorted(set(torch.linspace(0, len(z) - 1, checked).long().tolist()))
    return sum(exact_column(z[row], v) != int(index[row]) for row in rows)


def exact_column(row: Tensor, v: list[Tensor]) -> int:
    """The column nearest to a row [d], by differences in fp64; a few thousand columns at a time."""
    gaps = torch.zeros(len(v[0]), dtype=torch.float64, device=row.device)
    for part in v:
        pieces = [(p.double() - row.double()).norm(dim=1) for p in torch.split(part, 8192)]
        gaps += torch.cat(pieces)
    return int(gaps.argmin())


def compare(settings: Settings, rows: int, repeats: int) -> list[dict[str, Any]]:
    """Ours beside torch.cdist in chunks and at once, in turns, on `rows` rows and columns.

    Returns:
        For each "name", "ms" and "cpu_s", medians; "ratio", its time over ours; "wrong", as in
        `measure`.
    """
    device = torch.device(settings.device)
    z = features(rows, settings.d, 0).to(device)
    v = [features(rows, settings.d, 1 + i).to(device) for i in range(settings.k)]
    calls: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: nearest_over_ranks(z, v)[1],
        "torch.cdist in chunks": lambda: chunked_cdist(z, v),
        "torch.cdist at once": lambda: _whole_cdist(z, v),
    }
    found = {name: call().cpu() for name, call in calls.items()}
    spent = spent_in_turns(calls, repeats, device)
    seconds = {
        name: [s.cpu if device.type == "cpu" else s.wall for s in rounds]
        for name, rounds in spent.items()
    }
    return [
        {
            "name": name,
            "n": rows,
            "ms": 1e3 * median(s.wall for s in spent[name]),
            "cpu_s": median(s.cpu for s in spent[name]),
            "ratio": ratio(seconds[name], seconds[OURS]),
            "wrong": _wrong(z, v, found[name], min(rows, settings.checked)),
        }
        for name in calls
    ]


def _whole_cdist(z: Tensor, v: list[Tensor]) -> Tensor:
    """[N] index of the smallest mean of torch.cdist, all distances at once."""
    return torch.stack([torch.cdist(z, part) for part in v]).mean(0).argmin(1)


def _in_process(settings: Settings) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "outmodal.launch.bench.search", json.dumps(asdict(settings))],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")},
    )
    out: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return out


def _peak_mib() -> float:
    """Largest resident set of this process so far (kilobytes, on macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)


def table(result: dict[str, Any]) -> str:
    """The measurements for people."""
    s = result["search"]
    lines = [
        ", ".join(f"{key} {value}" for key, value in result["machine"].items()),
        f"search of {s['n']:,} rows x {s['mo']:,} columns, d {s['d']}, k {s['k']}, "
        f"{s['threads']} threads",
        f"  {s['wall_s']:.1f} s, {s['cpu_s']:.1f} CPU s, {s['gflops']:.1f} GFLOP/s",
        f"  peak {s['peak_mib']:.0f} MiB, of which features {s['features_mib']:.0f} and "
        f"{s['over_mib']:.0f} since the search began; the distances are {s['matrix_mib']:.0f}",
        f"  {s['wrong']} of {s['checked']} rows differ from brute force",
    ]
    if s["device_mib"] is not None:
        lines.append(f"  {s['device_mib']:.0f} MiB on the GPU")
    for row in result["peers"]:
        lines.append(
            f"  {row['name']:<24} n {row['n']:<8} {row['ms']:9.1f} ms {row['cpu_s']:9.3f} CPU s "
            f"ratio {row['ratio']:5.2f}, {row['wrong']} wrong"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what the first argument says."""
    sys.stdout.write(json.dumps(measure(Settings(**json.loads(sys.argv[1])))) + "\n")


if __name__ == "__main__":
    main()
