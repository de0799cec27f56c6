"""Reductions over real gloo processes equal those of one process on the joined rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from outmodal.errors import UserError
from outmodal.train import gather
from tests.train.forked import ForkServer

ROWS = 12  # of all ranks together: 12, 6 or 4 a rank


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(ROWS, 4, generator=generator)
    w = torch.randn(4, 3, generator=generator)
    return x, w, torch.arange(ROWS) % 3 == 0


def contrast(x: Tensor, w: Tensor) -> Tensor:
    """Mean over this rank's rows of a loss against all ranks' rows."""
    e = x @ w
    everyone = gather.gather_with_grad(e)
    target = gather.row_offset(len(e)) + torch.arange(len(e))
    return torch.nn.functional.cross_entropy(e @ everyone.T, target)


def own(t: Tensor, world: gather.World) -> Tensor:
    return t.chunk(world.size)[world.rank]


def measure(job: Mapping[str, Any]) -> None:
    """Runs on each rank: write what the main process sees as JSON."""
    world = gather.open_world("cpu", 5.0)
    x, w, mask = inputs()
    mine = own(x, world)
    found: dict[str, Any] = {}
    masks = {"masked": own(mask, world), "all": None, "none": torch.zeros(len(mine)).bool()}
    for name in ("contrast", *masks):
        v = w.clone().requires_grad_()
        if name == "contrast":
            value = contrast(mine, v)
        else:
            value = gather.masked_mean((mine @ v).square().sum(1), masks[name])
        value.backward()
        assert v.grad is not None
        found[name] = gather.all_gather_flat(v.grad).mean(0).tolist()
        found[f"{name}/value"] = gather.mean_over_ranks([float(value)])[0]
    found["rows"] = gather.all_gather_rows(mine[: 1 + world.rank]).tolist()
    found["bools"] = gather.all_gather_rows(own(mask, world)).tolist()
    found["mean"] = float(gather.global_mean(mine[:, 0], own(mask, world)))
    found["noise"] = gather.all_gather_rows(gather.seeded_normal(len(mine), 3, 5, 7)).tolist()
    found["agree"] = [gather.agree(False), gather.agree(world.rank == world.size - 1)]
    found["max"] = gather.max_over_ranks([world.rank, -world.rank])
    found["object"] = gather.broadcast_object({"from": world.rank, "text": "ü" * 999})
    sent = torch.full((3,), float(world.rank + 1))
    gather.broadcast_tensors([sent])
    found["sent"] = sent.tolist()
    if gather.is_main():
        Path(job["out"]).write_text(json.dumps(found))


@pytest.fixture(scope="module")
def expected(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measured(server, tmp_path_factory.mktemp("one"), 1)


def measured(server: ForkServer, folder: Path, ranks: int) -> dict[str, Any]:
    job = {"call": "tests.train.test_gather:measure", "out": str(folder / "found.json")}
    server.run(job, ranks, folder / "log")
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_equal_one_process(
    server: ForkServer, tmp_path: Path, expected: dict[str, Any], ranks: int
) -> None:
    found = measured(server, tmp_path, ranks)
    for name in ("contrast", "masked", "all", "none", "noise"):
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(expected[name]))
    for name in ("contrast/value", "masked/value", "all/value", "mean"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    assert found["noise"] == expected["noise"]
    assert found["bools"] == expected["bools"]
    assert len(found["rows"]) == sum(range(1, ranks + 1))
    assert found["agree"] == [False, True]
    assert found["max"] == [ranks - 1, 0]
    assert found["object"] == {"from": 0, "text": "ü" * 999}
    assert found["sent"] == [1.0] * 3


def test_gradients_are_those_of_plain_torch(expected: dict[str, Any]) -> None:
    x, w, mask = inputs()
    w.requires_grad_()
    (x @ w)[mask].square().sum(1).mean().backward()
    torch.testing.assert_close(torch.tensor(expected["masked"]), w.grad)
    assert expected["none/value"] == 0.0
    assert torch.tensor(expected["none"]).abs().sum() == 0.0


class Unasked(TorchDispatchMode):
    """Refuses what makes a host wait for its device: numbers of it, and picks by a mask."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = str(func)
        refused = ("aten._local_scalar_dense", "aten.nonzero", "aten.index.")
        assert not asked.startswith(refused), asked
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [0, 1, 3, ROWS])
def test_means_ask_the_device_for_nothing_and_differentiate_as_picked_rows(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    values, mask = torch.rand(ROWS, generator=generator), torch.arange(ROWS) < rows
    values[~mask] = torch.nan  # what is left out has no say
    picked, blanked = values.clone().requires_grad_(), values.clone().requires_grad_()
    expected = picked[mask].sum() * (1 / max(1, rows))
    expected.backward()
    with Unasked():
        value, seen = gather.masked_mean(blanked, mask), gather.global_mean(blanked, mask)
        value.backward()
    assert picked.grad is not None
    assert blanked.grad is not None
    assert torch.equal(blanked.grad, picked.grad)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(seen) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_noise_differs_between_seeds_only() -> None:
    draws = [gather.seeded_normal(4, 3, *words) for words in ((1, 2), (1, 2), (2, 1), (12,))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


def test_half_an_environment_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="RANK"):
        gather.open_world("cpu")


def test_a_missing_gpu_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"engine\.device"):
        gather.open_world("cuda")
