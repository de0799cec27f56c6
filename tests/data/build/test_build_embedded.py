"""The archive of the shipped data set is made the same way every time."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

from outmodal.data.build.embedded import SAMPLE, SHIPPED, make_sample_archive, pack
from outmodal.data.manifest import EMBEDDED, parse_manifest
from tests.data.tiny import make_tiny

ROOT = Path(__file__).parents[3]


def test_the_same_settings_give_the_same_archive(tmp_path: Path) -> None:
    cfg = SAMPLE.model_copy(update={"train": 6, "test": 3, "samples_per_shard": 3})
    for workers in (1, 2):
        make_sample_archive(tmp_path / f"{workers}.tar.gz", cfg, workers)
    archive = (tmp_path / "1.tar.gz").read_bytes()
    assert archive == (tmp_path / "2.tar.gz").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        names = tar.getnames()
        manifest = tar.extractfile(names[0])
        assert manifest is not None
        assert parse_manifest(json.load(manifest), "archive").name == EMBEDDED
    assert names == ["dataset.json", "train-000000.tar", "train-000001.tar", "test-000000.tar"]


def test_an_archive_holds_no_times_or_owners(tmp_path: Path) -> None:
    archive = pack(make_tiny(tmp_path))
    assert archive[4:8] == bytes(4)  # gzip's time
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archive))) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}


def test_the_archive_is_where_the_package_looks_for_it() -> None:
    assert (ROOT / SHIPPED).is_file()
