"""How fast data are read: outmodal's loader beside webdataset with plain decoders, in turns.

Both read the same shards with as many threads or processes. A figure is samples per second of CPU
time, of all processes together, and per second on the wall; ratios are medians over the rounds,
and a round takes each alternative once, so that what else the machine does falls on all of them.

What ends the measured part differs as it does in training: the peer's workers give normalised
float32 batches, outmodal's loader bytes that the device normalises. "finished here" is outmodal's
with that done on the CPU too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.inputs import ImageInput, SeriesInput, VideoInput, WaveformInput
from outmodal.data.manifest import Dataset
from outmodal.data.stream import Loader, StreamConfig, steps_per_epoch
from outmodal.data.transform import BaseInput
from outmodal.launch.bench.data_peer import (
    MEAN,
    RATIO,
    STD,
    CroppedPicture,
    Peer,
    Prepare,
    plain_array,
    plain_film,
    plain_sound,
)
from outmodal.launch.bench.data_sets import (
    ABOUT_PHOTOS,
    RATE,
    SECONDS,
    SOUND_FORMATS,
    array_set,
    film_set,
    photo_set,
    sound_set,
)
from outmodal.launch.bench.spending import tree_cpu
from outmodal.launch.bench.timing import Spent

PEER, THREADS, PROCESSES, FINISHED = "peer", "threads", "processes", "finished here"
KINDS = ("image", "audio", "video", "npy")


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        samples: Pictures of a data set that is made; a quarter as many sounds and films,
            four times as many arrays.
        workers: Numbers of threads or processes.
        rounds: Epochs of each alternative, in turns.
        batch: Rows of a batch.
        size: Height and width of the pictures that come out.
        scale: Least and greatest share of a picture's area that a crop takes.
    """

    samples: int = 1024
    workers: tuple[int, ...] = (1, 2)
    rounds: int = 3
    batch: int = 64
    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)


@dataclass(frozen=True)
class Subject:
    """One data set, and how both sides read it."""

    dataset: Dataset
    modality: str
    input: BaseInput
    prepare: Prepare


Epoch = Callable[[], int]
"""Reads one epoch and returns how many samples it gave."""


def bench_pictures(
    dataset: Dataset, modality: str, settings: Settings, transcoded: Dataset | None = None
) -> dict[str, Any]:
    """Random crops of pictures: rows of every alternative, and `speedup` per CPU-second.

    Args:
        dataset: Where both sides read.
        modality: Pictures.
        settings: What is measured.
        transcoded: The same pictures in smaller JPEGs: the loader reads them as well, and is
            compared with the peer on the original ones.
    """
    subject = picture_subject(dataset, modality, settings)
    rows: list[dict[str, Any]] = []
    for workers in settings.workers:
        others = {} if transcoded is None else {"transcoded": transcoded}
        rows += _measure(subject, workers, settings, others)
    by = {(row["name"], row["workers"]): row for row in rows}
    out: dict[str, Any] = {"rows": rows, "speedup": _least(by, THREADS, settings)}
    if transcoded is not None:
        out["speedup_transcoded"] = _least(by, f"{THREADS}, transcoded", settings)
    return out


def _least(by: Mapping[tuple[str, int], dict[str, Any]], name: str, settings: Settings) -> float:
    return float(min(by[name, workers]["per_cpu_ratio"] for workers in settings.workers))


def picture_subject(dataset: Dataset, modality: str, settings: Settings) -> Subject:
    """Pictures cropped alike on both sides; bicubic on the peer's, as open_clip does."""
    crop = {"name": "random_resized_crop", "scale": settings.scale, "ratio": RATIO}
    cfg = ImageInput.model_validate(
        {
            "size": (settings.size, settings.size),
            "channels": 3,
            "mean": MEAN,
            "std": STD,
            "augment": (crop,),
        }
    )
    return Subject(dataset, modality, cfg, CroppedPicture(settings.size, settings.scale))


def bench_kinds(folder: Path, kinds: Sequence[str], settings: Settings) -> list[dict[str, Any]]:
    """The same for sounds, films and arrays, with one worker; a row each for both sides."""
    rows = []
    for name, subject in _kinds(folder, kinds, settings):
        for row in _measure(subject, 1, settings, {}):
            rows.append({"kind": name, **row})
    return rows


