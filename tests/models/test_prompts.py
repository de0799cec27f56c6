"""Prompt tables: equal texts once, means of several prompts, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from outmodal.data.inputs import TokenInput
from outmodal.errors import UserError
from outmodal.models import prompts as module
from outmodal.models.perceptors import FrozenPerceptor, HubPerceptor, load_perceptor
from outmodal.models.prompts import PromptTable, class_prompts, encode_texts, number_prompts
from tests.data.tiny import make_tiny
from tests.models.hub_models import clip


class Counting(torch.nn.Module):
    """Embeds tokens, and counts rows."""

    rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return torch.stack([x.sum(1), x.float().std(1), x.float().mean(1) + 1], 1).float()


@pytest.fixture
def tower() -> Counting:
    return Counting()


@pytest.fixture
def perceptor(tower: Counting, tmp_path: Path) -> FrozenPerceptor:
    dataset = make_tiny(tmp_path / "data", 12, 1, ("text",), test=2)
    transform = TokenInput(length=8, vocab_size=200).build(dataset, "text", None)
    return FrozenPerceptor("text", "counting:1", transform, tower, dim=3)


def test_equal_texts_are_encoded_once_and_rows_follow_the_texts(
    tower: Counting, perceptor: FrozenPerceptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH", 2)
    e = encode_texts(perceptor, ["a red thing", "a blue thing", "a red thing", "a thing"])
    assert tower.rows == 3
    assert e.shape == (4, 3)
    assert not e.requires_grad
    torch.testing.assert_close(e.norm(dim=1), torch.ones(4))
    assert torch.equal(e[0], e[2])
    torch.testing.assert_close(e[1], encode_texts(perceptor, ["a blue thing"])[0])


def test_a_table_holds_means_of_prompts_at_unit_length_if_asked(
    perceptor: FrozenPerceptor,
) -> None:
    texts = class_prompts(["red", "light_blue"], ["a {} thing", "the {} one"])
    assert texts == ["a red thing", "the red one", "a light blue thing", "the light blue one"]
    e = encode_texts(perceptor, texts)
    mean = PromptTable.build(perceptor, texts, each=2, unit=False)
    torch.testing.assert_close(mean.vectors[1], (e[2] + e[3]) / 2)
    table = PromptTable.build(perceptor, texts, each=2).to(torch.device("cpu"))
    torch.testing.assert_close(table.vectors, torch.nn.functional.normalize(mean.vectors))
    assert (len(table), table.perceptor, table.prompts[0]) == (2, "counting:1", tuple(texts[:2]))
    assert torch.equal(table.rows(torch.tensor([1, 0, 1])), table.vectors[[1, 0, 1]])


def test_numbers_say_nothing_but_the_number() -> None:
    assert number_prompts(2) == ["This is about class #0.", "This is about class #1."]


def test_mistakes_are_explained(perceptor: FrozenPerceptor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text to encode"):
        encode_texts(perceptor, [])
    with pytest.raises(UserError, match="3 prompts do not make rows of 2"):
        PromptTable.build(perceptor, ["a", "b", "c"], each=2)
    with pytest.raises(UserError, match="no classes"):
        class_prompts([], ["{}"])
    with pytest.raises(UserError, match=r"needs \{\} once"):
        class_prompts(["a"], ["a photo"])
    with pytest.raises(UserError, match="name at least one"):
        class_prompts(["a"], [])
    dataset = make_tiny(tmp_path / "pictures", 4, 1, ("image",), test=2)
    picture = load_perceptor(
        HubPerceptor(modality="image", path=str(clip(tmp_path / "clip"))), dataset
    )
    with pytest.raises(UserError, match="does not read the text 'a red thing'"):
        encode_texts(picture, ["a red thing"])
