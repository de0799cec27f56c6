"""The processes of an allocation: can they reach each other, how fast, and what time is it there.

Run as `srun ... outmodal doctor`, under torchrun, or as `outmodal doctor --nproc 2`.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from outmodal.launch.doctor.line import Line
from outmodal.train import gather

_SMALL, _LARGE = 1 << 10, 16 << 20
_REPEATS = 5
_SKEW = 2.0


def rank_lines() -> list[Line]:
    """Latency and bandwidth of an all-reduce, and the clocks. Collective; equal on all ranks."""
    world = gather.world()
    if world.size == 1:
        found = "one process: `outmodal doctor --nproc 2`, or srun, measures between several"
        return [Line("all-reduce", "ok", found)]
    hosts = [str(h) for h in gather.all_gather_objects(socket.gethostname())]
    backend = dist.get_backend()
    latency = _seconds(_SMALL)
    large = _seconds(_LARGE)
    rate = 2 * (world.size - 1) / world.size * _LARGE / large / 1e9
    found = (
        f"{world.size} ranks on {len(set(hosts))} hosts by {backend}: {1e6 * latency:.0f} us for "
        f"1 KB, {rate:.2f} GB/s for 16 MB (bus bandwidth)"
    )
    return [_judged(found, backend, rate, len(set(hosts))), _clock(hosts)]


def _judged(found: str, backend: str, rate: float, hosts: int) -> Line:
    if backend == "nccl" and hosts > 1 and rate < 2.0:
        remedy = "NCCL seems to use Ethernet: set NCCL_SOCKET_IFNAME, NCCL_IB_HCA; NCCL_DEBUG=INFO"
        return Line("all-reduce", "warning", found, remedy)
    return Line("all-reduce", "ok", found)


def _seconds(size: int) -> float:
    """Median seconds of an all-reduce of `size` bytes, the slowest rank's."""
    t = torch.ones(size // 4, device=gather.world().device)
    spent = [_timed(lambda: dist.all_reduce(t), t) for _ in range(_REPEATS + 1)][1:]
    slowest = gather.all_gather_objects(statistics.median(spent))
    return max(float(s) for s in slowest)


def _timed(act: Callable[[], Any], t: Tensor) -> float:
    gather.barrier()
    begin = time.perf_counter()
    act()
    if t.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _clock(hosts: Sequence[str]) -> Line:
    """A rank that was not scheduled for a while looks at its clock late: then all look again."""
    spread, times = float("inf"), [0.0]
    for _ in range(_REPEATS):
        gather.barrier()
        times = [float(t) for t in gather.all_gather_objects(time.time())]
        spread = max(times) - min(times)
        if spread <= _SKEW:
            break
    found = f"{spread:.3f} s between the ranks"
    if spread > _SKEW:
        early, late = hosts[times.index(min(times))], hosts[times.index(max(times))]
        remedy = "start chrony or ntpd there; logs and time limits disagree (training does not)"
        return Line("clock", "warning", f"{found}: {early} is behind {late}", remedy)
    return Line("clock", "ok", found)


def together(lines: Sequence[Line]) -> list[Line]:
    """This rank's findings, with what other hosts found wrong. Collective; equal on all ranks."""
    if gather.world().size == 1:
        return list(lines)
    mine = [asdict(line) for line in lines if line.status != "ok"]
    found = gather.all_gather_objects({"host": socket.gethostname(), "lines": mine})
    first = gather.broadcast_object([asdict(line) for line in lines])
    merged = [Line(**line) for line in first]
    seen = {(socket.gethostname(), line.name) for line in merged} if gather.is_main() else set()
    for report in found[1:]:
        for line in report["lines"]:
            if (report["host"], line["name"]) not in seen:
                seen.add((report["host"], line["name"]))
                merged.append(Line(**line | {"name": f"{report['host']}: {line['name']}"}))
    return merged
