"""Whether the shards that a manifest lists are there, with the bytes that it says."""

from __future__ import annotations

from outmodal.data.manifest import MANIFEST, Dataset, ShardInfo
from outmodal.data.store import Store
from outmodal.errors import UserError


def verify_sizes(dataset: Dataset) -> None:
    """Look for every shard of a folder; UserError for the first that is missing or differs."""
    for split in dataset.manifest.splits.values():
        for shard in split.shards:
            path = dataset.shard_path(shard)
            try:
                found = path.stat().st_size
            except FileNotFoundError:
                raise UserError(
                    f"{path} is missing, but {MANIFEST} lists it; restore the shard, "
                    f"or make the manifest again with `outmodal data index {dataset.root}`"
                ) from None
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}") from None
            if found != shard.bytes:
                raise UserError(
                    f"{path} has {found} bytes, but {MANIFEST} says {shard.bytes}: the shard is "
                    "cut short or was replaced; restore it, or make the manifest again with "
                    f"`outmodal data index {dataset.root}`"
                )


def verify_first(dataset: Dataset) -> None:
    """Ask for the first shard of each split of a data set at an address; UserError as above."""
    for split in dataset.manifest.splits.values():
        for shard in split.shards[:1]:
            _verify_remote(dataset.store, shard)


def _verify_remote(store: Store, shard: ShardInfo) -> None:
    url = f"{store.where}/{shard.file}"
    try:
        found = store.size(shard.file)
    except OSError as error:
        raise UserError(
            f"{url}: {error.strerror or error}, but {MANIFEST} lists it; copy the shard there"
        ) from None
    if found != shard.bytes:
        raise UserError(
            f"{url} has {found} bytes, but {MANIFEST} says {shard.bytes}: the shard is cut short "
            "or was replaced; copy it there again, with its manifest"
        )
