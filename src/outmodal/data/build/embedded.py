"""Makes the archive of the data set that is shipped inside the package.

To make it again, from the root of the repository and with the Debian packages installed:

    python -c "from outmodal.data.build.embedded import *; make_sample_archive(SHIPPED)"
"""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
from pathlib import Path

from outmodal.data.build.common import Progress
from outmodal.data.build.fashion_speech import FashionSpeechConfig, build_fashion_speech
from outmodal.data.cache import write_atomic
from outmodal.data.embedded import ARCHIVE
from outmodal.data.manifest import EMBEDDED, MANIFEST, Dataset

SHIPPED = Path("src/outmodal/data/embedded_files") / ARCHIVE
"""Where the archive belongs, from the root of the repository."""

SAMPLE = FashionSpeechConfig(name=EMBEDDED, train=2000, test=500, samples_per_shard=125)
"""What is shipped: 16 shards of train and 4 of test."""


def make_sample_archive(
    out: Path,
    cfg: FashionSpeechConfig = SAMPLE,
    workers: int = 0,
    progress: Progress | None = None,
) -> None:
    """Build `cfg` and pack it into the file `out`; the same versions give the same bytes.

    Raises UserError if a Debian package is missing.
    """
    with tempfile.TemporaryDirectory(prefix="outmodal-sample-") as folder:
        dataset = build_fashion_speech(cfg, Path(folder) / "dataset", workers, progress)
        write_atomic(out, pack(dataset))


def pack(dataset: Dataset) -> bytes:
    """Return a data set as a gzipped tar: manifest, then shards, without times or owners."""
    shards = [shard.file for split in dataset.manifest.splits.values() for shard in split.shards]
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name in (MANIFEST, *shards):
            content = (dataset.root / name).read_bytes()
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()
