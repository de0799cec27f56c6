"""An encoder that was trained with augmentation is exported without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from outmodal.data.inputs import ImageInput, LogMelInput
from outmodal.models.export import export_encoder
from outmodal.models.export_folder import RECORD, load_export
from outmodal.models.learners import LearnerBase, build_learner
from tests.models.encoders import CARD, LEARNERS, MEL

STEPS: Any = ({"name": "random_resized_crop"}, {"name": "hflip"})
CASES: dict[str, Any] = {
    "picture": ("resnet", ImageInput(size=(12, 12), augment=STEPS, strong=STEPS[:1])),
    "sound": (
        "vit_mel",
        LogMelInput(
            **{**MEL.model_dump(), "window": "random", "augment": [{"name": "spec_augment"}]}
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_exports_hold_no_augmentation(case: str, tmp_path: Path) -> None:
    name, given = CASES[case]
    config: LearnerBase = LEARNERS[name].model_copy(update={"input": given})
    learner = build_learner(config)
    transform = given.build(None, config.modality, None)
    x = torch.randn(4, *transform.shape)
    learner.train()(x)
    folder = export_encoder(
        learner,
        transform,
        tmp_path / "out",
        head=None,
        classifier=None,
        classes=("a", "b"),
        card=CARD,
        sample_inputs=x,
    )
    record = json.loads((folder / RECORD).read_text())
    for stored in (record["input"], record["learner"]["input"]):
        assert stored["augment"] == stored["strong"] == []
    assert load_export(folder).transform().config == given.plain()
