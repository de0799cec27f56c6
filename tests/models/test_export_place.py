"""A killed export: what lies at the folder is the old export or the new one, whole."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from outmodal.data.manifest import Dataset
from outmodal.errors import UserError
from outmodal.models import export as export_module
from outmodal.models import export_place
from outmodal.models.export_folder import load_export
from outmodal.models.export_place import clear_leftovers
from tests.data.tiny import make_tiny
from tests.models.encoders import export


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def die(*args: object, **kwargs: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, and then death."""

    def wrapped(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)
        die()

    return wrapped


def in_a_child(work: Callable[[], object]) -> int:
    """Run in a forked process; returns the signal that ended it, 0 if none did."""
    child = os.fork()
    if child == 0:
        signal.alarm(250)
        torch.set_num_threads(1)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def weights(folder: Path) -> bytes:
    load_export(folder)  # raises unless every file is there and unchanged
    return (folder / "model.safetensors").read_bytes()


def hidden(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


POINTS: list[tuple[Any, str, Callable[[Any], Any], bool]] = [
    (export_module, "_save_tensors", lambda f: die, False),
    (export_module, "_save_tensors", after, False),
    (export_module, "render_card", lambda f: die, False),
    (export_module, "publish", lambda f: die, False),
    (export_place, "sync_folder", after, False),
    (export_place, "_exchanged", lambda f: die, False),
    (export_place, "_exchanged", after, True),
    (export_module, "publish", after, True),
]


@pytest.mark.parametrize(("module", "name", "death", "replaced"), POINTS)
def test_a_killed_export_leaves_the_old_one_or_the_new_one(
    module: Any,
    name: str,
    death: Callable[[Any], Any],
    replaced: bool,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = weights(export("mlp", dataset, tmp_path / "out", "none"))
    with monkeypatch.context() as patch:
        patch.setattr(module, name, death(getattr(module, name)))
        again = dict(head="none", seed=1, force=True)
        code = in_a_child(lambda: export("mlp", dataset, tmp_path / "out", **again))  # type: ignore[arg-type]
    assert code == -signal.SIGKILL
    assert (weights(tmp_path / "out") != old) == replaced
    assert len(hidden(tmp_path)) == 1
    with pytest.raises(UserError, match="out exists"):
        export("mlp", dataset, tmp_path / "out", "none")
    assert hidden(tmp_path) == []
    export("mlp", dataset, tmp_path / "out", "none", seed=2, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_killed_first_export_leaves_nothing_at_its_place(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(export_module, "render_card", die)
        assert in_a_child(lambda: export("mlp", dataset, tmp_path / "out")) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    export("mlp", dataset, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_without_a_swap_the_old_export_comes_back(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems that cannot swap folders leave a moment without one."""
    monkeypatch.setattr(export_place, "_exchanged", lambda one, two: False)
    old = weights(export("mlp", dataset, tmp_path / "out", "none"))
    new = weights(export("mlp", dataset, tmp_path / "out", "none", seed=1, force=True))
    assert new != old
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with monkeypatch.context() as patch:
        patch.setattr("outmodal.models.export_place.os.rename", after(os.rename))
        again = dict(head="none", seed=2, force=True)
        code = in_a_child(lambda: export("mlp", dataset, tmp_path / "out", **again))  # type: ignore[arg-type]
    assert code == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    clear_leftovers(tmp_path / "out")
    assert weights(tmp_path / "out") == new
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_folders_of_exports_that_still_run_are_left_alone(tmp_path: Path) -> None:
    host = socket.gethostname()
    running = tmp_path / f".out.{host}-{os.getpid()}.partial"
    elsewhere = tmp_path / f".out.{host}x-1.partial"
    other = tmp_path / f".outer.{host}-999999999.partial"
    for folder in (running, elsewhere, other):
        folder.mkdir()
    clear_leftovers(tmp_path / "out")
    assert all(folder.exists() for folder in (running, elsewhere, other))
