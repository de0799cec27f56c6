"""Batches: what `to` finishes, what stays zero, parts and joins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from outmodal.data.batch import Batch

CPU = torch.device("cpu")


def finish(x: Tensor, keys: Tensor) -> Tensor:
    """A stand-in that shows the rows' keys."""
    return x.float() / 255 + keys.float()[:, None]


def batch(**changes: Any) -> Batch:
    fields: dict[str, Any] = {
        "index": torch.arange(4),
        "label": torch.zeros(4, dtype=torch.int64),
        "x": {"image": torch.full((4, 3), 255, dtype=torch.uint8), "pose": torch.ones(4, 2)},
        "present": {"image": torch.tensor([1, 0, 1, 1]).bool(), "pose": torch.ones(4).bool()},
        "valid": torch.ones(4, dtype=torch.bool),
        "key": torch.tensor([10, 20, 30, 0]),
        "later": {"image": finish},
    }
    return Batch(**{**fields, **changes})


def test_to_finishes_once_and_absent_rows_stay_zero() -> None:
    done = batch().to(CPU)
    assert done.x["image"].tolist() == [[11.0] * 3, [0.0] * 3, [31.0] * 3, [1.0] * 3]
    assert torch.equal(done.x["pose"], torch.ones(4, 2))
    assert not done.later
    again = done.to(CPU, torch.bfloat16)
    assert again.x["image"].dtype == torch.bfloat16
    assert again.x["image"][0, 0] == 11.0


def test_the_type_is_that_of_the_finished_input() -> None:
    done = batch().to(CPU, torch.bfloat16)
    assert done.x["image"].dtype == done.x["pose"].dtype == torch.bfloat16


def test_rows_finish_alike_in_parts_and_as_a_whole() -> None:
    whole, parts = batch().to(CPU), [batch().rows(slice(0, 1)), batch().rows(slice(1, 4))]
    joined = Batch.concat([part.to(CPU) for part in parts])
    assert torch.equal(joined.x["image"], whole.x["image"])
    later = Batch.concat(parts).to(CPU)
    assert torch.equal(later.x["image"], whole.x["image"])
    assert later.key.tolist() == [10, 20, 30, 0]


def test_one_modality_can_be_finished_alone() -> None:
    there = batch().present["image"]
    one = batch().rows(there).finish_one("image", CPU)
    assert one[:, 0].tolist() == [11.0, 31.0, 1.0]


def test_keys_are_zero_where_they_are_not_given() -> None:
    assert batch(key=None).key.tolist() == [0, 0, 0, 0]


def test_a_batch_without_inputs_moves() -> None:
    assert batch(x={}).to(CPU).x == {}
