"""Comparators with queues, running means, views and mixing: two ranks do what one does."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.train.forked import ForkServer
from tests.train.methods.viewed_worker import ABSENT, CONFIGS

Results = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def results(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("viewed")
    for ranks in (1, 2):
        job = {"call": "tests.train.methods.viewed_worker:main", "out": str(folder / f"{ranks}")}
        server.run(job, ranks, folder / "log")
    return {name: load_file(folder / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1")}


def of(results: Results, run: str, name: str, part: str = "") -> dict[str, Tensor]:
    return {k: v for k, v in results[run].items() if k.startswith(f"{name}/{part}")}


@pytest.mark.parametrize("name", [*CONFIGS, *ABSENT])
def test_two_ranks_have_the_losses_and_gradients_of_one(results: Results, name: str) -> None:
    alone, together = of(results, "1-0", name), of(results, "2-0", name)
    assert alone.keys() == together.keys()
    learns = name not in ABSENT
    assert any(v.any() for k, v in alone.items() if "/grad/" in k) == learns
    for key, value in alone.items():
        assert torch.allclose(value, together[key], atol=1e-5, rtol=1e-4), key


@pytest.mark.parametrize("name", ["moco", "moco_unsup", "moco_cox", "freematch", "mixtext"])
def test_queues_and_running_means_are_equal_on_all_ranks(results: Results, name: str) -> None:
    first, second = of(results, "2-0", name, "state"), of(results, "2-1", name, "state")
    assert first
    assert all(torch.equal(t, second[key]) for key, t in first.items())


def test_the_queue_is_full_and_its_keys_are_unit_vectors(results: Results) -> None:
    keys = results["2-1"]["moco/state/queue/key"]
    assert keys.shape == (40, 8)
    assert torch.allclose(keys.norm(dim=1), torch.ones(40), atol=1e-5)
