"""Corruptions of one modality: clean figures, means, relative errors, and what judges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outmodal.data.stream import StreamConfig
from outmodal.errors import UserError
from outmodal.train.corruption_task import corruption_task
from outmodal.train.encoder_tasks import probe_task
from outmodal.train.probing import ProbeConfig
from outmodal.train.representations import Encoder, selected
from outmodal.train.results import Evaluation
from tests.data.tiny import make_tiny
from tests.train.plain import Plain

QUICK = ProbeConfig(kind="linear", epochs=3, batch=16, lr=2e-2)  # far from perfect


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    root = tmp_path_factory.mktemp("corrupted") / "tiny"
    data = make_tiny(root, 60, 3, ("force", "pose"), test=60)
    source = Plain(data, ("pose",))
    return Encoder(source, StreamConfig(path=str(root), batch=16))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found(encoder: Encoder) -> Evaluation:
    return corruption_task(encoder, "train", "test", QUICK)


def test_clean_inputs_give_what_a_probe_gives(encoder: Encoder, found: Evaluation) -> None:
    plain = probe_task(encoder, "train", "test", QUICK).metrics["accuracy"]
    assert found.metrics["clean/accuracy"] == plain


def test_means_and_relative_errors(found: Evaluation) -> None:
    m = found.metrics
    means = []
    for name in ("noise", "dropout"):
        mean = np.mean([m[f"{name}/{s}/accuracy"] for s in range(1, 6)])
        assert m[f"{name}/mean/accuracy"] == pytest.approx(mean)
        expected = (1 - mean) / (1 - m["clean/accuracy"])
        assert m[f"{name}/relative_error"] == pytest.approx(expected)
        means.append(mean)
    assert m["mean/accuracy"] == pytest.approx(np.mean(means))
    expected = (1 - np.mean(means)) / (1 - m["clean/accuracy"])
    assert m["mean/relative_error"] == pytest.approx(expected)
    assert m["noise/5/accuracy"] < m["clean/accuracy"]


def test_rows_say_what_they_are_of(found: Evaluation) -> None:
    rows = {row.name: row for row in found.rows}
    assert (rows["noise/3/accuracy"].of.corruption, rows["noise/3/accuracy"].of.severity) == (
        "noise",
        3,
    )
    assert rows["clean/accuracy"].of.severity == 0
    assert {row.of.modality for row in found.rows} == {"pose"}
    assert all(row.score.count == 60 for row in found.rows)


def test_what_is_drawn_does_not_depend_on_batches_or_on_what_else_is_asked_for(
    encoder: Encoder, found: Evaluation
) -> None:
    config = encoder.data.model_copy(update={"batch": 7})
    source = Plain(encoder.dataset, ("pose",))
    seen: list[tuple[int, int]] = []
    part = corruption_task(
        Encoder(source, config),  # type: ignore[arg-type]
        "train",
        "test",
        QUICK,
        names=["dropout"],
        severities=[4],
        progress=lambda done, total: seen.append((done, total)),
    )
    assert part.metrics["dropout/4/accuracy"] == found.metrics["dropout/4/accuracy"]
    assert seen == [(0, 2), (1, 2)]
    other = corruption_task(
        encoder, "train", "test", QUICK, names=["noise"], severities=[3], seed=1
    )
    assert set(other.metrics) < set(found.metrics)


def test_some_of_the_samples(encoder: Encoder) -> None:
    few = corruption_task(encoder, "train", "test", QUICK, names=["noise"], severities=[1], most=9)
    assert few.samples == 9
    assert selected(10, 4).tolist() == [0, 2, 5, 7]
    assert selected(3, 9).tolist() == selected(3, 0).tolist() == [0, 1, 2]


def test_texts_are_not_corrupted(tmp_path: Path) -> None:
    from outmodal.data.inputs import TokenInput

    data = make_tiny(tmp_path / "tiny", 12, 1, ("text",))
    source = Plain(data, ())
    source.inputs["text"] = TokenInput(length=6).build(data, "text", tmp_path)
    source.modalities = ("text",)
    encoder = Encoder(source, StreamConfig(path=data.where))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="there are no corruptions of text"):
        corruption_task(encoder, "train", "test", QUICK)
