"""Options of `outmodal bench kernels`, and what is done with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from outmodal.errors import UserError, nearest
from outmodal.launch.arguments import parse
from outmodal.launch.cli import Outcome

if TYPE_CHECKING:
    from outmodal.launch.bench.kernel_problems import Op, Sizes

EXAMPLE = "outmodal bench kernels --op nce --n 8192 --d 256 --device cpu --threads 1"
_ROWS = {"cpu": {"nce": 2048, "ova": 512, "nearest": 2048}, "cuda": {}}
"""Rows where none are asked for: a minute or two on an idle CPU, 32768 on a GPU."""


@dataclasses.dataclass(frozen=True)
class KernelArgs:
    """Time, memory and accuracy of the losses over all pairs, side by side in one run with losses
    of other projects from their wheels and with chunked stock operations. Peers that are not
    installed are named with the command that brings them."""

    op: str = ""
    """Operations, separated by commas: nce, ova, nearest; all where none is named."""
    n: int = 0
    """Rows; 0 is a modest number for the device."""
    d: int = 256
    """Width of the embeddings."""
    m: int = 3
    """Modalities of ova, 2 to 6."""
    k: int = 3
    """Modalities of nearest, over which distances are averaged."""
    mo: int = 0
    """Columns of nearest; 0 is as many as rows."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto is bf16 on a GPU and fp32 elsewhere; nearest always takes fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    peers: str = ""
    """Whom to compare with, separated by commas: open_clip, open_clip_compiled, chunked_compile,
    inf_cl, cdist, or none; all that know the operation where none is named."""
    repeats: int = 5
    """Calls of each alternative, in turns."""
    threads: int = 0
    """CPU threads; 0 leaves torch's own number."""
    check: bool = False
    """Only compare with the plain forms in fp64, on at most 1024 rows; exit code 1 if an error is
    larger than what is let pass."""
    audit: Literal["", "sm_90"] = ""
    """Only compile all Triton kernels for this architecture and look at the machine code; exit
    code 1 if one spills registers or lacks matrix instructions."""


def run_kernels(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    args = parse(
        KernelArgs, bare_flags(argv, "--check"), prog="outmodal bench kernels", example=EXAMPLE
    )
    if args.audit:
        return _audit(args.audit)
    import torch

    from outmodal.launch.bench.kernels import bench_kernels, check_kernels, check_table, table

    _refuse(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    problems = _problems(args)
    if args.check:
        result = check_kernels(problems)
        return Outcome(result, check_table(result), 0 if result["passed"] else 1)
    result = bench_kernels(problems, _peers(args.peers), args.repeats)
    return Outcome(result, table(result))


def bare_flags(argv: Sequence[str], *flags: str) -> list[str]:
    """Write out the True of flags that stand alone: `--check` is `--check True`."""
    out: list[str] = []
    for here, following in zip(argv, [*argv[1:], ""], strict=True):
        out.append(here)
        if here in flags and following not in ("True", "False"):
            out.append("True")
    return out


def _refuse(args: KernelArgs) -> None:
    """Raise UserError for sizes that no problem has."""
    for option, least in (("d", 1), ("k", 1), ("repeats", 1), ("n", 0), ("mo", 0), ("threads", 0)):
        if getattr(args, option) < least:
            raise UserError(f"--{option} must be at least {least}, got {getattr(args, option)}")
    if not 2 <= args.m <= 6:
        raise UserError(f"--m must be 2 to 6, got {args.m}")


def _problems(args: KernelArgs) -> list[Sizes]:
    from outmodal.launch.bench.kernel_problems import OPS, Sizes

    device = _device(args.device)
    dtype = args.dtype if args.dtype != "auto" else "bf16" if device == "cuda" else "fp32"
    chosen: list[Op] = []
    for name in _names(args.op) or OPS:
        if name not in OPS:
            raise UserError(f"--op: unknown operation '{name}'{nearest(name, OPS)}")
        chosen.append(name)
    problems = []
    for op in chosen:
        n = args.n or _ROWS[device].get(op, 32768)
        kind = "fp32" if op == "nearest" else dtype
        problems.append(Sizes(op, n, args.d, args.m, args.k, args.mo or n, kind, device))
    return problems


def _device(asked: str) -> str:
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda but torch sees no GPU: set it to auto or cpu")
    return "cpu" if asked == "cpu" or not torch.cuda.is_available() else "cuda"


def _peers(text: str) -> list[str] | None:
    from outmodal.launch.bench.kernel_problems import PEERS

    known = sorted({peer for peers in PEERS.values() for peer in peers} | {"none"})
    names = _names(text)
    for name in names:
        if name not in known:
            raise UserError(f"--peers: unknown peer '{name}'{nearest(name, known)}")
    return [name for name in names if name != "none"] if names else None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _audit(arch: str) -> Outcome:
    from outmodal.models.kernels.audit import audit

    rows = audit(arch)
    kernels: list[dict[str, Any]] = [
        {**dataclasses.asdict(row), "problems": row.problems(arch)} for row in rows
    ]
    passed = not any(k["problems"] for k in kernels)
    lines = [
        f"{k['name']:<56} {k['registers']:4} registers {k['shared']:7} bytes shared  "
        + ("; ".join(k["problems"]) or "ok")
        for k in kernels
    ]
    data = {"passed": passed, "arch": arch, "kernels": kernels}
    return Outcome(data, "\n".join(lines), 0 if passed else 1)
