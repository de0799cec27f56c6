"""`outmodal embed DATASET --perceptor P --out DATASET2`: features computed once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from outmodal.errors import UserError
from outmodal.launch.arguments import parse, progress_bar
from outmodal.launch.cli import Outcome
from outmodal.launch.perceptor_names import perceptor_config, perceptor_configs

if TYPE_CHECKING:
    from outmodal.data.manifest import Dataset
    from outmodal.models.embed import Progress

__all__ = ["EmbedArgs", "perceptor_config", "run"]

_EXAMPLE = """outmodal embed DATASET --perceptor image-encoder --keep speech --out FEATURES
         outmodal embed DATASET --perceptor imagebind:imagebind_huge.pth \\
             --modalities image,text --keep force --nproc 8 --out FEATURES"""
_MINUTES = 60.0
"""Longest that a process waits for another one to finish its shard."""


@dataclass(frozen=True)
class EmbedArgs:
    """Run frozen perceptors once over a data set and write their features as vectors.

    Repeat the command to go on where it was stopped. Under torchrun or srun it shares the shards
    with the processes that were started; the result is the same bytes."""

    dataset: str
    """Folder of the data set."""
    perceptor: tuple[str, ...]
    """FOLDER of an exported encoder; MODALITY=FOLDER or MODALITY=HUB_ID for any transformers
    model; MODALITY=imagebind:FILE (imagebind/depth:FILE and imagebind/thermal:FILE for such
    pictures); MODALITY=languagebind:FOLDER. Without MODALITY= the one perceptor encodes all that
    --modalities names."""
    out: Path
    """Folder of the new data set."""
    modalities: tuple[str, ...] = ()
    """Modalities to encode, as a,b; needed where --perceptor does not say it."""
    keep: tuple[str, ...] = ()
    """Modalities to pass through byte for byte, as a,b."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the stored vectors."""
    batch: int = 256
    """Inputs encoded together."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the perceptors."""
    compile: bool = False
    """Whether perceptors go through torch.compile."""
    allow_download: bool = False
    """Whether the files of a hub id may be fetched."""
    max_skips: int = 100
    """Corrupt inputs to tolerate; each counts as a missing modality."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where perceptors compute; auto is CUDA where there is one."""
    nproc: int = 1
    """Processes to start on this machine, one a GPU where there are GPUs. On the CPU each has one
    thread, so that the features do not depend on their number."""


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    args = list(argv)
    if args and not args[0].startswith("-"):
        args = ["--dataset", *args]
    parsed = parse(EmbedArgs, args, prog="outmodal embed", example=_EXAMPLE)
    if parsed.nproc < 1:
        raise UserError(f"--nproc {parsed.nproc}: give the number of processes, 1 or more")
    if parsed.nproc > 1 and "RANK" not in os.environ:
        return _several(args, parsed.nproc)
    return _embed(parsed)


def _several(args: Sequence[str], count: int) -> Outcome:
    from outmodal.launch.local import run_local

    code, answer = run_local(["embed", *args, "--json"], count)
    data = json.loads(answer) if answer.strip() else {"exit_code": code}
    return Outcome(data, _text(data) if code == 0 else "", code)


def _embed(args: EmbedArgs) -> Outcome:
    """Embed in this process, one of however many."""
    from outmodal.data.manifest import open_dataset
    from outmodal.models.perceptors import load_perceptor
    from outmodal.train import gather
    from outmodal.train.features import embed_together

    configs = perceptor_configs(args.perceptor, _names(args.modalities), args.allow_download)
    changes = {"precision": args.precision, "compile": args.compile}
    dataset = open_dataset(args.dataset)
    gather.open_world(args.device, _MINUTES)
    perceptors = [load_perceptor(cfg.model_copy(update=changes), dataset) for cfg in configs]
    made = {p.modality: {"dim": p.dim, "perceptor": p.identity} for p in perceptors}
    if gather.is_main():
        sys.stderr.write(_lines(made))
    with _one_thread(), _progress(dataset, gather.is_main()) as report:
        features = embed_together(
            dataset,
            perceptors,
            _names(args.keep),
            args.out,
            report,
            dtype=args.dtype,
            batch=args.batch,
            max_skips=args.max_skips,
        )
    data = {"dataset": str(features.root.absolute()), "modalities": made}
    return Outcome(data, _text(data) if gather.is_main() else "")


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread a process: the last bits of a matrix product depend on the number of threads,
    and features must not depend on how many processes made them. --nproc fills the cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _names(texts: Iterable[str]) -> tuple[str, ...]:
    """`a,b c` is three names."""
    return tuple(name for text in texts for name in text.split(",") if name)


def _lines(made: Mapping[str, Any]) -> str:
    """What encodes each modality, with the checksum of its weights."""
    return "".join(f"{m}: {d['dim']} numbers by {d['perceptor']}\n" for m, d in made.items())


def _text(data: Mapping[str, Any]) -> str:
    return f"{_lines(data['modalities'])}wrote {data['dataset']}"


@contextmanager
def _progress(dataset: Dataset, shown: bool) -> Iterator[Progress]:
    """A bar with samples a second and the time left; what an earlier run made does not count."""
    if not shown:
        yield lambda done, total: None
        return
    samples = sum(split.samples for split in dataset.manifest.splits.values())
    with progress_bar(samples, "embed", " samples") as bar:
        begun = False

        def report(done: int, total: int) -> None:
            nonlocal begun
            if not begun:
                bar.initial, bar.n, begun = done, done, True
            bar.update(done - bar.n)
            bar.refresh()

        yield report
