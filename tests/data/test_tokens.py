"""Vocabularies repeat, cover unseen words, and load in transformers."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast

from outmodal.data.decode import DecodeError
from outmodal.data.inputs import TokenInput
from outmodal.data.tokens import SPECIALS, fit_tokenizer, load_tokenizer
from outmodal.data.wordpiece import fit_vocabulary
from outmodal.errors import UserError
from tests.data.tiny import make_tiny

TEXTS = [
    "a photo of a sandal",
    "this is a Sandal",
    "worn without socks on hot days",
    "light athletic footwear with cushioning",
    "warm footwear for winter days",
    "a warm coat, worn in winter",
] * 3
FIT = """
import json, sys
from collections import Counter
from outmodal.data.wordpiece import fit_vocabulary
print(json.dumps(fit_vocabulary(Counter(sys.argv[2:]), 150, json.loads(sys.argv[1]))))
"""


def test_other_processes_fit_the_same_vocabulary() -> None:
    words = " ".join(TEXTS).lower().replace(",", " ,").split()
    outputs = []
    for seed, order in (("1", words), ("2", words[::-1])):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", FIT, json.dumps(SPECIALS), *order]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        outputs.append(json.loads(done.stdout))
    here = fit_tokenizer(TEXTS, 150).get_vocab()
    assert outputs == [sorted(here, key=lambda piece: here[piece])] * 2
    assert fit_tokenizer(TEXTS, 150).to_str() == fit_tokenizer(TEXTS[::-1], 150).to_str()


@settings(max_examples=40, deadline=None)
@given(
    words=st.dictionaries(st.text("abcd", min_size=1, max_size=8), st.integers(1, 9), max_size=30),
    size=st.integers(6, 60),
)
def test_vocabulary_size_order_and_spelling(words: dict[str, int], size: int) -> None:
    vocabulary = fit_vocabulary(words, size, SPECIALS)
    shuffled = dict(sorted(words.items(), reverse=True))
    assert vocabulary == fit_vocabulary(shuffled, size, SPECIALS)
    assert vocabulary[: len(SPECIALS)] == list(SPECIALS)
    assert len(set(vocabulary)) == len(vocabulary) <= size
    joined = set(words)
    for piece in vocabulary[len(SPECIALS) :]:
        assert any(piece.removeprefix("##") in word for word in joined)


def slow_merges(words: dict[str, int], steps: int) -> list[str]:
    """Byte-pair merges by recounting everything at each step."""
    spelled = {w: [c if i == 0 else "##" + c for i, c in enumerate(w)] for w in words}
    made = []
    for _ in range(steps):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in spelled.items():
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
        ranked = sorted((p for p in pairs if pairs[p] >= 2), key=lambda p: (-pairs[p], p))
        if not ranked:
            break
        best = ranked[0]
        merged = best[0] + best[1].removeprefix("##")
        made.append(merged)
        for word, pieces in spelled.items():
            out: list[str] = []
            for piece in pieces:
                if out and (out[-1], piece) == best:
                    out[-1] = merged
                else:
                    out.append(piece)
            spelled[word] = out
    return made


@settings(max_examples=40, deadline=None)
@given(words=st.dictionaries(st.text("ab", min_size=1, max_size=7), st.integers(1, 5), max_size=12))
def test_merges_equal_a_plain_recount(words: dict[str, int]) -> None:
    letters = {c if i == 0 else "##" + c for w in words for i, c in enumerate(w)}
    vocabulary = fit_vocabulary(words, 10_000, SPECIALS)
    merges = vocabulary[len(SPECIALS) + len(letters) :]
    assert merges == list(dict.fromkeys(slow_merges(words, 1000)))


def test_unseen_words_are_spelled() -> None:
    tokenizer = fit_tokenizer(TEXTS, 300)
    pieces = tokenizer.encode("Foothold sandals").tokens
    assert pieces[0] == "[CLS]"
    assert pieces[-1] == "[SEP]"
    assert "[UNK]" not in pieces
    assert "sandal" in pieces
    assert tokenizer.encode("中").tokens[1] == "[UNK]"


def test_shape_padding_and_truncation(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data", modalities=("text",))
    transform = TokenInput(length=6, vocab_size=200).build(dataset, "text", None)
    short, long = transform("red", "k"), transform("a red thing " * 20, "k")
    assert short.dtype == torch.int64
    assert short.shape == long.shape == transform.shape == (6,)
    cls, sep = SPECIALS.index("[CLS]"), SPECIALS.index("[SEP]")
    assert short[0] == long[0] == cls
    assert long[-1] == sep
    assert short.tolist()[2:] == [sep, 0, 0, 0]
    assert transform("", "k").tolist() == [cls, sep, 0, 0, 0, 0]
    assert transform.zeros().tolist() == [0] * 6
    assert transform.zeros().dtype == torch.int64
    copy = pickle.loads(pickle.dumps(transform))  # noqa: S301
    assert torch.equal(copy("a red thing", "k"), transform("a red thing", "k"))
    with pytest.raises(DecodeError, match="expected text"):
        transform(np.zeros(3), "k")


def test_a_run_folder_keeps_its_tokenizer(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data", modalities=("text",))
    run = tmp_path / "run"
    config = TokenInput(length=8, vocab_size=200)
    first = config.build(dataset, "text", run)
    stored = (run / "tokenizer-text" / "tokenizer.json").read_bytes()
    assert sorted(p.name for p in (run / "tokenizer-text").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    again = config.build(None, "text", run)
    text = "a pink thing number 3"
    assert torch.equal(first(text, "k"), again(text, "k"))
    assert (run / "tokenizer-text" / "tokenizer.json").read_bytes() == stored


def test_export_folder_loads_in_transformers(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data", modalities=("text",))
    transform = TokenInput(length=8, vocab_size=200).build(dataset, "text", None)
    export = tmp_path / "export"
    transform.save(export)
    # beside a model's config.json, as an export has it
    BertConfig().save_pretrained(export)
    text = "A RED thing, number 7"
    for loaded in (
        AutoTokenizer.from_pretrained(export),
        PreTrainedTokenizerFast.from_pretrained(export),
    ):
        ids = loaded(text, padding="max_length", truncation=True, max_length=8)["input_ids"]
        assert ids == transform(text, "k").tolist()
        assert loaded.pad_token_id == 0
        assert loaded.model_max_length == 8
    rebuilt = TokenInput(length=8, vocab_size=200).build(None, "text", export)
    assert torch.equal(rebuilt(text, "k"), transform(text, "k"))


def test_given_tokenizer_folder(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data", modalities=("text",))
    given_folder = tmp_path / "given"
    TokenInput(length=8, vocab_size=300).build(dataset, "text", None).save(given_folder)
    config = TokenInput(length=5, vocab_size=300, tokenizer=given_folder)
    transform = config.build(None, "text", tmp_path / "run")
    assert transform("red", "k").shape == (5,)
    assert (tmp_path / "run" / "tokenizer-text" / "tokenizer.json").is_file()
    with pytest.raises(UserError, match="set vocab_size to"):
        TokenInput(vocab_size=10, tokenizer=given_folder).build(None, "text", None)


def test_missing_broken_and_odd_tokenizers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer at .*tokenizer\.json"):
        TokenInput(tokenizer=tmp_path).build(None, "text", None)
    with pytest.raises(UserError, match="no tokenizer for 'text'"):
        TokenInput().build(None, "text", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer file"):
        load_tokenizer(tmp_path / "tokenizer.json")
    odd = fit_tokenizer(TEXTS, 100).to_str().replace("[PAD]", "[NUL]")
    (tmp_path / "tokenizer.json").write_text(odd)
    with pytest.raises(UserError, match=r"id 0 is \[PAD\]"):
        TokenInput().build(None, "text", tmp_path)


def test_wrong_kind(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path / "data", modalities=("image",))
    with pytest.raises(UserError, match=r"reads text, but modality 'image' .* is image"):
        TokenInput().build(dataset, "image", None)
