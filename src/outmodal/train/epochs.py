"""What a run says of its epochs: how many samples they use, what reading them takes, and of a
mixture, from where they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outmodal.data.batch import StreamSpec
from outmodal.data.epoch import drawn_counts, epoch_use
from outmodal.data.manifest import Dataset
from outmodal.data.memory import memory_bound, memory_sentence
from outmodal.data.stream import StreamConfig
from outmodal.data.transform import Transform
from outmodal.data.unindexed import unindexed_notice
from outmodal.train import gather
from outmodal.train.methods import Method
from outmodal.train.progress import Progress


def announce(
    dataset: Dataset,
    data: StreamConfig,
    steps: int,
    inputs: Mapping[str, Transform],
    method: Method,
) -> None:
    """Say at the start how many samples an epoch of `steps` steps has, uses and drops, how much
    memory each rank reads with, and which shards will be slow to begin with."""
    if not steps or not gather.is_main():
        return
    split = data.train_split
    with Progress(0) as progress:
        progress.say(epoch_use(dataset, split, data.batch, steps).sentence())
        stages = [method.streams(stage.name) for stage in method.stages()]
        world = gather.world().size
        most = max(memory_bound(dataset, inputs, data, specs, world) for specs in stages)
        progress.say(memory_sentence(most))
        slow = unindexed_notice(dataset, split)
        if slow:
            progress.say(slow)


@dataclass(frozen=True)
class SourceCounts:
    """Samples that an epoch drew of each data set of a mixture, over all its streams.

    Attributes:
        dataset: What the run reads.
        data: Its `data:` section with the number of streams.
        seed: The run's seed.
    """

    dataset: Dataset
    data: StreamConfig
    seed: int

    def __call__(self, specs: Sequence[StreamSpec], epoch: int, steps: int) -> dict[str, float]:
        """Name for the records -> count; nothing but for a mixture."""
        counts = drawn_counts(
            self.dataset,
            [spec for spec in specs if spec.split == self.data.train_split],
            steps,
            seed=self.seed,
            epoch=epoch,
            streams=self.data.streams,
            window=self.data.window,
        )
        return {f"source/{name}": float(count) for name, count in counts.items()}
