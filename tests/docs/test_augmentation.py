"""The page of augmentations names every one, with its stage, its keys and their defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic_core import PydanticUndefined

from outmodal.data.augment import AnyAugment, Augment
from outmodal.data.inputs import ImageInput

PAGE = (Path(__file__).parents[2] / "docs" / "augmentation.md").read_text("utf-8")
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines()]
OPTIONS: tuple[type[Augment], ...] = get_args(AnyAugment)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: str(o.model_fields["name"].default))
def test_every_augmentation_is_described(option: type[Augment]) -> None:
    name = option.model_fields["name"].default
    (row,) = [r for r in ROWS if len(r) == 4 and f"`{name}`" in r[0]]
    assert row[1] == option.stage
    for key, field in option.model_fields.items():
        if key == "name" or (key == "p" and field.default == 1.0):
            continue
        found = re.search(rf"`{key}` (\[[^]]*\]|[^,\s]+)|`{key}`,", row[2])
        assert found is not None, key
        if field.default is PydanticUndefined:
            continue
        said = yaml.safe_load(found[1])
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        assert said == pytest.approx(default, abs=1e-3) if key != "fill" else str(default) in row[2]


def test_the_example_is_a_configuration() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    made = ImageInput.model_validate(yaml.safe_load(block)["input"])
    assert [step.stage for step in made.augment] == ["sample", "batch", "batch", "last"]
