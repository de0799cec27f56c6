"""`outmodal bench kernels`: it runs, its answer has all its parts, gates bite; nothing is timed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from outmodal.errors import UserError
from outmodal.launch.bench import kernel_accuracy, kernel_command, kernel_peers, kernel_problems
from outmodal.launch.bench.kernel_command import bare_flags
from outmodal.launch.bench.kernel_memory import growth, peak_bytes
from outmodal.launch.bench.kernel_peers import Missing
from outmodal.launch.bench.kernel_problems import OURS, PEERS, Sizes, draw, make_problem
from outmodal.launch.bench.kernels import bench_kernels, check_kernels, check_table, table
from outmodal.launch.cli import main
from outmodal.launch.commands import bench

CPU = torch.device("cpu")
TINY = ["kernels", "--n", "40", "--d", "12", "--mo", "50", "--repeats", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> object:
    """No compiler is waited for; the command sets the number of threads, tests get theirs back."""
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure no memory: that is a process for each alternative."""
    monkeypatch.setattr("outmodal.launch.bench.kernels.peak_bytes", lambda sizes, name: None)


@pytest.mark.usefixtures("no_memory")
def test_the_answer_has_all_its_parts(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *TINY, "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert set(answer) == {"speedup", "memory_ratio", "machine", "rows"}
    assert answer["machine"]["threads"] == 1
    assert [(r["op"], r["name"]) for r in answer["rows"]] == [
        (op, name) for op, peers in PEERS.items() for name in (OURS, *peers)
    ]
    for row in answer["rows"]:
        if row["name"] == "inf_cl":
            assert row["missing"].startswith("needs CUDA")
            assert "ms" not in row
            continue
        assert row["missing"] == ""
        assert min(row["ms"], row["cpu_s"], row["tflops"], row["ratio"]) > 0
        assert max(row["errors"].values()) < 1e-3
    ours, open_clip = answer["rows"][:2]
    assert ours["ratio"] == 1.0
    assert answer["speedup"] == open_clip["ratio"]
    assert "needs CUDA" in table(answer)


@pytest.mark.usefixtures("no_memory")
def test_without_the_peer_there_is_no_speedup_and_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_peers, "WHEELS", {"open_clip": "no-such-wheel"})
    outcome = bench.run([*TINY, "--op", "nce", "--peers", "open_clip"])
    assert outcome.exit_code == 0
    assert outcome.data["speedup"] is None
    assert outcome.data["rows"][1]["missing"] == (
        "not installed: pip install --no-deps no-such-wheel"
    )
    assert "pip install --no-deps no-such-wheel" in outcome.text


@pytest.mark.usefixtures("no_memory")
def test_a_peer_that_fails_is_told_of_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(kernel_peers, "open_clip_loss", lambda *_: broken)
    result = bench_kernels([Sizes("nce", 20, 8)], ["open_clip"], 1)
    assert result["rows"][1]["missing"] == "failed: RuntimeError: no such kernel"
    assert result["rows"][0]["ms"] > 0


def test_the_loss_of_open_clip_comes_from_its_own_file() -> None:
    loss = kernel_peers.open_clip_loss(False, CPU)
    inputs = draw(Sizes("nce", 30, 8), 0)
    q, k = inputs.embeddings
    logits = inputs.scale * q @ k.T
    target = torch.arange(30)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(loss(q, k, inputs.scale), expected)
    with pytest.raises(Missing, match="no_such"):
        kernel_peers.distribution_file("open_clip", "open_clip/no_such.py")


def test_no_compiler_is_a_missing_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_peers, "lacks_compiler", lambda device: "no C++ compiler")
    problem = make_problem(Sizes("nce", 20, 8), ["chunked_compile", OURS])
    assert problem.missing == {"chunked_compile": "no C++ compiler"}
    assert list(problem.losses) == [OURS]


