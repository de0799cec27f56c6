"""ImageNet from Parquet files in the form of the `datasets` library."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outmodal.data.build.imagenet import ImagenetConfig, build_imagenet, parquet_files
from outmodal.data.build.imagenet_parquet import ParquetShard, plan_parquet
from outmodal.data.build.imagenet_source import REPORT
from outmodal.data.check import check_dataset
from outmodal.errors import UserError
from tests.data.build.imagenets import NAMES, WNIDS, encoded, export, jpeg, picture
from tests.data.build.jobs import contents
from tests.data.build.sources import read_all


def rows(count: int, seed: int = 0, sort: bool = False) -> list[tuple[bytes, str, int]]:
    labels = [(n * 7 + seed) % 4 for n in range(count)]
    labels = sorted(labels) if sort else labels
    return [
        (jpeg(seed + n), f"{WNIDS[y]}_{seed + n}_{WNIDS[y]}.JPEG", y) for n, y in enumerate(labels)
    ]


def planned(source: Path, **options: Any) -> Any:
    return plan_parquet(ImagenetConfig(source=source, **options), parquet_files(source))


def test_an_export(tmp_path: Path) -> None:
    source = tmp_path / "hub"
    first, second = rows(10), rows(9, seed=100)
    broken = [(None, "n01440764_x_n01440764.JPEG", 0), (jpeg(3)[:200], "n01440764_y.JPEG", 0)]
    cmyk = [(encoded(picture(1, mode="CMYK")), "n01443537_z.JPEG", 1)]
    export(source / "data/train-00000-of-00002.parquet", first)
    export(source / "data/train-00001-of-00002.parquet", [*second, *broken, *cmyk])
    export(source / "data/validation-00000-of-00001.parquet", rows(4, seed=200))
    export(source / "data/test-00000-of-00001.parquet", [(jpeg(1), "t.JPEG", -1)])
    cfg = ImagenetConfig(source=source, samples_per_shard=8)
    dataset = build_imagenet(cfg, tmp_path / "out", workers=2)
    manifest = dataset.manifest
    assert manifest.classes == ("tench", "goldfish", "crane (n02012849)", "crane (n03126707)")
    assert manifest.wnids == WNIDS
    assert {split: info.samples for split, info in manifest.splits.items()} == {
        "train": 20,
        "val": 4,
    }
    train = read_all(dataset, "train")
    for data, name, label in (*first, *second):
        held = train[name.removesuffix(".JPEG")]
        assert (held["image.jpg"], held["cls"]) == (data, b"%d" % label)
    told = json.loads((dataset.root / REPORT).read_bytes())
    assert told["done"] == {"copied": 23, "from CMYK": 1}
    reasons = [one["reason"] for one in told["skipped"]]
    assert sorted(reasons)[0] == "empty file"
    assert "train-00001-of-00002.parquet, row 9 (n01440764_x" in str(told["skipped"])
    assert check_dataset(dataset).ok
    build_imagenet(cfg, tmp_path / "again", workers=1)
    assert contents(tmp_path / "again") == contents(dataset.root)


def test_a_sorted_export_is_mixed_and_a_mixed_one_is_read_once(tmp_path: Path) -> None:
    export(tmp_path / "sorted/train-0.parquet", rows(160, sort=True), group=40)
    export(tmp_path / "mixed/train-0.parquet", rows(160), group=40)
    found: Mapping[str, list[ParquetShard]] = {
        kind: [planned(tmp_path / kind).source.job("train", s, s + 40) for s in range(0, 160, 40)]
        for kind in ("sorted", "mixed")
    }
    for kind, shards in found.items():
        keys = [row.key for shard in shards for row in shard.rows]
        assert len(set(keys)) == 160
        for shard in shards:
            assert len({row.label for row in shard.rows}) > 1
            assert len(shard.reads) == (1 if kind == "mixed" else len(shard.reads))
    labels = np.array([row.label for row in found["mixed"][0].rows])
    assert not np.array_equal(labels, np.sort(labels))


def test_classes_without_names(tmp_path: Path) -> None:
    export(tmp_path / "a/train-0.parquet", rows(8), names=())
    assert planned(tmp_path / "a").classes == WNIDS
    plain = [(data, None, y) for data, _, y in rows(8)]
    export(tmp_path / "b/train-0.parquet", plain, names=())
    with pytest.raises(
        UserError, match=r"nothing names the classes .* one name a line with --names"
    ):
        planned(tmp_path / "b")
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthree\nfour\n")
    plan = planned(tmp_path / "b", names=names)
    assert (plan.classes, plan.wnids) == (("one", "two", "three", "four"), None)
    assert plan.source.job("train", 0, 1).rows[0].key.startswith("train_0000000")
    names.write_text(NAMES)
    assert planned(tmp_path / "b", names=names).wnids == WNIDS
    names.write_text("\n".join(reversed(NAMES.splitlines())))
    with pytest.raises(
        UserError, match=r"class 0 is n03126707, and pictures of label 0 are called n0144"
    ):
        planned(tmp_path / "a", names=names)


def test_exports_that_do_not_fit(tmp_path: Path) -> None:
    export(tmp_path / "a/train-0.parquet", [(jpeg(0), "x.JPEG", 7)])
    with pytest.raises(
        UserError, match=r"train-0.parquet: label 7 of 'x.JPEG' \(train\) is none of"
    ):
        planned(tmp_path / "a")
    with pytest.raises(UserError, match=r"no column 'picture' .*--image_column"):
        planned(tmp_path / "a", image_column="picture")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/train-0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"train-0\.parquet is not a readable Parquet file"):
        planned(tmp_path / "b")
    export(tmp_path / "c/part-0.parquet", rows(2))
    with pytest.raises(UserError, match=r"no file train\*.parquet among 1"):
        planned(tmp_path / "c")


def test_pyarrow_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(tmp_path / "train-0.parquet", rows(2))
    real = importlib.import_module

    def without(name: str, *args: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(UserError, match=r"pip install 'outmodal\[parquet\]'"):
        planned(tmp_path)
