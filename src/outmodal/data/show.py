"""A contact sheet: a few samples of a split as one PNG, a row a sample and a column a modality."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.signal import spectrogram

from outmodal.data.cache import write_atomic
from outmodal.data.decode import DecodeError, decode, find_member
from outmodal.data.labels import LABEL, LABEL_BYTES, read_labels
from outmodal.data.manifest import Dataset, Modality, ShardInfo
from outmodal.data.shards import RawSample
from outmodal.data.spread import even_positions, samples_at
from outmodal.errors import UserError, nearest

_CELL = 1.7  # inches
_STRIP = 4  # frames shown of a film
_WINDOW = 256  # samples of a spectrogram's window
_FLOOR = 1e-8  # power below which a spectrogram is black


def show_dataset(
    dataset: Dataset,
    split: str,
    out_png: Path,
    rows: int = 8,
    *,
    classes: Sequence[str] = (),
    seed: int | None = None,
) -> Path:
    """Draw `rows` samples of `split` into `out_png`, and return its path.

    Pictures, frames, waveform above spectrogram, curves, bars, text; absent and corrupt members
    are named as such. The same arguments give the same picture.

    Args:
        dataset: The data set.
        split: One of its splits.
        out_png: File to write.
        rows: Samples to draw, fewer where there are fewer.
        classes: Only samples of these classes, in turn; all where empty.
        seed: Chooses samples at random; evenly spread ones without it.

    Raises:
        UserError: An unknown split or class, no sample of a class, a shard or file that fails.
    """
    if rows < 1:
        raise UserError(f"rows must be at least 1, got {rows}")
    dataset.split(split)  # refuses an unknown or empty one
    samples = list(samples_at(dataset, split, _chosen(dataset, split, rows, classes, seed)))
    columns = dataset.manifest.modalities
    size = (_CELL * 1.4 * max(len(columns), 1), _CELL * max(len(samples), 1))
    figure = Figure(figsize=size, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subfigures(len(samples), len(columns), squeeze=False)
    infos = {info.file: info for info in dataset.manifest.splits[split].shards}
    for row, sample in enumerate(samples):
        info = infos[sample.shard]
        for column, name in enumerate(columns):
            title = _row_title(dataset, info, sample) if column == 0 else name if row == 0 else ""
            if row == 0 and column == 0:
                title = f"{name}\n{title}"
            _draw(grid[row, column], dataset.modality_in(info, name), name, sample, title)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    try:
        out_png.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out_png, buffer.getvalue())
    except OSError as error:
        raise UserError(f"{out_png} cannot be written: {error.strerror}") from None
    return out_png


def _chosen(
    dataset: Dataset, split: str, rows: int, classes: Sequence[str], seed: int | None
) -> NDArray[np.int64]:
    """Return the positions of the samples to draw, in the split's order."""
    total = dataset.manifest.splits[split].samples
    if not classes:
        return _some(np.arange(total), rows, seed)
    known = dataset.manifest.classes
    for name in classes:
        if name not in known:
            raise UserError(f"{dataset.where}: no class '{name}'{nearest(name, known)}")
    labels = read_labels(dataset, split)
    wanted = list(dict.fromkeys(classes))
    picked = []
    for turn, name in enumerate(wanted):
        share = len(range(turn, rows, len(wanted)))  # the first classes get what is left over
        members = np.flatnonzero(labels == known.index(name))
        if not len(members):
            raise UserError(f"{dataset.where}: split '{split}' has no sample of class '{name}'")
        picked.append(_some(members, share, seed))
    return np.sort(np.concatenate(picked))


def _some(positions: NDArray[np.int64], count: int, seed: int | None) -> NDArray[np.int64]:
    """Take evenly spread positions, or drawn ones."""
    if seed is None:
        return positions[even_positions(len(positions), count)]
    chosen = np.random.default_rng(seed).permutation(len(positions))[:count]
    return positions[np.sort(chosen)]


def _row_title(dataset: Dataset, info: ShardInfo, sample: RawSample) -> str:
    """Key and class of a sample; a class that is no number is shown as it is."""
    label = sample.members.get(LABEL, b"").decode("utf-8", "replace").strip()
    if label.isdecimal() and len(label) < LABEL_BYTES and int(label) < dataset.classes_in(info):
        label = dataset.manifest.classes[dataset.label(info, int(label))]
    key = sample.key if sample.key.isprintable() else ascii(sample.key)[1:-1]
    return f"{key}  {label or 'no class'}"


def _draw(figure: Any, spec: Modality | None, name: str, sample: RawSample, title: str) -> None:
    """Draw one cell into its subfigure."""
    figure.suptitle(title, fontsize=7, parse_math=False)
    value: NDArray[Any] | str = "absent"
    draw: Callable[[Any, Any, Any], None] = _text
    try:
        data = None if spec is None else find_member(spec, name, sample.members)
        if spec is not None and data is not None:
            value, draw = decode(spec, data), _DRAWERS[spec.kind]
    except DecodeError as error:
        value = f"corrupt: {error}"
    draw(figure, value, spec)


def _text(figure: Any, value: Any, _spec: Any) -> None:
    axes = figure.subplots()
    shown = "\n".join(textwrap.wrap(value, 28)[:8])
    axes.text(0.5, 0.5, shown, ha="center", va="center", fontsize=8, parse_math=False)
    axes.set_axis_off()


def _image(figure: Any, value: Any, _spec: Any) -> None:
    axes = figure.subplots()
    colour = value.shape[2] == 3 and value.dtype == np.uint8
    axes.imshow(value if colour else value.mean(2), cmap="gray")
    axes.set_axis_off()


def _video(figure: Any, value: Any, spec: Any) -> None:
    picked = np.linspace(0, len(value) - 1, min(_STRIP, len(value))).astype(int)
    _image(figure, np.concatenate(list(value[picked]), axis=1), spec)


def _audio(figure: Any, value: Any, spec: Any) -> None:
    rate = spec.sample_rate or 1
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(np.arange(len(value)) / rate, value, linewidth=0.4)
    window = min(_WINDOW, len(value))
    frequency, time, power = spectrogram(value, rate, nperseg=window, noverlap=window // 2)
    decibel = 10 * np.log10(np.maximum(power, _FLOOR))
    below.pcolormesh(time, frequency, decibel, cmap="magma", shading="nearest", rasterized=True)
    _small(above, below)


def _series(figure: Any, value: Any, _spec: Any) -> None:
    axes = figure.subplots()
    axes.plot(value, linewidth=0.7)
    _small(axes)


def _vector(figure: Any, value: Any, _spec: Any) -> None:
    axes = figure.subplots()
    axes.fill_between(np.arange(len(value)), value, step="mid", linewidth=0.7)
    _small(axes)


def _small(*many: Axes) -> None:
    for axes in many:
        axes.tick_params(labelsize=5, length=2, pad=1)


_DRAWERS: dict[str, Callable[[Any, Any, Any], None]] = {
    "image": _image,
    "video": _video,
    "audio": _audio,
    "text": _text,
    "series": _series,
    "vector": _vector,
}
