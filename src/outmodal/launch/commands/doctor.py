"""`outmodal doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from outmodal.errors import UserError
from outmodal.launch.arguments import parse
from outmodal.launch.cli import Outcome

Status = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Line:
    """One finding; `remedy` says what to do where the status is not ok."""

    name: str
    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class DoctorArgs:
    """Check this machine and its installation."""

    out: Path = Path("runs")
    """Where runs will be written: its disk is checked."""
    data: str = "fashion-speech-sample"
    """A data set to open."""


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    args = parse(DoctorArgs, argv, prog="outmodal doctor", example="outmodal doctor --data DATASET")
    checks: list[Callable[[], Line]] = [
        _python,
        *[_package(name) for name in ("torch", "transformers", "accelerate", "deepspeed")],
        _accelerator,
        _process_group,
        _triton,
        _slurm,
        _shared_memory,
        lambda: _disk(args.out),
        lambda: _dataset(args.data),
    ]
    lines = [check() for check in checks]
    failed = any(line.status == "failure" for line in lines)
    text = "\n".join(_shown(line) for line in lines)
    data = {"ok": not failed, "checks": [asdict(line) for line in lines]}
    return Outcome(data, text, 2 if failed else 0)


def _shown(line: Line) -> str:
    remedy = f"\n{'':12}{line.remedy}" if line.remedy else ""
    return f"{line.status:<8} {line.name}: {line.found}{remedy}"


def _python() -> Line:
    found = f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores"
    return Line("python", "ok", found)


def _package(name: str) -> Callable[[], Line]:
    def check() -> Line:
        try:
            return Line(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            return Line(name, "failure", "not installed", f"pip install {name}")

    return check


def _accelerator() -> Line:
    import torch

    if not torch.cuda.is_available():
        return Line("GPU", "ok", "none: training runs on the CPU with gloo")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Line("GPU", "ok", f"{len(names)} x {names[0]}, CUDA {torch.version.cuda}")


def _process_group() -> Line:
    import torch.distributed as dist

    found = [
        n
        for n, ok in (("gloo", dist.is_gloo_available()), ("nccl", dist.is_nccl_available()))
        if ok
    ]
    if not found:
        return Line("backends", "failure", "none", "install a torch build with gloo or NCCL")
    return Line("backends", "ok", ", ".join(found))


def _triton() -> Line:
    try:
        return Line("triton", "ok", importlib.metadata.version("triton"))
    except importlib.metadata.PackageNotFoundError:
        return Line("triton", "ok", "not installed: only CUDA kernels want it")


def _slurm() -> Line:
    path = shutil.which("sbatch")
    return Line("SLURM", "ok", path or "no sbatch on the path: only `submit` wants it")


def _shared_memory() -> Line:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Line("shared memory", "warning", "no /dev/shm", "set data.workers to 0")
    free = shutil.disk_usage(folder).free
    if free < 1 << 30:
        return Line("shared memory", "warning", f"{free >> 20} MB free", "enlarge /dev/shm")
    return Line("shared memory", "ok", f"{free >> 30} GB free")


def _disk(out: Path) -> Line:
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        return Line("disk", "failure", f"{folder} is not writable", "choose another --out")
    free = shutil.disk_usage(folder).free
    if free < 1 << 30:
        return Line("disk", "warning", f"{free >> 20} MB free in {folder}", "free some space")
    return Line("disk", "ok", f"{free >> 30} GB free in {folder}")


def _dataset(path: str) -> Line:
    from outmodal.data.manifest import open_dataset

    try:
        splits = open_dataset(path).manifest.splits
    except UserError as error:
        return Line("data", "failure", path, str(error))
    return Line("data", "ok", ", ".join(f"{s.samples} {n}" for n, s in splits.items()))
