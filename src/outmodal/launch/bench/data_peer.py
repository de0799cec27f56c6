"""What the data benchmark is measured against: webdataset with plain decoders.

For pictures it is what open_clip (https://github.com/mlfoundations/open_clip) trains with: shards
shuffled and shared out to a DataLoader's workers, tars read and samples shuffled by webdataset,
PIL decoding, RandomResizedCrop with PIL's bicubic filter, tensors of float32 divided by 255 and
normalised, stacked in the worker. torchvision's two transforms are written out here, so that it
need not be there. Everything else of a sample (texts, tokens) is left out on both sides.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import av
import numpy as np
import soundfile
import torch
import webdataset as wds
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from outmodal.data.crop import random_resized_crop_box
from outmodal.data.manifest import Dataset

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pictures
STD = (0.26862954, 0.26130258, 0.27577711)
RATIO = (3 / 4, 4 / 3)
SHUFFLED, FIRST = 5000, 1000  # open_clip's buffer of samples, and its filling at the start

Prepare = Callable[[Any], Tensor]


class Peer:
    """Batches [B, ...] of float32 from a split, epoch after epoch.

    Args:
        dataset: A local data set.
        modality: Its only modality that is read.
        prepare: The member's bytes to a tensor.
        batch: Rows of a batch; a worker's last batch may have fewer.
        workers: Processes, which live as long as this object; 0 reads in this one.
        split: Of the data set.
        labels: Read them too, see `labelled`.
        endless: Draw shards again and again, so that there is one epoch, of full batches. The
            buffer then stays as it was filled first, so that what a turn takes does not change.
        pin: Give batches in pinned memory.
    """

    def __init__(
        self,
        dataset: Dataset,
        modality: str,
        prepare: Prepare,
        batch: int,
        workers: int,
        *,
        split: str = "train",
        labels: bool = False,
        endless: bool = False,
        pin: bool = False,
    ) -> None:
        spec = dataset.modality(modality)
        member = f"{modality}.{spec.ext}"
        wanted = {member, "cls"} if labels else {member}
        shards = [str(dataset.shard_path(s)) for s in dataset.split(split).shards]
        sources = (
            [wds.ResampledShards(shards)]
            if endless
            else [wds.SimpleShardList(shards), wds.detshuffle()]
        )
        pipeline = wds.DataPipeline(
            *sources,
            wds.split_by_worker,
            wds.tarfile_to_samples(),
            wds.select(wanted.issubset),
            wds.shuffle(bufsize=FIRST if endless else SHUFFLED, initial=FIRST),
            wds.rename(x=member, **({"label": "cls"} if labels else {})),
            wds.map_dict(x=prepare, **({"label": int} if labels else {})),
            wds.to_tuple("x", *(["label"] if labels else [])),
            wds.batched(batch, partial=not endless),
        )
        self._loader: DataLoader[Any] = DataLoader(
            pipeline,
            batch_size=None,
            shuffle=False,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin,
            multiprocessing_context="fork" if workers else None,
        )

    def epoch(self) -> Iterator[Tensor]:
        """Yield the batches of one pass over the split."""
        for x, *_ in self._loader:
            yield x

    def labelled(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The same with the labels [B] int64."""
        for x, label in self._loader:
            yield x, torch.as_tensor(label)

    def close(self) -> None:
        """End the workers."""
        iterator: Any = self._loader._iterator
        if iterator is not None and self._loader.num_workers:
            iterator._shutdown_workers()


class CroppedPicture:
    """open_clip's training transform: see the module. With `flip` every other picture, by chance,
    is mirrored, as is usual for classification."""

    def __init__(self, size: int, scale: tuple[float, float], *, flip: bool = False) -> None:
        self.size, self.scale, self.flip = size, scale, flip
        self.mean = torch.tensor(MEAN)[:, None, None]
        self.std = torch.tensor(STD)[:, None, None]
        self._rng: np.random.Generator | None = None

    def __call__(self, data: bytes) -> Tensor:
        with Image.open(io.BytesIO(data)) as file:
            image = file.convert("RGB")
        if self._rng is None:  # in the worker
            self._rng = np.random.default_rng(torch.initial_seed())
        box = random_resized_crop_box(image.height, image.width, self.scale, RATIO, self._rng)
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        part = image.crop(corners).resize((self.size, self.size), Image.Resampling.BICUBIC)
        if self.flip and self._rng.random() < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        planes = torch.from_numpy(np.array(part, copy=True)).permute(2, 0, 1)
        scaled = planes.contiguous().to(torch.float32).div(255)
        return scaled.clone().sub_(self.mean).div_(self.std)


def plain_sound(samples: int) -> Prepare:
    """The mean of the channels, cut or filled to `samples`."""

    def prepare(data: bytes) -> Tensor:
        sound, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        wave = sound.mean(axis=1)[:samples]
        return torch.from_numpy(np.pad(wave, (0, samples - len(wave))))

    return prepare


def plain_film(frames: int, size: int) -> Prepare:
    """`frames` at even distances of all that are decoded, resized by PIL, normalised."""

    def prepare(data: bytes) -> Tensor:
        with av.open(io.BytesIO(data)) as file:
            film = [frame.to_image() for frame in file.decode(video=0)]
        kept: Sequence[int] = np.linspace(0, len(film) - 1, frames).round().astype(int).tolist()
        small = [film[n].resize((size, size), Image.Resampling.BILINEAR) for n in kept]
        pixels = torch.from_numpy(np.stack([np.array(picture) for picture in small]))
        return pixels.permute(0, 3, 1, 2).contiguous().float().div(255).sub(0.5).div(0.5)

    return prepare


def plain_array(data: bytes) -> Tensor:
    """What numpy loads."""
    return torch.from_numpy(np.load(io.BytesIO(data)))
