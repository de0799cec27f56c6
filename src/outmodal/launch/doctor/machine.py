"""Python, packages, GPUs, shared memory and file descriptors of this machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
from pathlib import Path

from outmodal.launch.doctor.line import Line

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "webdataset")
_GB = 1 << 30
_FILES = 4096
"""Open files that a loader with many shards and workers may want."""


def machine_lines() -> list[Line]:
    """All of this file's findings."""
    return [
        _host(),
        *[_package(name) for name in PACKAGES],
        *_gpus(),
        _backends(),
        _deepspeed(),
        _triton(),
        _shared_memory(),
        _files(),
    ]


def _host() -> Line:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GB
    found = (
        f"{socket.gethostname()}: Python {platform.python_version()} on {platform.machine()}, "
        f"{cores} cores, {memory:.0f} GB"
    )
    return Line("machine", "ok", found)


def _package(name: str) -> Line:
    try:
        return Line(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Line(name, "failure", "not installed", f"pip install {name}")


def _gpus() -> list[Line]:
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") and torch.version.cuda is None:
            remedy = "install a CUDA build of torch, see https://pytorch.org"
            return [Line("GPU", "warning", "a driver is here but torch is a CPU build", remedy)]
        return [Line("GPU", "ok", "none: training runs on the CPU with gloo")]
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = f"{len(names)} x {names[0]}, CUDA {torch.version.cuda}, driver {_driver()}"
    mixed = len(set(names)) > 1
    lines = [
        Line("GPU", "warning", f"different ones: {', '.join(names)}", "the slowest sets the pace")
        if mixed
        else Line("GPU", "ok", found)
    ]
    for i in range(len(names)):
        free, total = torch.cuda.mem_get_info(i)
        if free < 0.9 * total:
            lines.append(
                Line(
                    f"GPU {i}",
                    "warning",
                    f"{(total - free) / _GB:.1f} of {total / _GB:.0f} GB are taken",
                    "another process uses it: see nvidia-smi",
                )
            )
    return lines


def _driver() -> str:
    path = Path("/proc/driver/nvidia/version")
    words = path.read_text("ascii").split() if path.is_file() else []
    return next((w for w in words if w[:1].isdigit() and "." in w), "unknown")


def _backends() -> Line:
    import torch.distributed as dist

    have = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}
    found = [name for name, there in have.items() if there]
    if not found:
        return Line("backends", "failure", "none", "install a torch build with gloo or NCCL")
    return Line("backends", "ok", ", ".join(found))


def _deepspeed() -> Line:
    """Which of DeepSpeed's C++ extensions could be built. None is needed: torch's optimizer and
    collectives are used, so what is missing costs nothing."""
    try:
        from deepspeed.git_version_info import installed_ops
    except ImportError as error:
        return Line(
            "deepspeed ops",
            "failure",
            f"deepspeed does not import: {error}",
            "pip install --upgrade deepspeed",
        )
    built = [name for name, there in installed_ops.items() if there]
    compiler = shutil.which("c++") or shutil.which("g++") or "no C++ compiler"
    return Line(
        "deepspeed ops",
        "ok",
        f"{len(built)} of {len(installed_ops)} built, none needed; {compiler}",
    )


def _triton() -> Line:
    try:
        return Line("triton", "ok", importlib.metadata.version("triton"))
    except importlib.metadata.PackageNotFoundError:
        pass
    import torch

    if torch.cuda.is_available():
        remedy = "pip install 'triton>=3.6'"
        return Line("triton", "warning", "not installed: the slower kernels run", remedy)
    return Line("triton", "ok", "not installed: only CUDA kernels want it")


def _shared_memory() -> Line:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Line("shared memory", "warning", "no /dev/shm", "set data.workers to 0")
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / _GB:.1f} of {usage.total / _GB:.1f} GB free"
    if usage.free < _GB:
        remedy = "enlarge /dev/shm (docker run --shm-size=8g), or set data.workers to 0"
        return Line("shared memory", "warning", found, remedy)
    return Line("shared memory", "ok", found)


def _files() -> Line:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FILES:
        remedy = f"ulimit -n {_FILES if hard >= _FILES or hard < 0 else hard}"
        return Line("open files", "warning", f"limit {soft}", remedy)
    return Line("open files", "ok", f"limit {soft}")
