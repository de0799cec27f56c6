"""Combinations of modalities: which there are, and what is shown to a probe of each."""

from __future__ import annotations

import pytest
import torch

from outmodal.errors import UserError
from outmodal.train.combinations import Split, label_of, score_combinations, subsets
from outmodal.train.probing import ProbeConfig, answers
from outmodal.train.representations import Encoded

# One of sight and touch tells the lower bit of the class, the other the higher; sound is noise.
CLASSES = 4
QUICK = ProbeConfig(epochs=40, hidden=32, batch=32, lr=1e-2)


def split_of(samples: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(samples) % CLASSES

    def bit(value: torch.Tensor) -> torch.Tensor:
        return torch.stack([value.float(), 1.0 - value.float()], dim=1) + 0.05 * torch.randn(
            samples, 2, generator=generator
        )

    x = {
        "sight": bit(truth % 2),
        "touch": bit(truth // 2),
        "sound": torch.randn(samples, 3, generator=generator),
    }
    present = {m: torch.ones(samples, dtype=torch.bool) for m in x}
    encoded = Encoded(x, x, present, truth, None)
    return Split(encoded, answers(encoded, "train", CLASSES))


TRAIN, TEST = split_of(160, 0), split_of(80, 1)
EVERY = subsets(("sight", "touch", "sound"))


def test_all_combinations_and_the_ends() -> None:
    names = [label_of(s) for s in EVERY]
    assert names[:3] == ["sight", "touch", "sound"]
    assert names[3:] == ["sight+touch", "sight+sound", "touch+sound", "sight+touch+sound"]
    assert len(subsets("abcdef")) == 63
    assert subsets("abcd", "ends") == [("a",), ("b",), ("c",), ("d",), tuple("abcd")]
    assert subsets("ab", "ends") == subsets("ab", "all")


def test_separate_probes_say_what_each_combination_tells() -> None:
    found = score_combinations(TRAIN, TEST, EVERY, QUICK)
    assert list(found) == [label_of(s) for s in EVERY]
    assert found["sight+touch"] > 0.95
    assert found["sight+touch+sound"] > 0.9
    assert 0.4 < found["sight"] < 0.6
    assert 0.4 < found["touch+sound"] < 0.7
    assert found["sound"] < 0.45


@pytest.mark.parametrize("missing", ["zero_fill", "mean_fill"])
def test_one_probe_with_the_others_filled(missing: str) -> None:
    found = score_combinations(TRAIN, TEST, EVERY, QUICK, missing)  # type: ignore[arg-type]
    separate = score_combinations(TRAIN, TEST, EVERY[-1:], QUICK)
    assert found["sight+touch+sound"] == separate["sight+touch+sound"]
    assert found["sight+touch+sound"] > 0.9
    assert found["sound"] < 0.5
    again = score_combinations(TRAIN, TEST, EVERY, QUICK, missing)  # type: ignore[arg-type]
    assert again == found


def test_the_mean_stands_for_a_modality_that_never_varies() -> None:
    """Where what is left out was constant, filling with its mean loses nothing."""
    x = {m: v.clone() for m, v in TRAIN.encoded.representation.items()}
    x["sound"][:] = 3.0
    encoded = Encoded(x, x, TRAIN.encoded.present, TRAIN.encoded.label, None)
    held = Split(encoded, TRAIN.answers)
    found = score_combinations(held, held, EVERY, QUICK, "mean_fill")
    assert found["sight+touch"] == found["sight+touch+sound"]


def test_a_sample_counts_for_the_combinations_that_it_has() -> None:
    present = {m: p.clone() for m, p in TEST.encoded.present.items()}
    present["touch"][:40] = False
    x = {m: v.clone() for m, v in TEST.encoded.representation.items()}
    x["touch"][:40] = 1e6  # would spoil any score that looked at it
    encoded = Encoded(x, x, present, TEST.encoded.label, None)
    held = Split(encoded, TEST.answers)
    assert int(held.usable(("sight",)).known.sum()) == 80
    assert int(held.usable(("sight", "touch")).known.sum()) == 40
    found = score_combinations(TRAIN, held, [("sight", "touch")], QUICK)
    assert found["sight+touch"] > 0.95


def test_progress_is_reported() -> None:
    seen: list[tuple[int, int]] = []
    one = QUICK.model_copy(update={"epochs": 1})
    score_combinations(TRAIN, TEST, EVERY[:2], one, progress=lambda a, b: seen.append((a, b)))
    assert seen == [(0, 2), (1, 2)]


def test_unknown_and_absent_modalities() -> None:
    with pytest.raises(UserError, match="no encoder of 'touhc'; did you mean 'touch'"):
        score_combinations(TRAIN, TEST, [("touhc",)], QUICK)
    never = {m: p if m != "sound" else torch.zeros_like(p) for m, p in TEST.encoded.present.items()}
    encoded = Encoded(
        TEST.encoded.representation, TEST.encoded.unit, never, TEST.encoded.label, None
    )
    for missing in ("separate", "zero_fill"):
        with pytest.raises(UserError, match="evaluation split"):
            score_combinations(
                TRAIN,
                Split(encoded, TEST.answers),
                [("sight", "sound")],
                QUICK,
                missing,
            )
