"""The words of the two splits do not meet, and descriptions keep the name to themselves."""

from __future__ import annotations

import pytest

from outmodal.data.build.fashion_words import CLASSES, NAMES, TEST, TRAIN, Wording


def test_no_voice_is_in_both_splits() -> None:
    assert not set(TRAIN.variants) & set(TEST.variants)


def test_no_template_is_in_both_splits() -> None:
    assert not set(TRAIN.templates) & set(TEST.templates)


def test_no_description_is_in_both_splits() -> None:
    described = [{text for row in w.descriptions for text in row} for w in (TRAIN, TEST)]
    assert not described[0] & described[1]


@pytest.mark.parametrize("wording", [TRAIN, TEST])
def test_descriptions_do_not_name_their_class(wording: Wording) -> None:
    assert len(wording.descriptions) == len(CLASSES) == len(NAMES)
    for texts, names in zip(wording.descriptions, NAMES, strict=True):
        for text in texts:
            assert not set(names) & set(text.replace(",", "").split())


@pytest.mark.parametrize("wording", [TRAIN, TEST])
def test_nothing_is_listed_twice(wording: Wording) -> None:
    texts = [text for row in wording.descriptions for text in row]
    for listed in (wording.accents, wording.variants, wording.templates, texts):
        assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("wording", [TRAIN, TEST])
def test_every_phrase_has_one_place_for_a_name(wording: Wording) -> None:
    for phrase in (*wording.carriers, *wording.templates):
        assert phrase.count("{}") == 1
