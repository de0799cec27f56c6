"""Graphs beside an export: every learner family, for runtimes without outmodal."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from outmodal.data.manifest import Dataset
from outmodal.errors import UserError
from outmodal.models import graph, graph_onnx
from outmodal.models.export_folder import RECORD, load_export
from outmodal.models.graph import GRAPH_FILES, EncoderGraph, program_of
from outmodal.models.graph_torch import pickles
from outmodal.models.perceptors.exported import identity
from tests.data.tiny import make_tiny
from tests.models.encoders import LEARNERS, export

ROOT = str(Path(__file__).parents[2])
FAMILIES = ("vit", "resnet", "bit", "convnext", "wav2vec2", "bert_mean", "cnn1d", "mlp", "lstm")
BATCHES = (1, 3, 7)

LOAD_PROGRAMS = """
import json, sys
sys.modules["outmodal"] = sys.modules["transformers"] = None
import torch
worst = {}
for folder in sys.argv[1:]:
    asked = torch.load(folder + "/asked.pt", weights_only=True)
    program = torch.export.load(folder + "/model.pt2").module()
    found = [program(x) for x in asked["x"]]
    pairs = [(f, w) for f, wanted in zip(found, asked["wanted"]) for f, w in
             ((f["representation"], wanted["repr"]), (f["embedding"], wanted["embedding"]))]
    worst[folder] = max(float((f - w).abs().max()) for f, w in pairs)
