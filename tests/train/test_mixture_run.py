"""Runs over mixtures, remote and oddly cut data: killed and moved, their batches stay the same."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from outmodal.data.manifest import open_dataset
from tests.data.mixed import recut
from tests.data.servers import nginx
from tests.data.tiny import make_tiny
from tests.train.forked import ForkServer
from tests.train.plans import lines
from tests.train.test_kill import alive

ENGINE = {"epochs": 3, "checkpoint_every": 3, "eval_every": 0, "keep": 2}
READERS = [(1, 0), (2, 1), (4, 0), (1, 2), (2, 2), (2, 0)]
"""Ranks, and workers of each: all share four streams."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three data sets of `pose`: 96 samples in 4 shards, 24 with more classes, and 90 uneven."""
    root = tmp_path_factory.mktemp("mixed")
    one = make_tiny(root / "one", 96, 4, ("pose",), test=12)
    make_tiny(root / "two", 24, 1, ("pose", "force"), test=8, classes=4, seed=1)
    recut(one, root / "odd", [1, 0, 70, 2, 0, 17])
    return root


@pytest.fixture(scope="module")
def address(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The folder over HTTP."""
    with nginx(folder, tmp_path_factory.mktemp("nginx") / "own") as url:
        yield url


def job(
    out: Path, data: Mapping[str, Any], readers: tuple[int, int], **more: Any
) -> dict[str, Any]:
    ranks, workers = readers
    stream = {"mix": data.get("mix", ()), "workers": workers, **data.get("keys", {})}
    engine = {**ENGINE, "strategy": "ddp" if ranks > 1 else "single"}
    plan = {"out": str(out), "data": data.get("path", ""), "engine": engine, "stream": stream}
    return {"plan": plan, "record": f"{out}.rows", **more}


def recorded(out: Path) -> dict[tuple[int, int], dict[str, list[int]]]:
    """(epoch, step) -> stream -> indices of the global batch; what was done twice agrees."""
    parts: dict[tuple[int, int], list[tuple[int, dict[str, list[int]]]]] = {}
    batches: dict[tuple[int, int], dict[str, list[int]]] = {}
    for text in Path(f"{out}.rows").read_text("utf-8").split():
        try:
            line = json.loads(text)
        except ValueError:  # a kill may leave a part of a line, too
            continue
        at = (line["epoch"], line["step"])
        parts.setdefault(at, []).append((line["rank"], line["rows"]))
    for at, found in parts.items():
        whole = [_joined(group) for group in _attempts(found)]
        assert all(rows == whole[0] for rows in whole), at
        batches[at] = whole[0]
    return batches


def _attempts(
    found: Sequence[tuple[int, dict[str, list[int]]]],
) -> Iterator[list[tuple[int, dict[str, list[int]]]]]:
    """Group what ranks said of one step by how often it was done: all have 16 rows together."""
    left = list(found)
    while left:
        group: list[tuple[int, dict[str, list[int]]]] = []
        for entry in list(left):
            same = not group or len(entry[1]["all"]) == len(group[0][1]["all"])
            if same and entry[0] not in [rank for rank, _ in group]:
                group.append(entry)
                left.remove(entry)
        if sum(len(rows["all"]) for _, rows in group) == 16:  # a kill leaves parts of a step
            yield group


def _joined(group: Sequence[tuple[int, dict[str, list[int]]]]) -> dict[str, list[int]]:
    ordered = [rows for _, rows in sorted(group, key=lambda entry: entry[0])]
    return {"all": [index for rows in ordered for index in rows["all"]]}


def kill_somewhere(out: Path, pids: Sequence[int], draw: random.Random) -> None:
    """kill -9 all ranks after a random number of steps more."""
    rows = Path(f"{out}.rows")
    begin = rows.stat().st_size if rows.exists() else 0
    wanted = begin + draw.randrange(1, 1200)
    while all(alive(pid) for pid in pids):
        if rows.exists() and rows.stat().st_size > wanted:
            break
        time.sleep(0.001)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def check(server: ForkServer, folder: Path, data: Mapping[str, Any], kills: int, seed: int) -> None:
    """A calm run of one reader, and one that is killed and goes on with others."""
    calm, torn, log = folder / "calm", folder / "torn", folder / "log"
    server.run(job(calm, data, (1, 0)), 1, log)
    draw = random.Random(seed)
    codes: set[int] = set()
    for _ in range(kills):
        readers = draw.choice(READERS)
        pids = server.start(job(torn, data, readers), readers[0], log)
        kill_somewhere(torn, pids, draw)
        codes |= set(server.wait(pids))
    assert codes <= {0, 1, -signal.SIGKILL}, log.read_text("utf-8")[-4000:]
    readers = draw.choice(READERS[1:])
    server.run(job(torn, data, readers), readers[0], log)
    one, other = recorded(calm), recorded(torn)
    assert list(one) == sorted(other)
    assert other == one
    sources = [[row for row in lines(out) if row["split"] == "data"] for out in (calm, torn)]
    assert sources[0] == sources[1]
    assert len(sources[0]) == (3 if data.get("mix") else 0)


def mixed(root: str) -> list[dict[str, Any]]:
    return [
        {"path": f"{root}/one", "proportion": 2},
        {"path": f"{root}/two", "proportion": 1, "classes": {"black": "blue"}},
        {"path": f"{root}/odd", "proportion": 1, "classes": "same"},
    ]


def test_a_mixture_trains_and_says_what_it_uses(
    server: ForkServer, folder: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    server.run(job(out, {"mix": mixed(str(folder))}, (1, 0)), 1, log)
    said = log.read_text("utf-8")
    assert "an epoch has 210 samples, uses 208, drops 2 (no full batch of 16" in said
    assert "reading takes at most about" in said
    assert "tiny: 96 samples, 50.0 %, 1.08 passes" in said
    counts = [row["values"] for row in lines(out) if row["split"] == "data"]
    assert len(counts) == 3
    for row in counts:
        assert set(row) == {"source/tiny", "source/tiny-2", "source/tiny-3"}
        assert sum(row.values()) % 208 == 0  # once or twice: the probe has two streams
    rows = recorded(out)
    drawn = [sum(i < 96 for b in rows.values() for i in b["all"])]
    assert drawn[0] == pytest.approx(3 * 104, abs=12)


def test_another_weight_is_another_run(server: ForkServer, folder: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    mix = mixed(str(folder))
    server.run(job(out, {"mix": mix}, (1, 0)), 1, log)
    (out / "result.json").unlink()
    mix[0]["proportion"] = 3
    codes = server.wait(server.start(job(out, {"mix": mix}, (1, 0)), 1, log))
    assert codes == [2]
    assert "data.mix.0.proportion was 2" in log.read_text("utf-8")


def test_a_killed_and_moved_run_has_the_same_batches(
    server: ForkServer, folder: Path, tmp_path: Path
) -> None:
    check(server, tmp_path, {"mix": mixed(str(folder))}, 2, seed=5)


@pytest.mark.long
def test_tiny_uneven_and_empty_shards(server: ForkServer, folder: Path, tmp_path: Path) -> None:
    recut(open_dataset(folder / "one"), tmp_path / "odd", [90, 0, 1])
    two = {"path": str(folder / "two"), "classes": {"black": "blue"}}
    check(server, tmp_path, {"mix": [{"path": str(tmp_path / "odd")}, two]}, 4, seed=3)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["plain", "mixed", "remote", "remote mixed"])
def test_many_kills(
    server: ForkServer, folder: Path, address: str, tmp_path: Path, kind: str
) -> None:
    root = address if "remote" in kind else str(folder)
    data = {"mix": mixed(root)} if "mixed" in kind else {"path": f"{root}/one"}
    check(server, tmp_path, data, 8, seed=len(kind))
