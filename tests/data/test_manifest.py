"""The manifest: what is refused, what it is called, and that its bytes do not change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from outmodal.data.manifest import (
    Manifest,
    Modality,
    ShardInfo,
    SplitInfo,
    open_dataset,
    read_manifest,
    write_manifest,
)
from outmodal.errors import UserError
from tests.data.tiny import make_tiny


def edit(root: Path, change: Any) -> None:
    """Apply `change` to the manifest's JSON."""
    file = root / "dataset.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_reading_gives_what_was_written(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path)
    before = (tmp_path / "dataset.json").read_bytes()
    write_manifest(tmp_path, read_manifest(tmp_path))
    assert (tmp_path / "dataset.json").read_bytes() == before
    assert read_manifest(tmp_path) == dataset.manifest


def test_absent_fields_are_left_out(tmp_path: Path) -> None:
    make_tiny(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    assert content["modalities"]["text"] == {"kind": "text", "ext": "txt"}
    assert content["format"] == 1


def test_fingerprint_follows_the_content_alone(tmp_path: Path) -> None:
    first = make_tiny(tmp_path / "a", samples=6, test=4)
    same = make_tiny(tmp_path / "b", samples=6, test=4)
    other = make_tiny(tmp_path / "c", samples=6, test=4, seed=1)
    assert first.fingerprint() == same.fingerprint() != other.fingerprint()


def test_lookups_name_the_nearest(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path)
    assert dataset.modality("pose").shape == (7,)
    assert dataset.split("train").samples == 24
    with pytest.raises(UserError, match="no split 'trian'; did you mean 'train'"):
        dataset.split("trian")
    with pytest.raises(UserError, match="no modality 'imgae'; did you mean 'image'"):
        dataset.modality("imgae")


def test_empty_split_is_refused_when_it_is_used(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path, test=0)
    with pytest.raises(UserError, match=r"split 'test' is empty.*train"):
        dataset.split("test")


def test_missing_folder_and_missing_manifest_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.*data build"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no dataset\.json.*data index"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"x"', "\x00", "[" * 100_000])
def test_broken_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.json"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("found", [2, "1", None, True, 1.5])
def test_another_format_number_is_refused(tmp_path: Path, found: object) -> None:
    make_tiny(tmp_path)
    edit(tmp_path, lambda content: content.update(format=found))
    with pytest.raises(UserError, match=r"format: expected 1.*update outmodal"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(clases=[]), "clases: unknown key; did you mean 'classes'"),
        (lambda c: c.pop("classes"), "classes: missing"),
        (lambda c: c["modalities"]["image"].update(kind="imag"), "modalities.image.kind.*'imag'"),
        (lambda c: c["modalities"]["image"].update(chanels=1), "did you mean 'channels'"),
        (lambda c: c["modalities"].update({"Im.g": {"kind": "text", "ext": "txt"}}), "Im.g"),
        (lambda c: c["modalities"].update({"cls": {"kind": "text", "ext": "txt"}}), "'cls'"),
        (lambda c: c["splits"]["train"].update(samples=5), "samples is 5.*shards hold 24"),
        (lambda c: c["splits"]["train"]["shards"][0].update(file="../x.tar"), "plain name"),
        (lambda c: c["splits"]["train"]["shards"][0].update(file="/x.tar"), "plain name"),
        (lambda c: c["splits"].update(more=c["splits"]["train"]), "listed in 'train' and"),
        (lambda c: c["classes"].append("red"), "class 'red' is named twice"),
        (lambda c: c["modalities"]["pose"].update(shape=[0]), "at least 1"),
    ],
)
def test_every_wrong_entry_is_named(tmp_path: Path, change: Any, message: str) -> None:
    make_tiny(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path)


def test_all_errors_come_at_once(tmp_path: Path) -> None:
    make_tiny(tmp_path)
    edit(tmp_path, lambda c: (c.pop("name"), c["modalities"]["pose"].update(kind="pose")))
    with pytest.raises(UserError, match=r"name: missing.*|modalities\.pose\.kind") as caught:
        open_dataset(tmp_path)
    assert "name: missing" in str(caught.value)
    assert "modalities.pose.kind" in str(caught.value)


def test_missing_and_resized_shards_are_named_on_opening(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path)
    shard = tmp_path / "train-000001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-512])
    with pytest.raises(UserError, match=r"train-000001\.tar has .* says"):
        open_dataset(tmp_path)
    shard.unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar is missing"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, verify=False).manifest == dataset.manifest


def test_manifest_of_another_data_set_is_noticed(tmp_path: Path) -> None:
    make_tiny(tmp_path / "a", samples=24)
    make_tiny(tmp_path / "b", samples=30)
    (tmp_path / "a/dataset.json").write_bytes((tmp_path / "b/dataset.json").read_bytes())
    with pytest.raises(UserError, match=r"train-000000\.tar has"):
        open_dataset(tmp_path / "a")


def test_specs_are_frozen_and_strict() -> None:
    shard = ShardInfo(file="a.tar", samples=1, bytes=10240, sha256="0" * 64)
    manifest = Manifest(
        name="x",
        classes=(),
        modalities={"m": Modality(kind="series", ext="npy", shape=(-1, 6))},
        splits={"train": SplitInfo(samples=1, shards=(shard,))},
    )
    with pytest.raises(ValueError, match="frozen"):
        manifest.name = "y"  # type: ignore[misc]
    with pytest.raises(ValueError, match="64"):
        ShardInfo(file="a.tar", samples=1, bytes=1, sha256="abc")
