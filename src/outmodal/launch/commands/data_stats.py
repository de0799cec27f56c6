"""`outmodal data stats DIR`: what a data set is like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outmodal.errors import UserError
from outmodal.launch.arguments import parse_positional, progress_bar
from outmodal.launch.cli import Outcome

_FEW = 4
"""Columns up to which each one's mean and deviation is printed; --json has all."""
_CLASSES = 12
"""Classes up to which all are printed."""


@dataclass(frozen=True)
class StatsArgs:
    """Counts, sizes, class balance, missing modalities, durations, duplicates, means, deviations.

    Pixels are in 0..1, as the inputs' mean and std take them.
    """

    dataset: str
    """Folder or address of the data set."""
    workers: int = 0
    """Processes; 0 works in this one."""
    sample: int = 0
    """Decode only so many samples of each split, evenly spread; 0 decodes all."""


def run(argv: list[str]) -> Outcome:
    """Entry point of the command."""
    from outmodal.data.manifest import open_dataset
    from outmodal.data.stats import dataset_stats

    example = "DATASET --workers 2 --sample 10000"
    args = parse_positional(StatsArgs, argv, "dataset", prog="outmodal data stats", sample=example)
    if args.sample < 0:
        raise UserError(f"--sample {args.sample}: give a number of samples, or 0 for all")
    dataset = open_dataset(args.dataset)
    total = sum(len(split.shards) for split in dataset.manifest.splits.values())
    with progress_bar(total, "stats", "shard") as bar:
        stats = dataset_stats(
            dataset, args.sample, args.workers, lambda done, _: bar.update(done - bar.n)
        )
    return Outcome(stats, stats_text(stats))


def stats_text(stats: Mapping[str, Any]) -> str:
    """The counts for people."""
    lines = [f"{stats['name']} ({stats['fingerprint'][:12]})"]
    for name, split in stats["splits"].items():
        lines += ["", *_split(name, split)]
    found = [line for name, info in stats["duplicates"].items() for line in _repeats(name, info)]
    lines += ["", "duplicates (equal bytes):", *(found or ["  none"])]
    return "\n".join(lines)


def _split(name: str, split: Mapping[str, Any]) -> Iterator[str]:
    part = "" if split["decoded"] == split["samples"] else f", {split['decoded']} decoded"
    yield (
        f"{name}: {split['samples']} samples in {split['shards']} shards, "
        f"{split['bytes'] / 1e6:.2f} MB{part}"
    )
    yield from _classes(split)
    for modality, info in split["modalities"].items():
        yield (
            f"  {modality}: {info['present']} present, {info['missing_rate']:.2%} missing, "
            f"{info['bytes'] / 1e6:.2f} MB, {info['corrupt']} corrupt"
        )
        yield from _facts(info)
        for values in info["values"]:
            yield f"    {_values(values)}"


def _classes(split: Mapping[str, Any]) -> Iterator[str]:
    classes = sorted(split["classes"].items(), key=lambda item: -item[1])
    if not classes:
        return
    shown = classes
    if len(classes) > _CLASSES:
        shown = [*classes[: _CLASSES // 2], ("...", ""), *classes[-_CLASSES // 2 :]]
    balance = "" if split["balance"] is None else f", balance {split['balance']:.3f} (1 is even)"
    yield f"  {len(classes)} classes, {split['unlabelled']} samples without one{balance}"
    yield "    " + ", ".join(f"{name} {count}".strip() for name, count in shown)


def _facts(info: Mapping[str, Any]) -> Iterator[str]:
    for name, fact in info.items():
        if isinstance(fact, dict):
            total = f", {_duration(fact['total'])} in all" if name == "seconds" else ""
            yield (
                f"    {name}: {fact['min']:g} to {fact['max']:g}, mean {fact['mean']:.4g}{total}"
            )


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds:.1f} s"


def _values(values: Mapping[str, Any]) -> str:
    if not values["count"]:
        return "no values"
    columns = values["columns"]
    if columns <= _FEW:
        return f"mean {_list(values['mean'])}, std {_list(values['std'])}"
    spans = {key: f"{min(values[key]):.4g} to {max(values[key]):.4g}" for key in ("mean", "std")}
    return f"{columns} columns: means {spans['mean']}, deviations {spans['std']}"


def _list(numbers: Sequence[float]) -> str:
    return "[" + ", ".join(f"{number:.4g}" for number in numbers) + "]"


def _repeats(name: str, info: Mapping[str, Any]) -> Iterator[str]:
    if info["extra"]:
        counts = ", ".join(f"{count} in {split}" for split, count in info["extra"].items())
        yield f"  {name}: repeated: {counts}"
    for pair, shared in info["shared"].items():
        a, b = pair.split("/")
        yield (
            f"  {name}: LEAKAGE {pair}: {shared['contents']} contents in both "
            f"({shared[a]} samples of {a}, {shared[b]} of {b})"
        )
    for group in info["examples"][:1]:
        yield f"    such as {' = '.join(group)}"
