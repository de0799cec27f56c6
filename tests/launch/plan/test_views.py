"""Planning methods that ask for views, for larger batches, or for no step at all."""

from __future__ import annotations

from typing import Any

import pytest

from outmodal.errors import UserError
from outmodal.launch.config import RunConfig
from outmodal.launch.plan.subject import Subject
from tests.launch.plan.recipes import vit_config


def planned(method: dict[str, Any]) -> Subject:
    values = vit_config(width=32, depth=2).model_dump(mode="json")
    values["learners"][0]["input"] |= {
        "augment": [{"name": "hflip"}],
        "strong": [{"name": "vflip"}],
    }
    values["method"] = {"unknown": "image", "label_fraction": 0.1, **method}
    return Subject(RunConfig.model_validate(values))


def test_views_and_larger_streams_are_counted() -> None:
    labelled = planned({"name": "erm"}).step_costs(8).flops.sum()
    moco = planned({"name": "moco"}).step_costs(8).flops.sum()
    freematch = planned({"name": "freematch", "unlabelled_ratio": 2}).step_costs(8).flops.sum()
    # forward and backward are three forwards; the key has the forward alone
    assert moco == pytest.approx(labelled * 7 / 3, rel=0.1)
    assert freematch == pytest.approx(labelled * 5, rel=0.1)


def test_a_method_without_steps_is_refused() -> None:
    with pytest.raises(UserError, match="'random' trains nothing, so there are no steps to plan"):
        planned({"name": "random"})
