"""Every shipped configuration of the Triton kernels, compiled for a Hopper GPU without having one.

In child processes, without TRITON_INTERPRET and with a cache of their own, for the installed Triton
and for the oldest that is supported: register counts differ between the two.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from outmodal.errors import UserError
from outmodal.models.kernels import audit

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[3]
INSTALLED = "installed"
OLDEST = "3.6.0"
OLDEST_PATH = ROOT / f".triton-{OLDEST}"
SCRIPT = """
import dataclasses, json, torch
torch.set_num_threads(1)
from outmodal.models.kernels.audit import audit
print(json.dumps([dataclasses.asdict(row) | {"problems": row.problems()} for row in audit()]))
"""


def rows(cache: Path, *path: Path) -> list[dict[str, Any]]:
    """What the audit finds in a child process; `path` goes before the installed packages."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
    if path:
        env["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("version", [INSTALLED, OLDEST])
def test_all_configurations_are_fit_to_ship(version: str, tmp_path: Path) -> None:
    if version == OLDEST:
        assert OLDEST_PATH.is_dir(), f"run `make triton-oldest`: {OLDEST_PATH} is missing"
    found = rows(tmp_path, *([OLDEST_PATH] if version == OLDEST else []))
    expected = OLDEST if version == OLDEST else importlib.metadata.version("triton")
    assert {row["triton"] for row in found} == {expected}
    assert not [row for row in found if row["problems"]]
    assert {row["name"].partition("[")[0] for row in found} == PRIMITIVES
    limit = audit.SHARED_LIMIT["sm_90"]
    for row in found:
        assert row["spills"] == 0, row
        assert row["shared"] <= limit, row
        assert row["hgmma"] > 0, row
        assert row["async_copies"] + row["tma"] > 0, row


PRIMITIVES = {
    "nearest.candidates",
    *(f"nce.{name}" for name in ("sums", "grads", "sigmoid_sums", "sigmoid_grads")),
    *(f"ova.{name}.{f}" for name in ("sums", "grads") for f in ("projection", "volume", "area")),
}


def row(**changes: int) -> audit.Row:
    good = dict(
        registers=90, stack=0, spills=0, shared=98328, hgmma=4, ffma=64, async_copies=0, tma=6
    )
    return audit.Row(name="x", triton="3.9.0", **(good | changes))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"spills": 3}, "spills registers"),
        ({"shared": 232449}, "too much shared memory"),
        ({"hgmma": 0}, "no matrix instructions"),
        ({"tma": 0}, "no asynchronous copies"),
    ],
)
def test_problems_are_named(change: dict[str, int], problem: str) -> None:
    assert row().problems() == []
    assert row(**change).problems() == [problem]


def test_another_architecture_is_refused() -> None:
    with pytest.raises(UserError, match=r"sm_80.*expected sm_90"):
        audit.audit("sm_80")
