"""Reading released files: nothing is run, nothing held twice, damage is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from outmodal.errors import UserError
from outmodal.models.perceptors import checkpoint as module
from outmodal.models.perceptors.checkpoint import Checkpoint, compare, fill
from outmodal.models.reading import sha256_file
from tests.models import loading_memory

STATE = {f"layers.{i}.weight": torch.randn(64, 8) for i in range(6)}


def saved(folder: Path, name: str, state: object = STATE) -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        assert isinstance(state, dict)
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["a.pth", "a.bin", "a.safetensors"])
@pytest.mark.parametrize("part", [1, 2 * 64 * 8 * 4, 1 << 30])
def test_tensors_are_those_that_were_saved_however_many_are_read_at_once(
    name: str, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PART", part)
    checkpoint = Checkpoint([saved(tmp_path, name)])
    assert checkpoint.shapes == {name: t.shape for name, t in STATE.items()}
    for keep in (False, True):
        read = dict(checkpoint.read(STATE, keep))
        assert read.keys() == STATE.keys()
        assert all(torch.equal(read[name], STATE[name]) for name in STATE)
    assert [name for name, _ in checkpoint.read(["layers.3.weight"])] == ["layers.3.weight"]


def test_several_files_are_one_checkpoint(tmp_path: Path) -> None:
    names = list(STATE)
    first = saved(tmp_path, "1.safetensors", {n: STATE[n] for n in names[:2]})
    second = saved(tmp_path, "2.safetensors", {n: STATE[n] for n in names[2:]})
    checkpoint = Checkpoint([first, second])
    assert [name for name, _ in checkpoint.read(STATE)] == names
    assert checkpoint.label == f"{first} and 1 more"
    with pytest.raises(UserError, match=r"layers.0.weight is in .*1.safetensors and in .*3.saf"):
        Checkpoint([first, saved(tmp_path, "3.safetensors", {names[0]: STATE[names[0]]})])


def test_the_digest_begins_the_sha256_and_follows_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.safetensors")
    checkpoint = Checkpoint([path])
    assert checkpoint.digest == sha256_file(path)[:16]
    saved(tmp_path, "a.safetensors", {"other": torch.zeros(5)})
    assert checkpoint.digest == sha256_file(path)[:16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_filling_replaces_what_was_built_without_memory(dtype: torch.dtype, tmp_path: Path) -> None:
    with torch.device("meta"):
        linear = nn.Linear(3, 2)
    state = {"w": torch.randn(2, 3), "b": torch.randn(2)}
    checkpoint = Checkpoint([saved(tmp_path, "a.pth", state)])
    fill(linear, checkpoint, {"weight": "w", "bias": "b"}, dtype)
    assert linear.weight.dtype == dtype
    torch.testing.assert_close(linear.weight.data, state["w"].to(dtype))
    torch.testing.assert_close(linear.bias.data, state["b"].to(dtype))


def test_loading_in_bf16_needs_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    figures = loading_memory.measure(loading_memory.write(tmp_path, loading_memory.small(), ".pth"))
    assert figures["peak"] < 1.3 * figures["weights"]


# damage


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_files_are_named(name: str, share: float, tmp_path: Path) -> None:
    path = saved(tmp_path, name)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    message = rf"{name} cannot be read .*damaged or was not downloaded to its end \(\d+ bytes"
    with pytest.raises(UserError, match=message):
        Checkpoint([path])


class Harmful:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (exec, ("raise AssertionError('code was run')",))


def test_code_in_files_is_never_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="runs no code out of files"):
        Checkpoint([saved(tmp_path, "a.pth", {"weight": Harmful()})])


@pytest.mark.parametrize("content", [[STATE["layers.0.weight"]], {"epoch": 3}, torch.zeros(2)])
def test_files_with_other_contents_are_named(content: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no plain dictionary of tensors"):
        Checkpoint([saved(tmp_path, "a.pth", content)])


def test_files_of_other_formats_are_named(tmp_path: Path) -> None:
    old = tmp_path / "old.pth"
    torch.save(STATE, old, _use_new_zipfile_serialization=False)
    page = tmp_path / "page.safetensors"
    page.write_text("<html>Please log in</html>")
    for path in (old, page, tmp_path / "absent.pth"):
        with pytest.raises(UserError, match=f"{path.name} cannot be read"):
            Checkpoint([path])


# differences


def shapes(**sizes: tuple[int, ...]) -> dict[str, torch.Size]:
    return {name.replace("_", "."): torch.Size(size) for name, size in sizes.items()}


def test_equal_keys_and_shapes_pass() -> None:
    compare(shapes(a=(1,), b=(2, 3)), shapes(b=(2, 3), a=(1,)), "file", "tower")


def test_differences_are_drawn_together_by_layer() -> None:
    expected = shapes(blocks_0_w=(1,), blocks_1_w=(1,), blocks_11_w=(1,), head=(2,), same=(1,))
    found = shapes(head=(3,), same=(1,), extra_5=(4,))
    with pytest.raises(UserError) as caught:
        compare(found, expected, "FILE", "the tower")
    assert str(caught.value).splitlines() == [
        "FILE is not the checkpoint of the tower; its keys look like no perceptor that outmodal "
        "knows:",
        "  missing (3): blocks.*.w (3)",
        "  not expected (1): extra.5",
        "  of another shape (1): head is [3], expected [2]",
        "set path to the right file, or download it again",
    ]


def test_long_lists_are_cut_in_the_message_only(caplog: pytest.LogCaptureFixture) -> None:
    expected = {f"name{i:02d}": torch.Size([1]) for i in range(40)}
    with caplog.at_level("INFO"), pytest.raises(UserError, match="name11, and 28 more kinds"):
        compare({}, expected, "FILE", "the tower")
    assert "name39" in caplog.text


def test_a_tensor_of_whole_numbers_is_no_weight(tmp_path: Path) -> None:
    with torch.device("meta"):
        linear = nn.Linear(3, 2, bias=False)
    state: dict[str, Tensor] = {"weight": torch.zeros(2, 3, dtype=torch.int64)}
    with pytest.raises(UserError, match="weight is of type int64"):
        fill(
            linear,
            Checkpoint([saved(tmp_path, "a.pth", state)]),
            {"weight": "weight"},
            torch.float32,
        )