@pytest.mark.parametrize("op", kernel_problems.OPS)
def test_all_who_solve_a_problem_agree(op: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_peers, "CHUNK", 16)  # several chunks, the last one shorter
    sizes = Sizes(op, 40, 12, m=4, mo=50)
    problem = make_problem(sizes, [OURS, *PEERS[op]])
    for name in problem.losses:
        found = kernel_accuracy.errors(problem, name, draw(sizes, 5))
        assert max(found.values()) < 1e-4, name


def test_inputs_have_the_cosine_that_was_asked_for() -> None:
    q, k = draw(Sizes("nce", 500, 64), 0, cosine=0.5).embeddings
    assert float((q * k).detach().sum(1).mean()) == pytest.approx(0.5, abs=0.02)
    assert float(q.detach().norm(dim=1).sub(1).abs().max()) < 1e-6


def test_operations_are_counted_by_convention() -> None:
    assert Sizes("nce", 10, 3).flops() == 8 * 100 * 3
    assert Sizes("ova", 10, 3, m=4).flops() == 8 * 100 * 3 * 12
    assert Sizes("nearest", 10, 3, k=5, mo=7).flops() == 2 * 10 * 7 * 5 * 3


def test_checks_pass_and_their_gates_bite(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = bench.run([*TINY, "--check"])
    assert outcome.exit_code == 0
    assert outcome.data["passed"]
    assert {c["what"] for c in outcome.data["checks"]} == {"loss", "grad", "scale", "index"}
    strict = {"loss": -1.0, "grad": 1.0, "scale": 1.0}
    monkeypatch.setitem(kernel_accuracy.GATES, "fp32", strict)
    outcome = bench.run([*TINY, "--op", "nce", "--check"])
    assert outcome.exit_code == 1
    assert "FAILED" in outcome.text


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_passes_its_gates(dtype: str) -> None:
    result = check_kernels([Sizes("nce", 90, 20, dtype=dtype), Sizes("ova", 60, 20, dtype=dtype)])
    assert result["passed"], check_table(result)


@pytest.mark.long
def test_memory_is_that_of_the_alternative_alone() -> None:
    sizes = Sizes("nce", 3000, 16)
    ours, theirs = (peak_bytes(sizes, name) for name in (OURS, "open_clip"))
    matrix = 4 * sizes.n**2
    assert ours is not None
    assert theirs is not None
    assert theirs > 3 * matrix
    assert ours < matrix


def test_growth_counts_what_was_given_back_too() -> None:
    def spend() -> None:
        torch.ones(16 * 2**20)

    # a kernel counts pages a processor at a time: by some MiB on a machine with many
    assert 48 * 2**20 < growth(spend) < 112 * 2**20


def test_the_audit_decides_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from outmodal.models.kernels import audit

    def row(spills: int) -> audit.Row:
        return audit.Row("sums", "3.6.0", 100, 0, spills, 1000, 4, 0, 4, 0)

    for spills, code in ((0, 0), (7, 1)):
        monkeypatch.setattr(audit, "audit", lambda arch, spills=spills: [row(spills)])
        outcome = bench.run(["kernels", "--audit", "sm_90"])
        assert outcome.exit_code == code
        assert outcome.data["passed"] is (code == 0)
        assert ("spills" in outcome.text) is (code == 1)


def test_a_flag_may_stand_alone() -> None:
    assert bare_flags(["--check", "--n", "3"], "--check") == ["--check", "True", "--n", "3"]
    assert bare_flags(["--check", "False"], "--check") == ["--check", "False"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--op", "nec"], "did you mean 'nce'"),
        (["--peers", "openclip"], "did you mean 'open_clip'"),
        (["--m", "7"], "--m must be 2 to 6"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--n", "-1"], "--n must be at least 0"),
        (["--dtype", "fp8"], "fp8"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench.run(["kernels", *options])


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="torch sees no GPU"):
        bench.run(["kernels", "--device", "cuda"])
    assert kernel_command._device("auto") == "cpu"
