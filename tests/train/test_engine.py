"""The loop: resume, stages, guard, signals, evaluation, and what a run folder refuses."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from outmodal.data.inputs import SeriesInput
from outmodal.data.manifest import Dataset
from outmodal.errors import StoppedEarly, UserError
from outmodal.models.perceptors import FrozenPerceptor, PerceptorBase
from outmodal.train import engine as engine_module
from outmodal.train.engine import Engine
from outmodal.train.run import restore_method, train
from outmodal.train.runfolder import RunFolder
from tests.data.tiny import make_tiny
from tests.train.forked import ForkServer
from tests.train.plans import lines, losses, newest, tiny_plan

ENGINE = {"epochs": 3, "eval_every": 1, "ema": 0.9, "checkpoint_every": 5}


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal in the middle of optimizer step `step` (from 1)."""
    original = Engine._step

    def stepping(self: Engine, *args: Any) -> Any:
        if self.at.step == step - 1:
            os.kill(os.getpid(), number)
        return original(self, *args)

    monkeypatch.setattr(Engine, "_step", stepping)


def same_files(one: Path, other: Path) -> None:
    names = sorted(p.name for p in newest(one).glob("*.safetensors"))
    assert names == sorted(p.name for p in newest(other).glob("*.safetensors"))
    for name in names:
        assert (newest(one) / name).read_bytes() == (newest(other) / name).read_bytes(), name
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("step", [1, 4, 6, 7, 17])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_after_a_checkpoint_and_the_run_goes_on(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, number: int
) -> None:
    method = {"dropout": 0.3}
    calm, torn = (tiny_plan(tmp_path / n, data, ENGINE, method) for n in ("calm", "torn"))
    train(calm)
    with monkeypatch.context() as patch:
        stop_after(patch, step, number)
        with pytest.raises(StoppedEarly, match=f"after step {step} of 18.*same command") as stopped:
            train(torn)
    assert stopped.value.exit_code == 75
    assert newest(torn.out).name == f"step-{step:08d}"
    train(torn)
    same_files(calm.out, torn.out)
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_mid_epoch_resume_does_not_start_the_epoch_again(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny_plan(tmp_path / "run", data, ENGINE)
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(StoppedEarly):
            train(plan)
    train(plan)
    method, transforms, dataset = restore_method(plan)
    assert method.starts == 3  # type: ignore[union-attr]
    assert set(transforms) == {"pose"}
    assert dataset.manifest.classes


def job(out: Path, data: str, strategy: str, **method: Any) -> dict[str, Any]:
    engine = {**ENGINE, "strategy": strategy}
    plan = {"out": str(out), "data": data, "engine": engine, "method": method}
    return {"plan": plan, "persistent_below": 20}


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero3"])
def test_two_ranks_stop_together_and_go_on_bit_for_bit(
    server: ForkServer, data: str, tmp_path: Path, strategy: str
) -> None:
    calm, torn = (job(tmp_path / n, data, strategy, dropout=0.3) for n in ("calm", "torn"))
    log = tmp_path / "log"
    server.run(calm, 2, log)
    for step in (3, 8):
        assert server.wait(server.start({**torn, "stop_at": step}, 2, log)) == [75, 75]
        assert newest(tmp_path / "torn").name == f"step-{step:08d}"
    server.run(torn, 2, log)
    same_files(tmp_path / "calm", tmp_path / "torn")


@pytest.mark.parametrize(
    ("before", "after"),
    [((1, "single"), (2, "zero2")), ((2, "zero3"), (1, "single")), ((2, "ddp"), (4, "zero1"))],
)
def test_a_run_goes_on_with_other_processes(
    server: ForkServer,
    data: str,
    tmp_path: Path,
    before: tuple[int, str],
    after: tuple[int, str],
) -> None:
    calm, torn, log = tmp_path / "calm", tmp_path / "torn", tmp_path / "log"
    server.run(job(calm, data, "single"), 1, log)
    begun = {**job(torn, data, before[1]), "stop_at": 8}
    assert server.wait(server.start(begun, before[0], log)) == [75] * before[0]
    server.run(job(torn, data, after[1]), after[0], log)
    assert losses(torn) == pytest.approx(losses(calm), abs=1e-5)


def test_weights_move_between_shardings_exactly(
    server: ForkServer, data: str, tmp_path: Path
) -> None:
    """Loading under another strategy and saving again without a step changes no bit."""
    out, log = tmp_path / "run", tmp_path / "log"
    plan = {"out": str(out), "data": data}
    engine = {**ENGINE, "max_steps": 7}
    server.run({"plan": {**plan, "engine": {**engine, "strategy": "zero2"}}}, 2, log)
    first = {p.name: p.read_bytes() for p in newest(out).glob("*.safetensors")}
    for ranks, strategy in ((1, "single"), (2, "zero3"), (3, "zero1"), (2, "ddp")):
        job = {
            "call": "tests.train.test_engine:save_again",
            "plan": {**plan, "engine": {**engine, "strategy": strategy}},
            "persistent_below": 20,
            "streams": 12,
        }
        server.run(job, ranks, log)
        again = {p.name: p.read_bytes() for p in newest(out).glob("*.safetensors")}
        assert again.keys() == first.keys()
        for name in ("weights", "optimizer", "ema", "method"):
            file = f"{name}.safetensors"
            assert again[file] == first[file], (strategy, name)


def save_again(job: dict[str, Any]) -> None:
    """Load the newest checkpoint, and write it again under the next number."""
    original = Engine.fit

    def fit(self: Engine) -> dict[str, float]:
        self._resume()
        self.at = replace(self.at, step=self.at.step + 1)
        self._save()
        return {}

    Engine.fit = fit  # type: ignore[method-assign]
    sections = {k: v for k, v in job["plan"].items() if k != "out"}
    out = Path(job["plan"]["out"])
    for name in ("result.json", "streams.json"):
        (out / name).unlink(missing_ok=True)
    sections["stream"] = {"streams": 0, "batch": 12}
    (out / "config.yaml").unlink(missing_ok=True)
    from outmodal.train import gather

    gather.open_world("cpu", 5.0, group=True)
    gather.barrier()
    train(tiny_plan(out, **sections))
    Engine.fit = original  # type: ignore[method-assign]


def test_a_finished_run_answers_at_once(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny_plan(tmp_path / "run", data)
    first = train(plan)

    def never(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(engine_module.Engine, "__init__", never)
    assert train(plan) == first
    assert first.steps == 12
    assert lines(plan.out)[-1]["values"] == first.metrics


def test_metrics_have_the_promised_form(data: str, tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", data, {"log_every": 4, "eval_every": 1})
    train(plan)
    rows = lines(plan.out)
    assert all(list(row) == ["epoch", "split", "stage", "step", "values"] for row in rows)
    assert [r["step"] for r in rows if r["split"] == "train"] == [1, 4, 8, 12]
    assert [r["step"] for r in rows if r["split"] == "eval"] == [6, 12]
    assert [r["stage"] for r in rows if r["split"] == "epoch"] == ["one", "both"]
    assert set(rows[1]["values"]) == {"loss", "grad_norm", "lr", "scale"}
    assert list((plan.out / "tensorboard").glob("events*"))


def test_max_steps_ends_a_run_in_the_middle_of_an_epoch(data: str, tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", data, {"max_steps": 8})
    assert train(plan).steps == 8
    assert newest(plan.out).name == "step-00000008"


def test_a_group_that_is_not_reached_stays_as_it_was(data: str, tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", data, {"max_steps": 5})
    train(plan)
    optimizer = load_file(newest(plan.out) / "optimizer.safetensors")
    assert "step/head.weight" in optimizer
    assert "step/late.weight" not in optimizer
    later = tiny_plan(tmp_path / "later", data, {"max_steps": 8})
    train(later)
    optimizer = load_file(newest(later.out) / "optimizer.safetensors")
    assert float(optimizer["step/head.weight"]) == 8
    assert float(optimizer["step/late.weight"]) == 2


@pytest.mark.parametrize(("ranks", "strategy"), [(1, "single"), (2, "ddp"), (2, "zero2")])
def test_a_gradient_that_is_not_finite_is_passed_over_by_all_ranks(
    server: ForkServer, data: str, tmp_path: Path, ranks: int, strategy: str
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    plan = {"out": str(out), "data": data, "method": {"nan_steps": [2, 9]}}
    server.run({"plan": {**plan, "engine": {"strategy": strategy}}}, ranks, log)
    values = [row["values"] for row in lines(out) if row["split"] == "train"]
    assert [i for i, v in enumerate(values) if v["loss"] is None] == [2, 9]
    assert [i for i, v in enumerate(values) if v["grad_norm"] is None] == [2, 9]
    weights = load_file(newest(out) / "weights.safetensors")
    assert all(bool(t.isfinite().all()) for n, t in weights.items() if n != "seen")
    counts = load_file(newest(out) / "optimizer.safetensors")
    assert float(counts["step/head.weight"]) == 10


def test_too_many_of_them_end_the_run(data: str, tmp_path: Path) -> None:
    method = {"nan_steps": [1, 2, 4]}
    plan = tiny_plan(tmp_path / "run", data, {"nonfinite_budget": 2}, method)
    with pytest.raises(UserError, match=r"step 5, the 3\. time.*optim\.lr"):
        train(plan)


def test_running_statistics_are_equal_on_all_ranks(
    server: ForkServer, data: str, tmp_path: Path
) -> None:
    for strategy in ("ddp", "zero1"):
        out = tmp_path / strategy
        plan = {"out": str(out), "data": data, "method": {"norm": True}}
        server.run({"plan": {**plan, "engine": {"strategy": strategy}}}, 2, tmp_path / "log")
    first, second = (
        load_file(newest(tmp_path / s) / "weights.safetensors") for s in ("ddp", "zero1")
    )
    torch.testing.assert_close(first["norm.running_mean"], second["norm.running_mean"])
    assert int(first["norm.num_batches_tracked"]) == 12


def test_averaged_weights_are_what_is_evaluated_and_restored(data: str, tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", data, {"ema": 0.5})
    train(plan)
    averaged, _, _ = restore_method(plan)
    last, _, _ = restore_method(plan, ema=False)
    weights = load_file(newest(plan.out) / "weights.safetensors")
    ema = load_file(newest(plan.out) / "ema.safetensors")
    for name, p in averaged.named_parameters():
        assert torch.equal(p, ema[name])
    for name, p in last.named_parameters():
        assert torch.equal(p, weights[name])
    assert not torch.equal(weights["head.weight"], ema["head.weight"])


def test_compiled_runs_train(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by torch.compile; without its code generator, which needs a C++ compiler."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled(self, backend="eager"))
    plain = tiny_plan(tmp_path / "plain", data, {"max_steps": 3})
    traced = tiny_plan(tmp_path / "traced", data, {"compile": True, "max_steps": 3})
    assert train(traced).metrics == pytest.approx(train(plain).metrics, abs=1e-5)


def test_a_changed_configuration_is_refused_and_named(data: str, tmp_path: Path) -> None:
    train(tiny_plan(tmp_path / "run", data))
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(UserError, match=r"optim\.lr was 0\.01, is now 0\.5"):
        train(tiny_plan(tmp_path / "run", data, optim={"lr": 0.5}))
    moved = tiny_plan(tmp_path / "run", data, {"log_every": 3, "keep": 1, "checkpoint_every": 9})
    assert train(moved).steps == 12


class Perceiving(PerceptorBase):
    """A perceptor of `force` that projects to two numbers."""

    def load(self, dataset: Dataset) -> FrozenPerceptor:
        torch.manual_seed(5)
        tower = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
        transform = SeriesInput(length=16, channels=3).build(dataset, "force", None)
        return FrozenPerceptor("force", "tiny:1", transform, tower)


def test_features_are_made_once_and_stand_for_what_is_perceived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(make_tiny(tmp_path / "data", 32, 4, ("pose", "force", "text"), test=8).root)
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "cache"))
    plan = replace(tiny_plan(tmp_path / "run", data), perceptors=(Perceiving(),))  # type: ignore[arg-type]
    train(plan)
    features = list((tmp_path / "cache" / "features").iterdir())
    monkeypatch.setattr("outmodal.models.embed._Work.run", lambda *_: pytest.fail("computed again"))
    _, transforms, dataset = restore_method(plan)
    assert [dataset.root] == features
    assert dataset.manifest.modalities["force"].perceptor == "tiny:1"
    assert set(transforms) == {"pose", "force"}
    assert set(dataset.manifest.modalities) == {"pose", "force"}


def test_a_folder_in_use_names_its_holder(data: str, tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", data)
    with RunFolder(plan.out).held(), pytest.raises(UserError, match=f"process {os.getpid()} on"):
        train(plan)
    assert train(plan).steps == 12


def test_a_run_folder_that_cannot_be_made(data: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the run folder"):
        train(tiny_plan(tmp_path / "file" / "run", data))


def test_accumulation_must_divide_the_batch(data: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"engine\.accumulate=3 does not divide"):
        train(tiny_plan(tmp_path / "run", data, {"accumulate": 3}))


def test_a_run_without_checkpoint_cannot_be_restored(data: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint yet"):
        restore_method(tiny_plan(tmp_path / "run", data))


@pytest.mark.parametrize("strategy", ["auto", "zero1"])
def test_a_launcher_of_one_process(
    server: ForkServer, data: str, tmp_path: Path, strategy: str
) -> None:
    """srun and torchrun name the rank of a single process too."""
    plan = {"out": str(tmp_path / "run"), "data": data, "engine": {"strategy": strategy}}
    job = {"call": "tests.train.test_engine:as_rank_0_of_1", "plan": plan}
    server.run(job, 1, tmp_path / "log")
    assert len(losses(tmp_path / "run")) == 12


def as_rank_0_of_1(job: dict[str, Any]) -> None:
    """Train as the only rank of a launcher."""
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ.update(names, MASTER_ADDR="127.0.0.1", MASTER_PORT="29512")
    sections = {k: v for k, v in job["plan"].items() if k != "out"}
    train(tiny_plan(Path(job["plan"]["out"]), **sections))
    assert names.items() <= os.environ.items()


def test_single_refuses_several_processes(server: ForkServer, data: str, tmp_path: Path) -> None:
    plan = {"out": str(tmp_path / "run"), "data": data, "engine": {"strategy": "single"}}
    assert server.wait(server.start({"plan": plan}, 2, tmp_path / "log")) == [2, 2]
    assert "engine.strategy is single but 2 processes" in (tmp_path / "log").read_text()
