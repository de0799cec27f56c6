"""A run goes on with the values that it was started with, by an older version too."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from outmodal.data.inputs import VectorInput
from outmodal.errors import UserError
from outmodal.models.learners import MlpLearner
from outmodal.train.engine import EngineConfig
from outmodal.train.run import train
from outmodal.train.runfolder import changed_keys, untouched_keys
from tests.train.plans import lines, tiny_plan


def test_untouched_keys_are_those_with_their_defaults() -> None:
    learner = MlpLearner(modality="pose", widths=(9,), input=VectorInput(dim=7))
    sections = {"engine": EngineConfig(epochs=3), "learners": (learner,)}
    found = untouched_keys(sections)
    assert {"engine.micro_batch", "engine.clip"} <= found
    assert not {"engine.epochs", "engine", "learners.0.modality", "learners.0.widths"} & found
    assert all(key.startswith(("engine.", "learners.0.")) for key in found)


def test_a_key_that_an_older_version_did_not_know_counts_where_it_was_set() -> None:
    old = yaml.safe_dump({"engine": {"epochs": 2, "temperature": 1}, "data": {"batch": 8}})
    new = yaml.safe_dump({"engine": {"epochs": 2, "ema": 0.9, "part": {"a": 1}}, "data": {"b": 1}})
    assert changed_keys(old, new, {"engine.part", "data"}) == [
        "data.batch was 8, is now None",
        "engine.ema is new, with 0.9",
        "engine.temperature was 1, is now None",
    ]


def test_how_data_are_read_may_change_but_not_what_is_mixed() -> None:
    old = {"remote": {"cache": "", "retries": 5}, "threads": 0, "mix": [{"path": "a", "weight": 1}]}
    new = {
        "remote": {"cache": "c", "retries": 9},
        "threads": 4,
        "mix": [{"path": "a", "weight": 2}],
    }
    assert changed_keys(yaml.safe_dump({"data": old}), yaml.safe_dump({"data": new})) == [
        "data.mix.0.weight was 1, is now 2"
    ]


def test_a_run_of_an_older_version_goes_on(data: str, tmp_path: Path) -> None:
    first = train(tiny_plan(tmp_path / "run", data, {"max_steps": 6}))
    held = (tmp_path / "run" / "config.yaml").read_text("utf-8")
    assert "micro_batch" not in held
    (first.out / "result.json").unlink()
    with pytest.raises(UserError, match=r"engine\.ema is new, with 0\.5\. Use"):
        train(tiny_plan(first.out, data, {"max_steps": 6, "ema": 0.5}))
    before = lines(first.out)
    again = train(tiny_plan(first.out, data, {"max_steps": 6, "micro_batch": 0, "ema": 0.0}))
    assert again == first
    assert lines(first.out) == before
    assert "micro_batch: 0" in (first.out / "config.yaml").read_text("utf-8")
