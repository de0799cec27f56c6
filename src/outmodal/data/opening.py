"""The data of a run: what its `data:` section names, opened."""

from __future__ import annotations

from outmodal.data.manifest import Dataset, open_dataset
from outmodal.data.mixture import open_mixture
from outmodal.data.stream import StreamConfig


def open_data(cfg: StreamConfig, *, verify: bool = True) -> Dataset:
    """Open the data set that `cfg.path` names, or the mixture of those in `cfg.mix`.

    Args:
        cfg: The `data:` section.
        verify: Look whether every shard is there, with the bytes that its manifest says.

    Raises:
        UserError: A data set that cannot be opened, or data sets that do not fit together.
    """

    def open_one(path: str) -> Dataset:
        return open_dataset(path, verify=verify, remote=cfg.remote)

    if not cfg.mix:
        return open_one(cfg.path)
    return open_mixture(cfg.mix, cfg.train_split, cfg.temperature, open_one)


def shown_data(cfg: StreamConfig) -> str:
    """Return the path, or the paths of a mixture, for messages."""
    return " + ".join(source.path for source in cfg.mix) or cfg.path
