"""`outmodal embed`: perceptors by name, and the same bytes from however many processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from outmodal.data.manifest import open_dataset
from outmodal.errors import UserError
from outmodal.launch.cli import main
from outmodal.launch.local import held_port
from outmodal.launch.perceptor_names import perceptor_config, perceptor_configs
from tests.data.tiny import make_tiny
from tests.models.encoders import export
from tests.models.hub_models import clip

pytestmark = pytest.mark.timeout(900)  # processes that import everything

COMMAND = (sys.executable, "-m", "outmodal")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")


def bytes_of(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in root.iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, an export, a CLIP, and features by one process."""
    folder = tmp_path_factory.mktemp("embed")
    dataset = make_tiny(folder / "data", 66, 11, ("image", "text", "force"), test=9)
    export("vit", dataset, folder / "encoder")
    clip(folder / "clip")
    assert main([*arguments(folder), "--out", str(folder / "one")]) == 0
    return folder


def arguments(place: Path) -> list[str]:
    return [
        *("embed", str(place / "data"), "--keep", "force", "--batch", "4", "--device", "cpu"),
        *("--perceptor", str(place / "encoder"), f"text={place / 'clip'}"),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("launcher", [COMMAND, TORCHRUN], ids=["nproc", "torchrun"])
def test_two_processes_give_the_bytes_of_one(
    place: Path, tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    where = ("--nproc", "2") if launcher == COMMAND else ()
    with held_port() as port:
        start = launcher if where else (*TORCHRUN, "--master-port", str(port), "-m", "outmodal")
        command = [*start, *arguments(place), "--out", str(tmp_path / "two"), *where, "--json"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, check=False, env=environment()
        )
    assert done.returncode == 0, done.stderr
    assert bytes_of(tmp_path / "two") == bytes_of(place / "one")
    spec = open_dataset(place / "one").modality("image")
    assert f"image: 6 numbers by {spec.perceptor}" in done.stderr
    if where:
        answer = json.loads(done.stdout)
        assert answer["dataset"] == str(tmp_path / "two")
        assert answer["modalities"]["image"]["perceptor"] == spec.perceptor


HOLD = """
import os, time
replace = os.replace
def held(source, target, **more):
    if os.path.basename(target) == "train-000005.tar.json":
        time.sleep(600)
    replace(source, target, **more)
os.replace = held
"""


def test_killed_processes_are_resumed_to_the_same_bytes(place: Path, tmp_path: Path) -> None:
    """When some shards are done, and one of them writes a record."""
    out = tmp_path / "out"
    command = [*COMMAND, *arguments(place), "--out", str(out), "--nproc", "2"]
    (tmp_path / "sitecustomize.py").write_text(HOLD, "utf-8")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    started = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**environment(), "PYTHONPATH": paths},
    )
    while not list(out.glob(".embed/.train-000005.tar.json.*")):
        assert started.poll() is None, started.communicate()[1].decode()
        time.sleep(0.01)
    os.killpg(started.pid, signal.SIGKILL)
    started.communicate()
    assert not (out / "dataset.json").exists()
    assert main([*arguments(place), "--out", str(out)]) == 0
    assert bytes_of(out) == bytes_of(place / "one")
    assert [p.name for p in (out / ".embed").iterdir()] == ["request.json"]


def test_a_broken_shard_ends_all_processes_with_its_name(place: Path, tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data", 12, 3, ("image", "text", "force"), test=2)
    info = dataset.split("train").shards[1]
    path = dataset.shard_path(info)
    path.write_bytes(path.read_bytes()[:3000] + b"\xff" * (info.bytes - 3000))
    args = ["embed", str(dataset.root), "--perceptor", f"text={place / 'clip'}", "--nproc", "2"]
    done = subprocess.run(
        [*COMMAND, *args, "--device", "cpu", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=environment(),
    )
    assert done.returncode == 2, done.stderr
    assert info.file in done.stderr


def test_one_perceptor_encodes_the_modalities_that_are_named(place: Path, tmp_path: Path) -> None:
    args = ["embed", str(place / "data"), "--perceptor", f"hub:{place / 'clip'}"]
    args += ["--modalities", "image,text", "--keep", "force", "--out", str(tmp_path / "out")]
    assert main([*args, "--dtype", "float16", "--device", "cpu"]) == 0
    made = open_dataset(tmp_path / "out").manifest.modalities
    assert [(n, s.kind) for n, s in made.items()] == [
        ("image", "vector"),
        ("text", "vector"),
        ("force", "series"),
    ]


def test_every_family_has_its_name(place: Path) -> None:
    named = {
        "imagebind:w.pth": {"name": "imagebind", "modality": "m", "path": "w.pth"},
        "speech=imagebind:w.pth": {"name": "imagebind", "modality": "speech", "path": "w.pth"},
        "imagebind/depth:w.pth": {"name": "imagebind", "tower": "depth", "path": "w.pth"},
        "languagebind:some/where": {"name": "languagebind", "path": "some/where"},
        "image=openai/clip": {"name": "hub", "modality": "image", "path": "openai/clip"},
        "hub:openai/clip": {"name": "hub", "modality": "m", "path": "openai/clip"},
        str(place / "encoder"): {"name": "exported", "path": str(place / "encoder")},
    }
    for text, fields in named.items():
        made = perceptor_config(text, "m", allow_download=True).model_dump()
        assert {key: made[key] for key in fields} == fields
        assert made.get("allow_download", True) is True
    assert perceptor_config("folder").model_dump()["name"] == "exported"


@pytest.mark.parametrize(
    ("texts", "modalities", "message"),
    [
        ((), (), "--perceptor is missing"),
        (("imagebind:w",), (), "does not say what it encodes"),
        (("a=imagebind/dept:w",), (), "a=imagebind/dept:w: tower: Input should be 'auto'"),
        (("a=hub/dept:w",), (), "only imagebind has towers"),
        (("a=x",), ("b",), "for a, which --modalities does not name"),
        (("a=x",), ("a", "b"), "no --perceptor for b"),
        (("x", "y"), ("a", "b", "c"), "write MODALITY= before each"),
        (("a=x", "y"), ("a",), "none left"),
    ],
)
def test_names_that_do_not_fit_are_explained(
    texts: tuple[str, ...], modalities: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        perceptor_configs(texts, modalities)


def test_perceptors_and_modalities_are_paired_in_order() -> None:
    made = perceptor_configs(("imagebind:w", "c=x"), ("a", "b", "c"))
    assert [m.reads() for m in made] == ["c", "a", "b"]
    made = perceptor_configs(("hub:x", "hub:y"), ("a", "b"))
    assert [(m.reads(), m.model_dump()["path"]) for m in made] == [("a", "x"), ("b", "y")]
