"""Tokens: cleaning, truncation, vocabularies."""

from __future__ import annotations

import gzip
import json
import logging
import pickle
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from outmodal.data.clip_bpe import clean, load_bpe
from outmodal.data.decode import DecodeError
from outmodal.data.perceptor_inputs import ClipTokenInput, perceptor_input
from outmodal.data.perceptor_inputs.text import ClipTokens
from outmodal.errors import UserError


def build(**settings: object) -> ClipTokens:
    made = ClipTokenInput(**settings).build(None, "caption", None)
    assert isinstance(made, ClipTokens)
    return made


def test_long_texts_are_cut_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    made = build(context=6)
    with caplog.at_level(logging.WARNING):
        long = [made("one two three four five", "") for _ in range(3)]
    assert long[0].tolist()[0] == 49406
    assert long[0].tolist()[-1] == 49407
    assert made.truncated.count == 3
    assert len(caplog.records) == 1
    assert "7 tokens, and the perceptor reads 6" in caplog.text
    made("one two three four", "")
    assert made.truncated.count == 3


def test_padding_differs_between_the_perceptors() -> None:
    for family, padding in (("imagebind", 0), ("languagebind", 49407)):
        made = perceptor_input(family, "text").build(None, "caption", None)
        assert made("A dog.", "").tolist() == [49406, 320, 1929, 269, 49407] + [padding] * 72
        assert made.zeros().tolist() == [49406, 49407] + [padding] * 75


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("“Quoted” ‘single’", "\"quoted\" 'single'"),
        ("ﬁne ﬂow Ｆｕｌｌ", "fine flow full"),
        ("a\u0000b\ufeff \x1b[1mbold\x1b[0m", "ab bold"),
        ("e\u0301 \x93x\x94", 'é "x"'),
        ("  many \t\n spaces ", "many spaces"),
        ("\ud83d\ude00 \ud800", "😀 �"),
        ("&EACUTE; &eacute; &#39; &nothing;", "é é ' &nothing;"),
    ],
)
def test_cleaning(text: str, cleaned: str) -> None:
    assert clean(text, "outside_tags") == cleaned


def test_entities_of_texts_with_tags() -> None:
    assert clean("<b> &amp;lt;", "outside_tags") == "<b> &amp;lt;"
    assert clean("<b> &amp;lt;", "always") == "<b> <"


@given(st.text(max_size=60))
def test_any_text_gives_tokens(text: str) -> None:
    tokens = build()(text, "")
    assert tokens.shape == (77,)
    assert tokens.min() >= 0
    assert tokens.max() == 49407


def test_vocabulary_of_a_checkpoint_folder(tmp_path: Path) -> None:
    """The ids are those of transformers' tokenizer, from the files that it saves."""
    shipped = resources.files("outmodal.data") / "clip_vocabulary" / "merges.txt.gz"
    merges = gzip.decompress(shipped.read_bytes()).decode().split("\n")[:201]
    (tmp_path / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    plain = build(vocabulary=tmp_path)
    symbols = plain.tokenizer.get_vocab()
    shuffled = dict(zip(sorted(symbols), range(len(symbols)), strict=True))
    (tmp_path / "vocab.json").write_text(json.dumps(shuffled), encoding="utf-8")
    load_bpe.cache_clear()
    made = build(vocabulary=tmp_path)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    for text in ("a photo of the other", "don't 12 it's", "ünïcode 日本 😀!"):
        ids = theirs(text)["input_ids"]
        assert made(text, "").tolist()[: len(ids)] == ids
    assert len(symbols) == 512 + 200 + 2


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no merges.txt"),
        ({"merges.txt": "#version: 0.2\ni n\nthree are here"}, "'three are here'"),
        ({"merges.txt": "i n", "vocab.json": "{"}, "not JSON"),
        ({"merges.txt": "i n", "vocab.json": "{}"}, "lacks"),
        (
            {"merges.txt": "i n", "vocab.json": '{"<|startoftext|>": 0, "<|endoftext|>": 1}'},
            "do not fit together",
        ),
    ],
)
def test_broken_vocabularies(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        build(vocabulary=tmp_path)


def test_arrays_are_refused() -> None:
    with pytest.raises(DecodeError):
        build()(np.zeros(3), "")


def test_it_can_be_sent_to_a_worker() -> None:
    made = build()
    again = pickle.loads(pickle.dumps(made))  # noqa: S301
    assert again("a photo", "").equal(made("a photo", ""))
