"""Ranks that exchange columns equal one process on the concatenated rows, gathered or in a ring."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from outmodal.models.kernels.exchange import LOCAL, Exchange
from outmodal.models.kernels.nce import nce
from outmodal.models.kernels.ova import ova
from outmodal.train import gather
from tests.train.forked import ForkServer
from tests.train.held import Held

DIM = 6
COUNTS = {2: [7, 4], 3: [7, 0, 4]}  # rows of each rank; 11 in all
KINDS = ("gather", "ring", "auto")
CASES: dict[str, dict[str, Any]] = {
    "nce": {},
    "nce/masked": {"masked": True, "weighted": True},
    "nce/rows": {"both": False, "smoothing": 0.1},
    "nce/saturated": {"scale": 95.0},
    "nce/sigmoid": {"form": "sigmoid", "bias": -2.0},
    "nce/empty": {"empty": True},
    "ova": {},
    "ova/both": {"both": True, "masked": True},
}


def units(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(shape[0])
    x = torch.randn(*shape, generator=generator)
    return x / x.norm(dim=-1, keepdim=True)


def alone_on(rank_rows: Sequence[slice]) -> Tensor:
    """A mask [11] that leaves the second rank without a present row."""
    mask = torch.arange(sum(COUNTS[2])) % 4 != 1
    mask[rank_rows[1]] = False
    return mask


def slices(counts: Sequence[int]) -> list[slice]:
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return [slice(end - n, end) for end, n in zip(ends, counts, strict=True)]


def results(name: str, rows: slice, exchange: Exchange, mask: Tensor) -> dict[str, Tensor]:
    """Loss and gradients of one case on some rows of the global batch."""
    options = dict(CASES[name])
    x = units(sum(COUNTS[2]), 3, DIM)[rows]
    masked, weighted = options.pop("masked", False), options.pop("weighted", False)
    if options.pop("empty", False):
        masked, mask = True, torch.zeros_like(mask)
    scale = torch.tensor([options.pop("scale", 7.0)], requires_grad=True)
    leaves = [x[:, m].clone().requires_grad_() for m in range(3)]
    if name.startswith("ova"):
        if masked:
            present = torch.stack([mask[rows], torch.ones_like(mask[rows]), mask[rows]], dim=1)
            options["present"] = present
        loss = ova(leaves, scale, exchange=exchange, impl="tiled", **options)
    else:
        if masked:
            options["present"] = mask[rows]
        if weighted:
            options["weights"] = torch.linspace(0, 2, len(mask))[rows]
        loss = nce(leaves[0], leaves[1], scale, exchange=exchange, impl="tiled", **options)
    loss.backward()
    found = {f"d{i}": t.grad for i, t in enumerate(leaves) if t.grad is not None}
    assert scale.grad is not None
    return {"loss": loss.detach().reshape(1), "dscale": scale.grad, **found}


def measure(job: Mapping[str, Any]) -> None:
    """Runs on each rank: write what all ranks found, as their wrapper would combine it."""
    torch.set_num_threads(1)
    world = gather.open_world("cpu", 5.0)
    parts = slices(COUNTS[world.size])
    combined = {}
    for kind in KINDS:
        exchange = gather.exchange(kind, budget=600)
        for name in CASES:
            found = results(name, parts[world.rank], exchange, alone_on(parts))
            for key, value in found.items():
                if key in ("loss", "dscale"):
                    mean = gather.all_gather_flat(value).mean(0)
                    combined[f"{kind}/{name}/{key}"] = mean
                else:
                    combined[f"{kind}/{name}/{key}"] = gather.all_gather_rows(value) / world.size
    if gather.is_main():
        save_file(combined, job["out"])


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_equal_one_process_on_all_rows(
    server: ForkServer, tmp_path: Path, ranks: int
) -> None:
    out = tmp_path / "found.safetensors"
    job = {"call": "tests.train.test_exchange:measure", "out": str(out)}
    server.run(job, ranks, tmp_path / "log")
    found = load_file(out)
    everything, mask = slice(0, sum(COUNTS[ranks])), alone_on(slices(COUNTS[ranks]))
    for name in CASES:
        for key, value in results(name, everything, LOCAL, mask).items():
            for kind in KINDS:
                mine = found[f"{kind}/{name}/{key}"]
                assert torch.isfinite(mine).all(), (kind, name, key)
                torch.testing.assert_close(
                    mine,
                    value,
                    atol=1e-5,
                    rtol=1e-5,
                    msg=lambda m, at=(kind, name, key): f"{at} {m}",
                )


def contract(job: Mapping[str, Any]) -> None:
    """Runs on each rank: what the protocol promises, on numbers that name their origin."""
    world = gather.open_world("cpu", 5.0)
    for counts in ([3] * world.size, [2, 0, 5][: world.size], [0, 0, 4][: world.size], [0] * 3):
        rows = counts[world.rank]
        base = sum(counts[: world.rank])
        ids = base + torch.arange(rows)
        for kind in ("gather", "ring"):
            exchange = gather.exchange(kind, even=len(set(counts)) == 1)
            assert exchange.size == world.size
            assert exchange.offset(rows) == base
            assert float(exchange.sum(torch.tensor(float(world.rank)))) == sum(range(world.size))
            check_visit(exchange, ids, world.size, sum(counts[: world.size]))
            check_gather(exchange, ids, counts[: world.size])


def check_visit(exchange: Exchange, ids: Tensor, size: int, total: int) -> None:
    met: list[int] = []

    def fn(block: Sequence[Tensor], carried: Sequence[Tensor], partner: int) -> None:
        numbers, odd, wide = block
        met.extend(numbers.tolist())
        assert odd.dtype is torch.bool
        assert torch.equal(odd, numbers % 2 == 1)
        assert wide.shape == (len(numbers), 2, 3)
        assert wide.dtype is torch.bfloat16
        for row, own in enumerate(ids.tolist()):
            at = row + partner
            here = 0 <= at < len(numbers)
            assert here == (own in numbers.tolist())
            assert not here or int(numbers[at]) == own
        carried[0].add_(numbers.to(carried[0].dtype))
        carried[1].add_(torch.ones(2))

    wide = ids.bfloat16().view(-1, 1, 1).expand(-1, 2, 3)  # not contiguous
    start = [torch.ones(len(ids)), torch.zeros(len(ids), 2, dtype=torch.float64)]
    sums = exchange.visit([ids, ids % 2 == 1, wide], start, fn)
    assert sorted(met) == list(range(total))
    assert torch.equal(sums[0], 1 + size * ids.float())
    assert torch.equal(sums[1], torch.full((len(ids), 2), float(size), dtype=torch.float64))
    assert exchange.visit([ids, ids % 2 == 1, wide], [], lambda *_: None) == []


def check_gather(exchange: Exchange, ids: Tensor, counts: Sequence[int]) -> None:
    x = ids.double()[:, None].clone().requires_grad_()
    everything = exchange.gather(x)
    assert everything[:, 0].tolist() == list(range(sum(counts)))
    rank = gather.world().rank
    ((rank + 1.0) * everything**2).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, sum(range(1, len(counts) + 1)) * 2 * x.detach())


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_pair_meets_once_and_sums_come_home(
    server: ForkServer, tmp_path: Path, ranks: int
) -> None:
    job = {"call": "tests.train.test_exchange:contract"}
    server.run(job, ranks, tmp_path / "log")


def memory(job: Mapping[str, Any]) -> None:
    """Runs on each rank: peak bytes of a visit with 256 columns a rank."""
    gather.open_world("cpu", 5.0)
    columns, carried = [torch.ones(256, 16)], [torch.zeros(256, 16)]
    found = {}
    for kind in ("gather", "ring"):
        with Held() as held:
            gather.exchange(kind, even=True).visit(columns, carried, lambda *_: None)
        found[kind] = held.peak
    if gather.is_main():
        Path(job["out"]).write_text(json.dumps(found))


def test_a_ring_holds_as_much_on_four_ranks_as_on_two(server: ForkServer, tmp_path: Path) -> None:
    peaks = {}
    for ranks in (2, 4):
        out = tmp_path / f"{ranks}.json"
        job = {"call": "tests.train.test_exchange:memory", "out": str(out)}
        server.run(job, ranks, tmp_path / "log")
        peaks[ranks] = json.loads(out.read_text())
    block = 256 * 16 * 4
    assert peaks[2]["ring"] == peaks[4]["ring"] == 5 * block  # two of columns, three of sums
    assert peaks[2]["gather"] >= 4 * block
    assert peaks[4]["gather"] >= 8 * block


def test_one_process_needs_no_exchange() -> None:
    for kind in KINDS:
        assert gather.exchange(kind) is LOCAL  # type: ignore[arg-type]