print(json.dumps(worst))
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def folders(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An export of every family with both graphs."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("graphs")
    graphs: tuple[graph.GraphKind, ...] = ("onnx", "torch")
    return {name: export(name, dataset, root / name, "mlp", graphs=graphs) for name in FAMILIES}


def asked(folder: Path) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Batches of several sizes that the export has not seen, and what its modules give for them."""
    loaded = load_export(folder)
    stored = load_file(folder / "check.safetensors")["inputs"]
    generator = torch.Generator().manual_seed(7)
    batches = []
    for n in BATCHES:
        rows = torch.randint(len(stored), (n,), generator=generator)
        x = stored[rows]
        if x.is_floating_point():
            x = x + 0.5 * torch.randn(x.shape, generator=generator)
        batches.append(x)
    return batches, [loaded.outputs(x) for x in batches]


@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_runtime_gives_what_the_encoder_gives(name: str, folders: dict[str, Path]) -> None:
    session = onnxruntime.InferenceSession(str(folders[name] / "model.onnx"))
    assert [i.name for i in session.get_inputs()] == ["x"]
    assert session.get_inputs()[0].shape == ["batch", *LEARNERS[name].input.shape]
    assert [o.name for o in session.get_outputs()] == ["representation", "embedding"]
    for x, wanted in zip(*asked(folders[name]), strict=True):
        r, e = (torch.from_numpy(v) for v in session.run(None, {"x": x.numpy()}))
        assert float((r - wanted["repr"]).abs().max()) <= 1e-4
        assert float((e - wanted["embedding"]).abs().max()) <= 1e-4


def test_torch_alone_loads_the_programs(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        x, wanted = asked(folder)
        torch.save({"x": x, "wanted": wanted}, folder / "asked.pt")
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOAD_PROGRAMS, *map(str, folders.values())],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    worst = json.loads(done.stdout.splitlines()[-1])
    assert sorted(worst) == sorted(str(f) for f in folders.values())
    assert max(worst.values()) <= 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_graphs_tell_nothing_of_the_machine_and_hold_no_pickle(
    name: str, folders: dict[str, Path]
) -> None:
    assert pickles(folders[name] / "model.pt2") == []
    with zipfile.ZipFile(folders[name] / "model.pt2") as archive:
        for member in archive.namelist():
            data = archive.read(member)
            assert ROOT.encode() not in data, member
            assert not data.startswith((b"\x80\x02", b"\x80\x04", b"PK")), member
    assert ROOT.encode() not in (folders[name] / "model.onnx").read_bytes()


def test_graphs_are_in_the_record(folders: dict[str, Path]) -> None:
    record = json.loads((folders["mlp"] / RECORD).read_text())
    assert set(GRAPH_FILES.values()) <= set(record["files"])
    assert RECORD not in record["files"]
    file = folders["mlp"] / "model.onnx"
    good = file.read_bytes()
    try:
        file.write_bytes(good[:-1])
        with pytest.raises(UserError, match=r"model\.onnx is not the file that was exported"):
            load_export(folders["mlp"])
    finally:
        file.write_bytes(good)


@pytest.mark.parametrize("title", ["ONNX", "torch.export"])
def test_the_lines_in_the_card_run(
    title: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders["cnn1d"]
    section = (folder / "README.md").read_text().split(f"### {title}\n")[1]
    code = section.split("```python\n")[1].split("```")[0]
    check = load_file(folder / "check.safetensors")
    scope: dict[str, Any] = {"x": check["inputs"]}
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), scope)
    found = scope["e"] if title == "torch.export" else torch.from_numpy(scope["embedding"])
    assert float((found - check["embedding"]).abs().max()) <= 1e-4


def test_an_encoder_without_head_has_one_output(dataset: Dataset, tmp_path: Path) -> None:
    folder = export("mlp", dataset, tmp_path / "out", "none", graphs=("onnx", "torch"))
    plain = export("mlp", dataset, tmp_path / "plain", "none")
    # graphs are other forms of the same encoder
    assert identity(load_export(folder)) == identity(load_export(plain))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    assert [o.name for o in session.get_outputs()] == ["representation"]
    program = torch.export.load(folder / "model.pt2").module()
    assert list(program(torch.zeros(2, 16, 3))) == ["representation"]


def test_large_weights_lie_beside_the_graph(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_onnx, "INLINE_BYTES", 0)
    folder = export("mlp", dataset, tmp_path / "out", graphs=("onnx",))
    assert "model.onnx.data" in load_export(folder).info.files
    (tmp_path / "out").rename(tmp_path / "moved")
    onnxruntime.InferenceSession(str(tmp_path / "moved" / "model.onnx"))


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_graph_that_differs_is_refused_and_nothing_is_left(
    kind: graph.GraphKind, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = EncoderGraph.forward

    def shifted(self: EncoderGraph, x: Tensor) -> dict[str, Tensor]:
        return {name: value + 1e-2 for name, value in forward(self, x).items()}

    monkeypatch.setattr(EncoderGraph, "forward", shifted)
    with pytest.raises(RuntimeError, match=r"representation differs .* by 0\.01"):
        export("mlp", dataset, tmp_path / "out", graphs=(kind,))
    assert not list(tmp_path.iterdir())


def branching(self: EncoderGraph, x: Tensor) -> dict[str, Tensor]:
    return {"representation": x.flatten(1) if float(x.sum()) > 0 else -x.flatten(1)}


def fixed_batch(self: EncoderGraph, x: Tensor) -> dict[str, Tensor]:
    return {"representation": x.reshape(2, 48)}


@pytest.mark.parametrize("forward", [branching, fixed_batch])
def test_a_learner_that_cannot_be_traced_is_a_clear_error(
    forward: Callable[..., Any], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EncoderGraph, "forward", forward)
    with pytest.raises(UserError, match=r"the learner 'mlp' cannot be written as model\.pt2: "):
        export("mlp", dataset, tmp_path / "out", graphs=("torch",))
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_command(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "outmodal.models.graph_onnx.importlib.util.find_spec",
        lambda name: None if name == "onnxscript" else found(name),
    )
    with pytest.raises(UserError, match=r"not installed \(onnxscript\): pip install onnxscript"):
        export("mlp", dataset, tmp_path / "out", graphs=("onnx",))
    assert not list(tmp_path.iterdir())


def test_a_graph_that_the_runtime_cannot_read_is_a_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["representation"])
    value = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        [node],
        "g",
        [value("x", onnx.TensorProto.FLOAT, [None, 2])],
        [value("representation", onnx.TensorProto.FLOAT, [None, 2])],
    )
    onnx.save(onnx.helper.make_model(made), file)
    with pytest.raises(UserError, match=r"ONNX Runtime cannot run model\.onnx: "):
        graph_onnx.run_onnx(file, [torch.zeros(1, 2)], ("representation",))


def test_a_program_that_holds_pickles_is_noticed(tmp_path: Path) -> None:
    program = program_of(torch.nn.Linear(2, 2), torch.zeros(1, 2), "input")
    program.example_inputs = ((torch.zeros(2, 2),), {})
    torch.export.save(program, tmp_path / "model.pt2")
    assert pickles(tmp_path / "model.pt2") == ["model/data/sample_inputs/model.pt"]
