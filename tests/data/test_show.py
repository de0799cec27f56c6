"""The contact sheet."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from outmodal.data import show as show_module
from outmodal.data.encode import encode_mp4, encode_npy, encode_text, encode_wav
from outmodal.data.manifest import Dataset, Manifest, Modality, SplitInfo
from outmodal.data.shards import ShardWriter
from outmodal.data.show import show_dataset
from outmodal.errors import UserError
from tests.data.tiny import make_tiny


def opened(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


def test_sheet_grows_with_rows_and_modalities(tmp_path: Path) -> None:
    wide = make_tiny(tmp_path / "wide", missing={"speech": {0}})
    narrow = make_tiny(tmp_path / "narrow", modalities=("image",))
    big = opened(show_dataset(wide, "train", tmp_path / "new/folder/big.png", rows=3))
    small = opened(show_dataset(narrow, "test", tmp_path / "small.png", rows=2))
    assert big.format == "PNG"
    assert big.width == 5 * small.width
    assert big.height * 2 == small.height * 3


def test_rows_are_at_most_the_samples(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data", modalities=("pose",), test=2)
    one, all_of_them = (
        opened(show_dataset(dataset, "test", tmp_path / f"{rows}.png", rows)) for rows in (1, 50)
    )
    assert all_of_them.height == 2 * one.height


def odd_dataset(root: Path) -> Dataset:
    """Members that are hard to draw: corrupt, very short, many channels, TeX in the text."""
    root.mkdir()
    with ShardWriter(root / "train-000000.tar") as shard:
        shard.add(
            "$k$",
            {
                "image.npy": encode_npy(np.ones((4, 4, 6), np.uint16)),
                "film.mp4": encode_mp4(np.zeros((2, 16, 16, 3), np.uint8)),
                "speech.wav": encode_wav(np.ones(1), 8000),
                "text.txt": encode_text("costs $\\frac{ % # _"),
                "force.npy": b"corrupt $\\",
                "pose.npy": encode_npy(np.ones(1)),
                "cls": b"what",
            },
        )
    kinds = {"image": "npy", "film": "mp4", "speech": "wav", "text": "txt"}
    names = {"film": "video", "speech": "audio"}
    modalities = {
        **{
            m: Modality.model_validate({"kind": names.get(m, m), "ext": e})
            for m, e in kinds.items()
        },
        "force": Modality(kind="series", ext="npy"),
        "pose": Modality(kind="vector", ext="npy"),
    }
    split = SplitInfo(samples=1, shards=(shard.info,))
    return Dataset(
        root, Manifest(name="odd", classes=("a",), modalities=modalities, splits={"train": split})
    )


def test_odd_members_are_drawn_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    plain = show_module._text

    def noting(figure: object, value: str, spec: Modality) -> None:
        texts.append(value)
        plain(figure, value, spec)

    monkeypatch.setattr(show_module, "_text", noting)
    monkeypatch.setitem(show_module._DRAWERS, "text", noting)
    sheet = show_dataset(odd_dataset(tmp_path / "data"), "train", tmp_path / "sheet.png")
    assert opened(sheet).width > 0
    assert texts[0].startswith("costs")
    assert texts[1].startswith("corrupt: not a readable npy")


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Titles of the rows as they are drawn."""
    titles: list[str] = []
    plain = show_module._row_title

    def noting(*args: Any) -> str:
        titles.append(plain(*args))
        return titles[-1]

    monkeypatch.setattr(show_module, "_row_title", noting)
    return titles


def test_classes_take_turns_and_missing_members_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "cache"))
    dataset = make_tiny(
        tmp_path / "data", modalities=("pose", "text"), missing={"text": set(range(24))}
    )
    titles = drawn(monkeypatch)
    texts: list[str] = []
    monkeypatch.setattr(show_module, "_text", lambda _figure, value, _spec: texts.append(value))
    out = tmp_path / "a.png"
    show_dataset(dataset, "train", out, 5, classes=("blue", "red"))
    assert [title.split()[1] for title in titles].count("blue") == 3
    assert [title.split()[1] for title in titles].count("red") == 2
    assert texts == ["absent"] * 5
    with pytest.raises(UserError, match="no class 'blu'; did you mean 'blue'"):
        show_dataset(dataset, "train", out, classes=("blu",))
    few = make_tiny(tmp_path / "few", samples=2, shards=1, modalities=("pose",))
    with pytest.raises(UserError, match="no sample of class 'blue'"):
        show_dataset(few, "train", out, classes=("blue",))


def test_the_same_seed_gives_the_same_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_tiny(tmp_path / "data", modalities=("pose",))
    titles = drawn(monkeypatch)
    sheets = [
        show_dataset(dataset, "train", tmp_path / f"{n}.png", 3, seed=seed).read_bytes()
        for n, seed in enumerate((1, 1, 2, None, None))
    ]
    assert sheets[0] == sheets[1] != sheets[2]
    assert sheets[3] == sheets[4]
    assert titles[:3] == titles[3:6] != titles[6:9]
    assert [title.split()[0] for title in titles[9:12]] == [
        "train-00000", "train-00011", "train-00023",
    ]  # fmt: skip


def test_what_cannot_be_shown_is_named(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data", test=0)
    out = tmp_path / "sheet.png"
    with pytest.raises(UserError, match="no split 'valid'"):
        show_dataset(dataset, "valid", out)
    with pytest.raises(UserError, match="empty"):
        show_dataset(dataset, "test", out)
    with pytest.raises(UserError, match="rows must be at least 1"):
        show_dataset(dataset, "train", out, rows=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        show_dataset(dataset, "train", tmp_path / "file/sheet.png", rows=1)
    (dataset.root / "train-000000.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match=r"train-000000\.tar.*data check"):
        show_dataset(dataset, "train", out)
    assert not out.exists()
