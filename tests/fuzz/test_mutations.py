"""Mutated real files: every reader gives a value or one of its own errors, and nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.containers import container_seeds
from tests.fuzz.guard import Finding, Guard
from tests.fuzz.mend import mended
from tests.fuzz.mutate import mutated
from tests.fuzz.seeds import NAMES, seed
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
FOUND = sorted(path for path in CORPUS.glob("*/*") if path.is_file())
FEW = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def originals(target: str) -> list[bytes]:
    return [seed(target)] if target in NAMES else container_seeds(target)


@pytest.mark.parametrize("target", TARGETS)
def test_whole_files_are_read(guard: Guard, target: str) -> None:
    """Else the mutations would test nothing; a deep JPEG is the one that nobody here reads."""
    outcomes = {guard.run(target, data)["outcome"] for data in originals(target)}
    assert outcomes == ({"refused"} if target == "jpeg-deep" else {"fine"})
    for data in originals(target):
        assert guard.run(target, mended(data))["outcome"] in outcomes


@pytest.mark.parametrize("target", TARGETS)
@FEW
@given(rng=st.randoms(use_true_random=False), number=st.integers(0, 9))
def test_mutations(guard: Guard, target: str, rng: random.Random, number: int) -> None:
    files = originals(target)
    others = [seed(name) for name in NAMES] if target in NAMES else files
    guard.run(target, mutated(files[number % len(files)], rng, others))


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_many_mutations(guard: Guard, target: str) -> None:
    files = originals(target)
    others = [seed(name) for name in NAMES] if target in NAMES else files
    for number in range(3000):
        guard.run(target, mutated(files[number % len(files)], random.Random(number), others))


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            id=f"{path.parent.name}/{path.name}",
            # A gigabyte of frames takes a while.
            marks=pytest.mark.long if path.parent.name == "video-gif" else (),
        )
        for path in FOUND
    ],
)
def test_what_was_found_stays_mended(guard: Guard, path: Path) -> None:
    """Every input that once did harm lies in corpus/TARGET/."""
    guard.run(path.parent.name, path.read_bytes())


def test_the_corpus_is_there() -> None:
    assert {path.parent.name for path in FOUND} <= set(TARGETS)
    assert FOUND
    assert all(path.stat().st_size < 1 << 16 for path in FOUND)


@pytest.mark.parametrize("how", ["exit", "hang", "memory", "error"])
def test_the_guard_sees_harm(how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A guard that finds nothing must not be one that sees nothing."""
    monkeypatch.setenv("FUZZ_FINDINGS", str(tmp_path))
    monkeypatch.setattr("tests.fuzz.guard.SECONDS", 2)
    with (
        Guard("tests.fuzz.harm") as guard,
        pytest.raises(Finding, match=r"died|no answer|MiB|RuntimeError"),
    ):
        guard.run("harm", how.encode())
    assert [path.read_bytes() for path in tmp_path.glob("*/*")] == [how.encode()]
