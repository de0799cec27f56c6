"""Where weights come from: explicit paths, hub ids only with permission, helpful refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from outmodal.errors import UserError
from outmodal.models.perceptors import weights
from outmodal.models.perceptors.weights import Home, find_weights

HOME = Home("Thing", "thing.pth (1 GB)", "https://example.org/thing", "for play only", ("*.pth",))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[bool]:
    """Whether the network was allowed, at every look into the hub's cache; it holds group/kept."""
    calls: list[bool] = []

    def snapshot(name: str, *, local_files_only: bool, allow_patterns: list[str]) -> str:
        calls.append(not local_files_only)
        if name != "group/kept":
            raise LocalEntryNotFoundError("not here")
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "thing.pth").touch()
        return str(tmp_path / "cache")

    monkeypatch.setattr(weights, "snapshot_download", snapshot)
    return calls


def test_files_and_folders_are_found(tmp_path: Path, asked: list[bool]) -> None:
    for name in ("b.pth", "a.pth", "model.bin"):
        (tmp_path / name).touch()
    assert find_weights(str(tmp_path), HOME, False) == [tmp_path / "a.pth", tmp_path / "b.pth"]
    assert find_weights(str(tmp_path / "model.bin"), HOME, True) == [tmp_path / "model.bin"]
    assert asked == []


def test_an_id_that_was_fetched_before_needs_no_permission(
    tmp_path: Path, asked: list[bool]
) -> None:
    assert find_weights("group/kept", HOME, False) == [tmp_path / "cache" / "thing.pth"]
    assert asked == [False]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"allow_download": False}, "allow_download is false"),
        ({"allow_download": True}, r"could not be downloaded \(LocalEntryNotFoundError\)"),
    ],
)
def test_a_refusal_names_file_home_licence_and_folder(
    options: dict[str, Any], why: str, asked: list[bool], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=why) as caught:
        find_weights("group/absent", HOME, **options)
    assert str(caught.value).endswith(
        "Download thing.pth (1 GB) from https://example.org/thing (licence: for play only) into "
        f"the folder {tmp_path}/group/absent, or into any other and set the perceptor's path to it"
    )
    assert asked == [options["allow_download"]]


def test_a_path_that_is_no_id_never_asks_the_hub(tmp_path: Path, asked: list[bool]) -> None:
    with pytest.raises(UserError, match=rf"gone.pth does not exist.*the folder {tmp_path}/x, "):
        find_weights(str(tmp_path / "x" / "gone.pth"), HOME, True)
    with pytest.raises(UserError, match=rf"{tmp_path} has no file \*.pth"):
        find_weights(str(tmp_path), HOME, True)
    assert asked == []


def test_an_index_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    home = Home("Thing", "it", "there", "free", ("model*.safetensors",))
    with pytest.raises(UserError, match=r"index.json cannot be read: download it again"):
        find_weights(str(tmp_path), home, False)
