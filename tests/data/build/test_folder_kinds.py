"""Kinds from extensions, and the manifest's details from what the files hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from outmodal.data.build.folder_kinds import Seen, describe, guess_modalities, merge_seen
from outmodal.data.build.folder_rows import Problems, Row
from outmodal.data.manifest import Kind, Modality
from outmodal.errors import UserError
from tests.data.build.sources import npy, png, wav, write


def guess(files: dict[str, Path], kinds: dict[str, Kind] | None = None) -> dict[str, Modality]:
    problems = Problems(Path("source"))
    rows = [Row("row 1", "1", "a", "", {name: path}) for name, path in files.items()]
    found = guess_modalities(rows, kinds or {}, problems)
    problems.check()
    return found


@pytest.mark.parametrize(
    ("file", "kind", "ext"),
    [
        ("a.png", "image", "png"),
        ("a.JPEG", "image", "jpg"),
        ("a.tiff", "image", "tif"),
        ("a.flac", "audio", "flac"),
        ("a.webm", "video", "webm"),
        ("a.txt", "text", "txt"),
    ],
)
def test_extensions_tell_kinds(file: str, kind: Kind, ext: str) -> None:
    assert guess({"x": Path(file)}) == {"x": Modality(kind=kind, ext=ext)}


def test_arrays_are_series_or_vectors_by_their_axes(tmp_path: Path) -> None:
    write(tmp_path, {"s.npy": npy(0, 9, 2), "v.npy": npy(0, 9), "i.npy": npy(0, 3, 3, 3)})
    found = guess({"s": tmp_path / "s.npy", "v": tmp_path / "v.npy"})
    assert {name: spec.kind for name, spec in found.items()} == {"s": "series", "v": "vector"}
    with pytest.raises(UserError, match=r"i.npy has 3 axes"):
        guess({"i": tmp_path / "i.npy"})
    with pytest.raises(UserError, match="is not a readable npy"):
        guess({"i": write(tmp_path, {"t.npy": "text"}) / "t.npy"})


def test_kinds_can_be_set(tmp_path: Path) -> None:
    assert guess({"x": Path("a.log")}, {"x": "text"})["x"] == Modality(kind="text", ext="log")
    with pytest.raises(UserError, match="kinds: no modality 'y'"):
        guess({"x": Path("a.png")}, {"y": "image"})


@pytest.mark.parametrize("file", ["a.xyz", "a", "a.p_g"])
def test_an_unknown_extension_points_to_kinds(file: str) -> None:
    with pytest.raises(UserError, match=r"cannot tell what a.* holds .*set `kinds` for 'x'"):
        guess({"x": Path(file)})


def test_a_reserved_name_is_refused() -> None:
    with pytest.raises(UserError, match="'json' cannot name a modality"):
        guess({"json": Path("a.json")}, {"json": "text"})


def test_files_of_several_types_are_refused() -> None:
    problems = Problems(Path("source"))
    rows = [
        Row("r", str(n), "a", "", {"x": Path(f"{n}.{e}")}) for n, e in enumerate(("png", "jpg"))
    ]
    guess_modalities(rows, {}, problems)
    assert "files of several types: .png (0.png), .jpg (1.jpg)" in problems.found[0]


def seen(spec: Modality, *members: bytes) -> Seen:
    """What two shards saw, after a way through their records."""
    parts = []
    for half in (members[:1], members[1:]):
        part = Seen()
        for number, data in enumerate(half):
            part.look(spec, data, f"file {number}")
        parts.append({"x": part.to_json()})
    return merge_seen(parts)["x"]


IMAGE = Modality(kind="image", ext="png")
AUDIO = Modality(kind="audio", ext="wav")
SERIES = Modality(kind="series", ext="npy")
VECTOR = Modality(kind="vector", ext="npy")


@pytest.mark.parametrize(
    ("spec", "members", "details"),
    [
        (IMAGE, [png(0), png(1)], {"size": (6, 5), "channels": 1}),
        (IMAGE, [png(0), png(1, (6, 5, 3))], {"size": (6, 5), "channels": 3}),
        (IMAGE, [png(0, (6, 5, 3)), png(1, (7, 5, 3))], {"channels": 3}),
        (AUDIO, [wav(0), wav(1, 16000), wav(2, 16000)], {"sample_rate": 16000}),
        (AUDIO, [wav(0), wav(1, 16000)], {"sample_rate": 16000}),
        (SERIES, [npy(0, 9, 2), npy(1, 9, 2)], {"shape": (9, 2)}),
        (SERIES, [npy(0, 9, 2), npy(1, 4, 2)], {"shape": (-1, 2)}),
        (SERIES, [npy(0, 9), npy(1, 9)], {"shape": (9, 1)}),
        (VECTOR, [npy(0, 7), npy(1, 7)], {"shape": (7,)}),
        (Modality(kind="text", ext="txt"), [b"one", b"two"], {}),
        (IMAGE, [b"broken"], {}),
    ],
)
def test_what_members_share_is_described(
    spec: Modality, members: list[bytes], details: dict[str, object]
) -> None:
    described = describe({"x": spec}, {"x": seen(spec, *members)})["x"]
    assert described.model_dump(exclude_none=True) == {
        "kind": spec.kind,
        "ext": spec.ext,
        **details,
    }


@pytest.mark.parametrize(
    ("spec", "members"),
    [(SERIES, [npy(0, 9, 2), npy(1, 9, 3)]), (VECTOR, [npy(0, 7), npy(1, 7), npy(2, 8)])],
)
def test_arrays_that_differ_in_width_are_refused(spec: Modality, members: list[bytes]) -> None:
    with pytest.raises(UserError, match="all must have the same number"):
        describe({"x": spec}, {"x": seen(spec, *members)})


def test_a_modality_that_no_shard_holds_is_as_guessed() -> None:
    assert describe({"x": IMAGE}, {}) == {"x": IMAGE}