def _kinds(folder: Path, kinds: Sequence[str], settings: Settings) -> Iterator[tuple[str, Subject]]:
    """Make the data sets of other kinds: fewer samples of what is slow, more of what is fast."""
    samples = max(settings.samples // 4, settings.batch)
    if "audio" in kinds:
        for ext in SOUND_FORMATS:
            made = sound_set(folder / ext, ext, samples)
            rate = 48_000 if ext == "opus" else RATE
            cfg = WaveformInput(sample_rate=rate, seconds=SECONDS)
            yield ext, Subject(made, "sound", cfg, plain_sound(int(SECONDS * rate)))
    if "video" in kinds:
        made = film_set(folder / "film", samples)
        films = VideoInput(frames=8, size=(112, 112))
        yield "video", Subject(made, "film", films, plain_film(8, 112))
    if "npy" in kinds:
        made = array_set(folder / "npy", 16 * samples)
        series = SeriesInput.model_validate({"length": 256, "channels": 16})
        yield "npy", Subject(made, "series", series, plain_array)


def _measure(
    subject: Subject, workers: int, settings: Settings, others: Mapping[str, Dataset]
) -> list[dict[str, Any]]:
    """Every alternative in turns, a warm-up epoch first."""
    with ExitStack() as stack:
        epochs = _alternatives(stack, subject, workers, settings, others)
        for epoch in epochs.values():
            epoch()
        found: dict[str, list[tuple[int, Spent]]] = {name: [] for name in epochs}
        for _ in range(settings.rounds):
            for name, epoch in epochs.items():
                found[name].append(_spent(epoch))
    return [_row(name, workers, rounds, found[PEER]) for name, rounds in found.items()]


def _alternatives(
    stack: ExitStack,
    subject: Subject,
    workers: int,
    settings: Settings,
    others: Mapping[str, Dataset],
) -> dict[str, Epoch]:
    s = subject
    peer = Peer(s.dataset, s.modality, s.prepare, settings.batch, workers)
    stack.callback(peer.close)

    def ours(dataset: Dataset, threads: int, processes: int, finish: bool) -> Epoch:
        cfg = StreamConfig(
            batch=settings.batch, workers=processes, threads=threads, cache_mb=0, window=256
        )
        transform = s.input.build(dataset, s.modality, None)
        loader = stack.enter_context(Loader(dataset, {s.modality: transform}, cfg))
        spec = StreamSpec("bench", "train", (s.modality,), settings.batch)
        steps = steps_per_epoch(dataset, "train", settings.batch, loader.streams)
        return _OurEpoch(loader, spec, steps, finish)

    epochs: dict[str, Epoch] = {
        PEER: partial(_peer_epoch, peer),
        THREADS: ours(s.dataset, workers, 0, finish=False),
        PROCESSES: ours(s.dataset, 1, workers, finish=False),
        FINISHED: ours(s.dataset, workers, 0, finish=True),
    }
    for name, dataset in others.items():
        epochs[f"{THREADS}, {name}"] = ours(dataset, workers, 0, finish=False)
    return epochs


def _peer_epoch(peer: Peer) -> int:
    return sum(len(x) for x in peer.epoch())


class _OurEpoch:
    """Epoch after epoch of a loader."""

    def __init__(self, loader: Loader, spec: StreamSpec, steps: int, finish: bool) -> None:
        self._loader, self._spec, self._steps, self._finish = loader, spec, steps, finish
        self._epoch = 0

    def __call__(self) -> int:
        batches = self._loader.open_epoch(
            [self._spec], seed=0, epoch=self._epoch, steps=self._steps
        )
        self._epoch += 1
        return sum(len(self._taken(step[self._spec.name])) for step in batches)

    def _taken(self, batch: Batch) -> Batch:
        return batch.to(torch.device("cpu")) if self._finish else batch


def _spent(epoch: Epoch) -> tuple[int, Spent]:
    wall, cpu = time.perf_counter(), tree_cpu()
    samples = epoch()
    return samples, Spent(time.perf_counter() - wall, tree_cpu() - cpu)


def _row(
    name: str,
    workers: int,
    rounds: Sequence[tuple[int, Spent]],
    peer: Sequence[tuple[int, Spent]],
) -> dict[str, Any]:
    cpu = [samples / spent.cpu for samples, spent in rounds]
    wall = [samples / spent.wall for samples, spent in rounds]
    other_cpu = [samples / spent.cpu for samples, spent in peer]
    other_wall = [samples / spent.wall for samples, spent in peer]
    return {
        "name": name,
        "workers": workers,
        "samples": rounds[0][0],
        "per_cpu_s": median(cpu),
        "per_wall_s": median(wall),
        "per_cpu_ratio": median(a / b for a, b in zip(cpu, other_cpu, strict=True)),
        "per_wall_ratio": median(a / b for a, b in zip(wall, other_wall, strict=True)),
    }


def own_photos(folder: Path, samples: int) -> tuple[Dataset, str]:
    """Make the data set of photographs, and say what it is."""
    dataset = photo_set(folder, samples)
    size = sum(shard.bytes for shard in dataset.split("train").shards) / samples
    return dataset, f"{ABOUT_PHOTOS}; {size / 1000:.0f} kB each in the shards"


def table(result: Mapping[str, Any]) -> str:
    """The answer for people."""
    lines: list[str] = []
    if "pictures" in result:
        lines += [f"pictures: {result['pictures_from']}", _HEAD.format("alternative")]
        lines += [_line(row["name"], row) for row in result["pictures"]["rows"]]
        lines.append(f"speedup per CPU-second: {result['speedup']:.2f}")
        if "speedup_transcoded" in result:
            lines.append(f"with transcoded shards: {result['speedup_transcoded']:.2f}")
    if "kinds" in result:
        lines += ["", _HEAD.format("kind")]
        lines += [_line(f"{row['kind']}, {row['name']}", row) for row in result["kinds"]]
    if "resume" in result:
        lines += ["", "resume", *(f"  {name}: {value}" for name, value in result["resume"].items())]
    return "\n".join(lines).strip()


_HEAD = "{:<22}  workers  per CPU s  per wall s  ratio CPU  ratio wall"


def _line(name: str, row: Mapping[str, Any]) -> str:
    return (
        f"{name:<22}  {row['workers']:7d}  {row['per_cpu_s']:9.0f}  {row['per_wall_s']:10.0f}  "
        f"{row['per_cpu_ratio']:9.2f}  {row['per_wall_ratio']:10.2f}"
    )


def as_settings(settings: Settings) -> dict[str, Any]:
    """The settings as they are written into the answer."""
    return asdict(settings)
