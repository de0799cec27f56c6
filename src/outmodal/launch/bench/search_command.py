"""Options of `outmodal bench search`, and what is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from outmodal.errors import UserError
from outmodal.launch.arguments import parse
from outmodal.launch.cli import Outcome

EXAMPLE = "outmodal bench search --n 100000 --d 512 --threads 1"


@dataclass(frozen=True)
class SearchArgs:
    """The search for COX's anchors, the nearest mapped sample of every new one, at full size in a
    process of its own: time, peak memory, and some rows against brute force. Beside it, at a size
    that they can hold, torch.cdist in chunks and torch.cdist at once."""

    n: int = 20_000
    """Rows: samples of the new modality."""
    mo: int = 0
    """Columns: samples of the known modalities; 0 is as many as rows."""
    d: int = 512
    """Width of the features."""
    k: int = 1
    """Known modalities, over which distances are averaged."""
    checked: int = 64
    """Rows that are searched again by brute force in fp64."""
    peer_n: int = 4096
    """Rows and columns of the comparison with torch.cdist; 0 leaves it out."""
    repeats: int = 3
    """Calls of each alternative of the comparison, in turns."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    """CPU threads; 0 leaves torch's own number."""


def run_search(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    args = parse(SearchArgs, argv, prog="outmodal bench search", example=EXAMPLE)
    _refuse(args)
    from outmodal.launch.bench.search import Settings, bench_search, table

    settings = Settings(
        n=args.n,
        mo=args.mo or args.n,
        d=args.d,
        k=args.k,
        checked=min(args.checked, args.n),
        device=_device(args.device),
        threads=args.threads,
    )
    result = bench_search(settings, args.peer_n, args.repeats)
    return Outcome(result, table(result))


def _refuse(args: SearchArgs) -> None:
    """Refuse numbers that nothing can be measured with."""
    least = {"n": 1, "mo": 0, "d": 1, "k": 1, "checked": 0, "peer_n": 0, "repeats": 1, "threads": 0}
    for option, number in least.items():
        if getattr(args, option) < number:
            raise UserError(f"--{option} must be at least {number}, got {getattr(args, option)}")


def _device(asked: str) -> str:
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda but torch sees no GPU: set it to auto or cpu")
    return "cpu" if asked == "cpu" or not torch.cuda.is_available() else "cuda"
