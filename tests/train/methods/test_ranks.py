"""Two ranks with half the batch each have the gradients of one rank with the whole batch."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.train.forked import ForkServer
from tests.train.methods.rank_worker import CONFIGS


@pytest.fixture(scope="module")
def results(
    server: ForkServer, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Tensor]]:
    folder, found = tmp_path_factory.mktemp("ranks"), []
    for ranks in (1, 2):
        out = folder / f"{ranks}.safetensors"
        job = {"call": "tests.train.methods.rank_worker:main", "out": str(out)}
        server.run(job, ranks, folder / "log")
        found.append(load_file(out))
    return found


@pytest.mark.parametrize("name", list(CONFIGS))
def test_ranks_agree_with_one_process(results: list[dict[str, Tensor]], name: str) -> None:
    alone, together = ({k: v for k, v in r.items() if k.startswith(f"{name}/")} for r in results)
    assert alone.keys() == together.keys()
    learns = name != "align_symile_absent"  # which knows whole samples only, and there are none
    assert any(v.any() for k, v in alone.items() if "/grad/" in k) == learns
    for key, value in alone.items():
        limit = 1e-5 * max(1.0, float(value.abs().max()))
        assert float((value - together[key]).abs().max()) <= limit, key
