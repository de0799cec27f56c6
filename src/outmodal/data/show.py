"""A contact sheet: a few samples of a split as one PNG, a row a sample and a column a modality."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
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
from outmodal.data.labels import LABEL
from outmodal.data.manifest import Dataset, Modality
from outmodal.data.shards import RawSample
from outmodal.data.spread import spread_samples
from outmodal.errors import UserError

_CELL = 1.7  # inches
_STRIP = 4  # frames shown of a film
_WINDOW = 256  # samples of a spectrogram's window
_FLOOR = 1e-8  # power below which a spectrogram is black


def show_dataset(dataset: Dataset, split: str, out_png: Path, rows: int = 8) -> Path:
    """Draw `rows` evenly spread samples of `split` into `out_png`, and return its path.

    Pictures, frames, waveform above spectrogram, curves, bars, text; absent and corrupt members
    are named as such. Raises UserError for an unknown split or a shard that cannot be read.
    """
    if rows < 1:
        raise UserError(f"rows must be at least 1, got {rows}")
    dataset.split(split)  # refuses an unknown or empty one
    samples = list(spread_samples(dataset, split, rows))
    columns = dataset.manifest.modalities
    size = (_CELL * 1.4 * max(len(columns), 1), _CELL * max(len(samples), 1))
    figure = Figure(figsize=size, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subfigures(len(samples), len(columns), squeeze=False)
    for row, sample in enumerate(samples):
        for column, (name, spec) in enumerate(columns.items()):
            title = _row_title(dataset, sample) if column == 0 else name if row == 0 else ""
            if row == 0 and column == 0:
                title = f"{name}\n{title}"
            _draw(grid[row, column], spec, name, sample, title)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    try:
        out_png.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out_png, buffer.getvalue())
    except OSError as error:
        raise UserError(f"{out_png} cannot be written: {error.strerror}") from None
    return out_png


def _row_title(dataset: Dataset, sample: RawSample) -> str:
    """Key and class of a sample; a class that is no number is shown as it is."""
    label = sample.members.get(LABEL, b"").decode("utf-8", "replace").strip()
    classes = dataset.manifest.classes
    if label.isdecimal() and int(label) < len(classes):
        label = classes[int(label)]
    return f"{sample.key}  {label or 'no class'}"


def _draw(figure: Any, spec: Modality, name: str, sample: RawSample, title: str) -> None:
    """Draw one cell into its subfigure."""
    figure.suptitle(title, fontsize=7, parse_math=False)
    value: NDArray[Any] | str = "absent"
    draw: Callable[[Any, Any, Modality], None] = _text
    try:
        data = find_member(spec, name, sample.members)
        if data is not None:
            value, draw = decode(spec, data), _DRAWERS[spec.kind]
    except DecodeError as error:
        value = f"corrupt: {error}"
    draw(figure, value, spec)


def _text(figure: Any, value: Any, _spec: Modality) -> None:
    axes = figure.subplots()
    shown = "\n".join(textwrap.wrap(value, 28)[:8])
    axes.text(0.5, 0.5, shown, ha="center", va="center", fontsize=8, parse_math=False)
    axes.set_axis_off()


def _image(figure: Any, value: Any, _spec: Modality) -> None:
    axes = figure.subplots()
    colour = value.shape[2] == 3 and value.dtype == np.uint8
    axes.imshow(value if colour else value.mean(2), cmap="gray")
    axes.set_axis_off()


def _video(figure: Any, value: Any, spec: Modality) -> None:
    picked = np.linspace(0, len(value) - 1, min(_STRIP, len(value))).astype(int)
    _image(figure, np.concatenate(list(value[picked]), axis=1), spec)


def _audio(figure: Any, value: Any, spec: Modality) -> None:
    rate = spec.sample_rate or 1
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(np.arange(len(value)) / rate, value, linewidth=0.4)
    window = min(_WINDOW, len(value))
    frequency, time, power = spectrogram(value, rate, nperseg=window, noverlap=window // 2)
    decibel = 10 * np.log10(np.maximum(power, _FLOOR))
    below.pcolormesh(time, frequency, decibel, cmap="magma", shading="nearest", rasterized=True)
    _small(above, below)


def _series(figure: Any, value: Any, _spec: Modality) -> None:
    axes = figure.subplots()
    axes.plot(value, linewidth=0.7)
    _small(axes)


def _vector(figure: Any, value: Any, _spec: Modality) -> None:
    axes = figure.subplots()
    axes.fill_between(np.arange(len(value)), value, step="mid", linewidth=0.7)
    _small(axes)


def _small(*many: Axes) -> None:
    for axes in many:
        axes.tick_params(labelsize=5, length=2, pad=1)


_DRAWERS: dict[str, Callable[[Any, Any, Modality], None]] = {
    "image": _image,
    "video": _video,
    "audio": _audio,
    "text": _text,
    "series": _series,
    "vector": _vector,
}
