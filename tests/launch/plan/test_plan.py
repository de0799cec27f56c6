"""`outmodal plan` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from outmodal.errors import UserError
from outmodal.launch.commands.plan import run
from outmodal.launch.config import RunConfig
from outmodal.launch.plan.hardware import Machine, find_gpu
from outmodal.launch.plan.timing import survival
from outmodal.launch.plan.wire import traffic
from tests.launch.plan.recipes import align_config, large_config, vit_config

IMAGENET = ["--samples", "1281167", "--classes", "1000", "--sample_kb", "110"]


def plan(tmp_path: Path, config: RunConfig, *options: str) -> dict[str, Any]:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    outcome = run([str(path), *options])
    assert outcome.text
    return json.loads(json.dumps(outcome.data))  # what --json prints


def test_imagenet_on_one_node_and_on_many(tmp_path: Path) -> None:
    config = large_config()
    one = plan(tmp_path, config, "--nodes", "1", "--gpus-per-node", "8", "--gpu", "h200", *IMAGENET)
    many = plan(
        tmp_path, config, "--nodes", "4", "--gpus_per_node", "8", "--gpu", "h200", *IMAGENET
    )
    assert one["steps"] == many["steps"] == 300 * (1_281_167 // 2048)
    assert one["fits"]
    assert many["fits"]
    assert 5.5e6 < one["parameters"] < 5.9e6  # DeiT-Ti with a head for a thousand classes
    # the same batch over four times the GPUs: less than four times as fast, more than twice
    assert 2 < one["hours"] / many["hours"] < 4
    assert {m["strategy"] for m in one["memory"]} == {"ddp", "zero1", "zero2", "zero3"}
    checkpointed = {m["strategy"]: m for m in one["memory"] if m["activation_checkpointing"]}
    plain = {m["strategy"]: m for m in one["memory"] if not m["activation_checkpointing"]}
    assert all(checkpointed[s]["activations"] < 0.5 * plain[s]["activations"] for s in plain)
    assert one["wire_bytes"]["reduce"] == pytest.approx(2 * 7 / 8 * 4 * one["parameters"])
    # 3 x 1.26 GMACs an image at 55 % of 989 TFLOP/s bounds the rate from above
    assert one["samples_per_second"] < 8 * 0.55 * 989e12 / (3 * 2 * 1.2e9)
    assert one["checkpoint"]["bytes"] == pytest.approx(4 * 4 * one["parameters"])


def test_what_does_not_fit_gets_the_least_change_that_does(tmp_path: Path) -> None:
    config = large_config(batch=1024, precision="fp32")
    found = plan(tmp_path, config, "--gpu", "rtx4090", *IMAGENET)
    assert not found["fits"]
    change = found["proposal"]["change"].split()
    assert found["proposal"]["memory"]["total"] <= found["usable_bytes"]
    # the proposal is real: with it, the plan fits
    assert plan(tmp_path, config, "--gpu", "rtx4090", *IMAGENET, *change)["fits"]


def test_a_whole_batch_objective_travels_and_is_cut_exactly(tmp_path: Path) -> None:
    found = plan(tmp_path, align_config(), "--gpus_per_node", "4")
    # two modalities of 16 rows x 32 numbers to three others, and the gradients back
    assert found["wire_bytes"]["objective"] == 2 * 3 * (2 * 16 * 32 * 4)
    cut = plan(tmp_path, align_config(), "--gpus_per_node", "4", "--engine.micro_batch", "8")
    assert (cut["rows_per_pass"], cut["passes_per_step"]) == (8, 2)
    assert cut["chosen"]["activations"] < found["chosen"]["activations"]


def test_features_of_perceptors_are_described(tmp_path: Path) -> None:
    options = ["--samples", "5000", "--classes", "10", "--vectors", "image=64", "text=32"]
    found = run(["cox", *options, "--nodes", "2", "--method.known", "image", "text"]).data
    assert found["steps"] > 0
    assert found["fits"]
    with pytest.raises(UserError, match="text"):
        run(["cox", *options[:-1], "--method.known", "image", "text"])


def test_a_billion_pairs_on_a_thousand_gpus() -> None:
    options = ["--nodes", "128", "--gpus_per_node", "8", "--samples", "1000000000"]
    small = ["--learners.0.size", "micro", "--learners.1.size", "tiny"]
    found = run(["clip-vit-b16", *options, *small]).data
    assert found["steps"] == 13 * (1_000_000_000 // 32768)
    assert found["rows_per_pass"] == 32
    # 32 rows of two modalities x 512 numbers to 1,023 others, and the gradients back
    assert found["wire_bytes"]["objective"] == 2 * 1023 * (2 * 32 * 512 * 4)


def test_the_data_set_at_hand_is_timed(tmp_path: Path) -> None:
    found = plan(tmp_path, vit_config(32, 2), "--gpu", "cpu")
    assert found["loader"]["measured"]
    assert found["loader"]["per_core"] > 10


def test_interval_of_young_and_daly() -> None:
    machine = Machine(find_gpu("h100"), 32, 8, 50e9)
    kept = survival(50e9, machine, 50_000, 1e12, 1)
    assert kept.between_failures == pytest.approx(50_000 * 3600 / 256)
    assert kept.interval == pytest.approx((2 * kept.stall * kept.between_failures) ** 0.5)
    lost = [_lost(kept.stall, kept.between_failures, kept.interval * x) for x in (0.5, 1, 2)]
    assert lost[1] == min(lost)


def _lost(stall: float, mean: float, interval: float) -> float:
    return stall / interval + interval / (2 * mean)


@pytest.mark.parametrize(
    ("strategy", "factor"), [("ddp", 2.0), ("zero1", 3.0), ("zero2", 2.0), ("zero3", 3.0)]
)
def test_bytes_of_each_strategy(strategy: Any, factor: float) -> None:
    wire = traffic(1000, strategy, 4, False, 0.0)
    assert wire.total == pytest.approx(factor * 4 * 1000 * 3 / 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpu", "h20"], ["unknown GPU 'h20'", "h200"]),
        (["--interconnect", "ndrr"], ["unknown interconnect", "ndr"]),
        (["--gpus_per_node", "3"], ["data.batch=256", "3 GPUs", "255"]),
        (["--nodes", "0"], ["--nodes"]),
        (["--engine.precison", "bf16"], ["engine.precison", "engine.precision"]),
        (["--samples", "10", "--vectors", "image"], ["--vectors image", "MODALITY=SIZE"]),
        (["--data.path", "no-such"], ["no-such"]),
    ],
)
def test_bad_input(options: list[str], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        plan(tmp_path, vit_config(32, 2), *options)
    assert all(word in str(error.value) for word in words), str(error.value)
