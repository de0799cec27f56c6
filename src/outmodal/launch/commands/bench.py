"""`outmodal bench ...`: measure parts of outmodal on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from outmodal.errors import UserError, nearest
from outmodal.launch.arguments import parse
from outmodal.launch.bench.data_command import run_data
from outmodal.launch.bench.kernel_command import run_kernels
from outmodal.launch.bench.search_command import run_search
from outmodal.launch.bench.train_command import run_train
from outmodal.launch.cli import Outcome

USAGE = """usage: outmodal bench WHAT ...

  data          reading pictures, sounds, films and arrays beside webdataset with plain decoders
  kernels       losses over all pairs against other projects' and stock operations
  perceptors    towers against stock modules, and cached features against live perceptors
  search        COX's search for anchors at full size, its time and its largest memory
  train         steps over processes and strategies, and what checkpoints cost

examples: outmodal bench data --workers 1 2 --transcoded
          outmodal bench kernels --op nce --n 8192 --device cpu --threads 1
          outmodal bench perceptors --size small --threads 1
          outmodal bench search --n 100000 --d 512 --threads 1
          outmodal bench train --rounds 3
"""


@dataclass(frozen=True)
class PerceptorArgs:
    """Forward throughput of towers with random weights against the same architecture of stock
    parts, eager and compiled; and training epochs over cached features against live ones."""

    size: Literal["auto", "tiny", "small", "full"] = "auto"
    """full is the released size, small has 4 blocks of width 384, tiny only shows that it works;
    auto is full on a GPU and small elsewhere."""
    tower: tuple[str, ...] = ()
    """Towers to measure, all where none is named: imagebind/vision, imagebind/audio,
    languagebind/image, languagebind/text."""
    batch: int = 4
    """Inputs of one forward pass."""
    repeats: int = 5
    """Forward passes of each alternative, in turns."""
    samples: int = 16
    """Samples of an epoch, a multiple of batch; 0 leaves the epochs out."""
    rounds: int = 3
    """Epochs of each kind, in turns."""
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = True
    """Whether to measure torch.compile as well, where there is a compiler."""
    threads: int = 0
    """CPU threads; 0 leaves torch's own number."""


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    commands: dict[str, Callable[[list[str]], Outcome]] = {
        "data": run_data,
        "kernels": run_kernels,
        "perceptors": _perceptors,
        "search": run_search,
        "train": run_train,
    }
    if not argv or argv[0] in ("-h", "--help"):
        return Outcome({}, USAGE)
    if argv[0] not in commands:
        raise UserError(f"unknown 'bench {argv[0]}'{nearest(argv[0], commands)}")
    return commands[argv[0]](list(argv[1:]))


def _perceptors(argv: list[str]) -> Outcome:
    example = "outmodal bench perceptors --size small --threads 1"
    args = parse(PerceptorArgs, argv, prog="outmodal bench perceptors", example=example)
    import torch

    from outmodal.launch.bench.perceptors import bench_perceptors, table
    from outmodal.launch.bench.towers import TOWERS

    _check(args, TOWERS)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    automatic: Literal["full", "small"] = "full" if device.type == "cuda" else "small"
    result = bench_perceptors(
        args.tower or TOWERS,
        automatic if args.size == "auto" else args.size,
        batch=args.batch,
        repeats=args.repeats,
        samples=args.samples,
        rounds=args.rounds,
        precision=args.precision,
        compiled=args.compile,
        device=device,
    )
    return Outcome(result, table(result))


def _check(args: PerceptorArgs, towers: Sequence[str]) -> None:
    """Refuse numbers and names that nothing can be measured with."""
    for name in args.tower:
        if name not in towers:
            raise UserError(f"unknown tower '{name}'{nearest(name, towers)}")
    for option in ("batch", "repeats", "rounds"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option} must be at least 1, got {getattr(args, option)}")
    if args.samples < 0 or args.samples % min(args.batch, args.samples or 1):
        raise UserError(
            f"--samples must be a multiple of --batch ({args.batch}), got {args.samples}"
        )
