"""Missing modalities: the protocol's means, sweeps that are nested, and what stands for nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outmodal.data.stream import StreamConfig
from outmodal.train.encoder_tasks import probe_task
from outmodal.train.intervals import Bootstrap
from outmodal.train.missing import missing_task, uniforms
from outmodal.train.probing import ProbeConfig
from outmodal.train.representations import Encoder
from tests.data.tiny import make_tiny
from tests.train.plain import Plain

QUICK = ProbeConfig(epochs=10, hidden=16, batch=16, lr=1e-2)
RATES = (0.0, 0.2, 0.5, 0.8, 1.0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    root = tmp_path_factory.mktemp("missing") / "tiny"
    data = make_tiny(root, 60, 3, ("force", "pose"), test=40, missing={"pose": range(9)})
    return Encoder(Plain(data, ("force", "pose")), StreamConfig(path=str(root), batch=16))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found(encoder: Encoder) -> dict[str, float]:
    return missing_task(encoder, "train", "test", QUICK, rates=RATES).metrics


def test_complete_inputs_give_what_a_probe_gives(encoder: Encoder, found: dict[str, float]) -> None:
    plain = probe_task(encoder, "train", "test", QUICK).metrics["accuracy"]
    assert found["complete/accuracy"] == plain > 0.8


def test_the_protocols_mean(found: dict[str, float]) -> None:
    parts = [found[f"{n}/accuracy"] for n in ("complete", "miss_force", "miss_pose")]
    assert found["average/accuracy"] == pytest.approx(np.mean(parts))
    assert min(parts) < parts[0]


def test_a_sweep_begins_complete_and_ends_without(found: dict[str, float]) -> None:
    for name in ("force", "pose", "any"):
        assert found[f"sweep_{name}/0/accuracy"] == found["complete/accuracy"]
    for m in ("force", "pose"):
        assert found[f"sweep_{m}/1/accuracy"] == found[f"miss_{m}/accuracy"]
    ends = sorted(found[f"miss_{m}/accuracy"] for m in ("force", "pose"))
    assert ends[0] <= found["sweep_any/1/accuracy"] <= ends[1]


def test_what_is_drawn_is_the_samples(encoder: Encoder) -> None:
    every = uniforms(0, "pose", np.arange(500))
    assert np.array_equal(uniforms(0, "pose", np.array([7, 400])), every[[7, 400]])
    assert not np.array_equal(uniforms(1, "pose", np.arange(500)), every)
    assert not np.array_equal(uniforms(0, "force", np.arange(500)), every)
    assert abs((every < 0.3).mean() - 0.3) < 0.06
    again = missing_task(encoder, "train", "test", QUICK, rates=(0.5,), seed=3)
    other = missing_task(encoder, "train", "test", QUICK, rates=(0.5,), seed=3)
    assert again.metrics == other.metrics


def test_the_substitute_is_zeros_in_what_the_encoder_receives(encoder: Encoder) -> None:
    r, e = encoder.blank("pose")
    assert r.tolist() == [0.0] * 7 + [1.0]
    assert float(e.norm()) == pytest.approx(1)


def test_samples_that_lack_something_as_they_are_count(encoder: Encoder) -> None:
    result = missing_task(encoder, "test", "train", QUICK, bootstrap=Bootstrap(draws=0))
    assert {row.score.count for row in result.rows} == {60}
    assert result.metrics["miss_pose/accuracy"] <= result.metrics["complete/accuracy"]


def test_texts_are_replaced_by_a_blank(tmp_path: Path) -> None:
    from outmodal.data.inputs import TokenInput

    data = make_tiny(tmp_path / "tiny", 12, 1, ("text", "pose"))
    source = Plain(data, ("pose",))
    source.inputs["text"] = TokenInput(length=6).build(data, "text", tmp_path)
    source.modalities = ("pose", "text")
    r, _ = Encoder(source, StreamConfig(path=data.where)).blank("text")  # type: ignore[arg-type]
    empty = source.inputs["text"](" ", "").float().tolist()
    assert r.tolist() == [*empty, 1.0]
    assert sum(t > 0 for t in empty) == 2  # the marks of beginning and end only
