"""Probes find what is in representations, the same every time, and refuse what has no answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from outmodal.errors import UserError
from outmodal.train.probing import Answers, ProbeConfig, answers, concatenated, fit, probe, score
from outmodal.train.representations import Encoded

CLASSES = 3
QUICK = ProbeConfig(epochs=30, hidden=32, batch=16, lr=1e-2)


def encoded(
    label: Tensor | None = None, target: Tensor | None = None, samples: int = 90
) -> Encoded:
    """Two modalities: `sight` tells the class in its representation, `sound` is noise."""
    generator = torch.Generator().manual_seed(samples)
    truth = torch.arange(samples) % CLASSES
    noise = torch.randn(samples, 4, generator=generator)
    sight = torch.nn.functional.one_hot(truth, CLASSES).float() + 0.1 * noise[:, :CLASSES]
    everyone = torch.ones(samples, dtype=torch.bool)
    return Encoded(
        representation={"sight": sight, "sound": noise},
        unit={"sight": torch.zeros(samples, 2), "sound": noise[:, :2]},
        present={"sight": everyone, "sound": everyone.clone()},
        label=truth if label is None else label,
        target=target,
    )


def of(split: Encoded, *modalities: str) -> tuple[Tensor, Answers]:
    return concatenated(split, modalities, "repr"), answers(split, "train", CLASSES)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_a_probe_finds_the_class_where_it_is_told(kind: str) -> None:
    config = QUICK.model_copy(update={"kind": kind})
    train, test = encoded(), encoded(samples=60)
    assert probe(of(train, "sight"), of(test, "sight"), config) > 0.95
    assert probe(of(train, "sight", "sound"), of(test, "sight", "sound"), config) > 0.9
    assert probe(of(train, "sound"), of(test, "sound"), config) < 0.6


def test_only_an_mlp_learns_exclusive_or() -> None:
    torch.manual_seed(0)
    x = torch.rand(200, 2) * 2 - 1
    held = Answers((x[:, 0] * x[:, 1] > 0).long(), torch.ones(200, dtype=torch.bool), 2)
    linear = QUICK.model_copy(update={"kind": "linear"})
    assert probe((x, held), (x, held), QUICK) > 0.95
    assert probe((x, held), (x, held), linear) < 0.7


def test_a_target_is_regressed_with_squared_error() -> None:
    x = torch.randn(120, 3, generator=torch.Generator().manual_seed(1))
    target = torch.stack([x[:, 0] - x[:, 1], 2 * x[:, 2]], dim=1)
    held = Answers(target, torch.ones(120, dtype=torch.bool), 2)
    assert held.metric == "mse"
    config = QUICK.model_copy(update={"kind": "linear", "epochs": 60})
    assert probe((x, held), (x, held), config) < 0.01
    guess = torch.nn.Linear(3, 2)
    torch.nn.init.zeros_(guess.weight)
    torch.nn.init.zeros_(guess.bias)
    assert score(guess, x, held) == pytest.approx(float(target.square().mean()), rel=1e-5)


def test_the_network_has_four_layers_of_the_stated_width() -> None:
    network = fit(*of(encoded(), "sight"), ProbeConfig(epochs=1))
    sizes = [tuple(p.shape) for name, p in network.named_parameters() if "weight" in name]
    assert sizes == [(256, 3), (256, 256), (256, 256), (CLASSES, 256)]
    alone = fit(*of(encoded(), "sight"), ProbeConfig(epochs=1, kind="linear"))
    assert [tuple(p.shape) for p in alone.parameters()] == [(CLASSES, 3), (CLASSES,)]


def test_the_seed_decides_everything_and_nothing_else_does() -> None:
    data = of(encoded(), "sight", "sound")
    first = fit(*data, QUICK)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = fit(*data, QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    other = fit(*data, QUICK.model_copy(update={"seed": 1}))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_rows_without_an_answer_take_no_part() -> None:
    truth = torch.arange(90) % CLASSES
    half = torch.where(torch.arange(90) < 45, truth, -1)
    x, held = of(encoded(label=half), "sight")
    spoilt = torch.where(held.known[:, None], x, torch.full_like(x, 1e6))
    assert score(fit(spoilt, held, QUICK), spoilt, held) > 0.95


def test_a_missing_modality_is_filled() -> None:
    split = encoded()
    split.present["sound"][0] = False
    filled = concatenated(split, ("sight", "sound"), "repr", (torch.zeros(3), torch.ones(4)))
    assert filled[0, 3:].tolist() == [1.0] * 4
    assert concatenated(split, ("sound",), "repr")[0].tolist() == [0.0] * 4
    assert torch.equal(filled[1:, 3:], split.representation["sound"][1:])


def test_the_probe_sees_representations_or_unit_vectors() -> None:
    split = encoded()
    assert concatenated(split, ("sight",), "repr").shape == (90, 3)
    assert torch.equal(concatenated(split, ("sound",), "embedding"), split.unit["sound"])


def test_what_is_predicted() -> None:
    target = torch.randn(90, 2)
    both = encoded(target=target)
    assert answers(both, "train", CLASSES).metric == "accuracy"
    assert answers(both, "train", CLASSES, "target").outputs == 2
    unlabelled = encoded(label=torch.full((90,), -1), target=target)
    assert answers(unlabelled, "train", CLASSES).metric == "mse"
    gaps = torch.where(torch.arange(90)[:, None] < 3, torch.nan, target)
    assert int(answers(encoded(target=gaps), "train", CLASSES, "target").known.sum()) == 87


@pytest.mark.parametrize(
    ("predict", "what"),
    [("auto", "labels and no targets"), ("class", "labels"), ("target", "targ")],
)
def test_nothing_to_learn(predict: str, what: str) -> None:
    nothing = encoded(label=torch.full((90,), -1))
    with pytest.raises(UserError, match=f"split 'test' has no {what}"):
        answers(nothing, "test", CLASSES, predict)
    x, held = of(encoded(), "sight")
    nobody = Answers(held.truth, torch.zeros(90, dtype=torch.bool), CLASSES)
    with pytest.raises(UserError, match="evaluation split"):
        probe((x, held), (x, nobody), QUICK)
    with pytest.raises(UserError, match="training split"):
        probe((x, nobody), (x, held), QUICK)
