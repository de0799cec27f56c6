"""CLIP's byte-pair tokens: cleaning, splitting, merging.

The cleaning is what ftfy's `fix_text` does to single characters: quotes, ligatures, wide forms,
control characters. It does not do what ftfy guesses, the repair of text that was decoded as the
wrong encoding ("schÃ¶n").
"""

from __future__ import annotations

import gzip
import html
import html.entities
import json
import re
import unicodedata
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Literal

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from outmodal.errors import UserError

Unescape = Literal["always", "outside_tags"]

START, END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

_TERMINAL = re.compile("\033\\[((?:\\d|;)*)([a-zA-Z])")
_ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")
_C1 = re.compile("[\x80-\x9f]")
_LIGATURES = "ĲĳŉǱǲǳǄǅǆǇǈǉǊǋǌﬀﬁﬂﬃﬄﬅﬆ"


def _character_table() -> dict[int, str | None]:
    """Return what `str.translate` does to ligatures, wide forms, quotes and control characters."""
    table: dict[int, str | None] = {0x3000: " "}
    for code in (*map(ord, _LIGATURES), *range(0xFF01, 0xFFF0)):
        plain = unicodedata.normalize("NFKC", chr(code))
        if plain != chr(code):
            table[code] = plain
    table |= {ord("ŉ"): "ʼn", ord("ﬅ"): "ſt"}
    table |= dict.fromkeys([0x2BC, *range(0x2018, 0x201C)], "'")
    table |= dict.fromkeys(range(0x201C, 0x2020), '"')
    ignored = (*range(9), 0xB, *range(0xE, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF)
    return table | dict.fromkeys((*ignored, *range(0xFFF9, 0xFFFD)), None)


def _entity_table() -> dict[str, str]:
    """Return the named entities, and in capitals those whose name has no other meaning so."""
    named = {f"&{name}": text for name, text in html.entities.html5.items() if name[-1] == ";"}
    shouted = {
        entity.upper(): text.upper()
        for entity, text in named.items()
        if entity == entity.lower() and html.unescape(entity.upper()) == entity.upper()
    }
    return named | shouted


_CHARACTERS = _character_table()
_ENTITIES = _entity_table()


def clean(text: str, unescape: Unescape) -> str:
    """Return `text` mended, unescaped, with single spaces, and in lower case."""
    fixed = _fix(text)
    if unescape == "always":
        fixed = html.unescape(html.unescape(fixed))
    return " ".join(fixed.split()).lower()


def _fix(text: str) -> str:
    """Mend characters line by line, until nothing changes; see ftfy's documentation for why."""
    lines = text.split("\n")
    tag = next((i for i, line in enumerate(lines) if "<" in line), len(lines))
    return "\n".join(_fix_line(line, i < tag) for i, line in enumerate(lines))


def _fix_line(line: str, entities: bool) -> str:
    while True:
        before = line
        if entities:
            line = _ENTITY.sub(_character, line)
        line = _TERMINAL.sub("", _C1.sub(_windows, line)).translate(_CHARACTERS)
        line = line.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        line = unicodedata.normalize("NFC", line)
        if line == before:
            return line


def _character(match: re.Match[str]) -> str:
    entity = match[0]
    if not entity.startswith("&#"):
        return _ENTITIES.get(entity, entity)
    text = html.unescape(entity)
    return entity if ";" in text else text


def _windows(match: re.Match[str]) -> str:
    """Return the character that Windows-1252 has in place of a C1 control, if it has one."""
    return match[0].encode("latin-1").decode("cp1252", "ignore") or match[0]


@lru_cache(maxsize=4)
def load_bpe(folder: Path | None) -> Tokenizer:
    """Return the tokenizer of a CLIP checkpoint's folder, or that of OpenAI's vocabulary.

    Raises:
        UserError: No merges.txt in the folder, or one that is broken.
    """
    folder = None if folder is None else folder.expanduser()
    merges = _merges(folder)
    vocabulary = _vocabulary(folder, merges)
    try:
        model = BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=END)
    except Exception as error:  # the tokenizers library raises bare Exception for a bad vocabulary
        raise UserError(
            f"{folder}: vocab.json and merges.txt do not fit together ({error}): copy both from "
            "one CLIP checkpoint"
        ) from error
    tokenizer = Tokenizer(model)
    split = Split(Regex(_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.add_special_tokens([START, END])
    return tokenizer


def _merges(folder: Path | None) -> list[tuple[str, str]]:
    """Read the pairs in order; a first line that starts with #version is a header."""
    lines = _merges_text(folder).strip().split("\n")
    pairs = []
    for line in lines[lines[0].startswith("#version") :]:
        left, space, right = line.strip().partition(" ")
        if not left or not space or " " in right:
            raise UserError(
                f"{folder}: merges.txt has the line '{line}' where two symbols were expected: "
                "copy it again from a CLIP checkpoint's folder"
            )
        pairs.append((left, right))
    return pairs


def _merges_text(folder: Path | None) -> str:
    if folder is None:
        file = resources.files("outmodal.data") / "clip_vocabulary" / "merges.txt.gz"
        return gzip.decompress(file.read_bytes()).decode()
    path = folder / "merges.txt"
    if not path.is_file():
        raise UserError(
            f"no merges.txt in {folder}: copy it and vocab.json from a CLIP checkpoint's folder, "
            "or leave out `vocabulary`"
        )
    try:
        return path.read_text(encoding="utf-8")
    except ValueError:
        raise UserError(f"{path} is not text in UTF-8: copy it again") from None


def _vocabulary(folder: Path | None, merges: list[tuple[str, str]]) -> dict[str, int]:
    """Return symbol -> id: as vocab.json says, or numbered as CLIP does."""
    if folder is not None and (folder / "vocab.json").is_file():
        return _read_vocabulary(folder / "vocab.json")
    symbols = byte_symbols()
    joined = ["".join(pair) for pair in merges]
    ordered = [*symbols, *(f"{s}</w>" for s in symbols), *joined, START, END]
    return {symbol: number for number, symbol in enumerate(ordered)}


def _read_vocabulary(path: Path) -> dict[str, int]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): copy it again") from None
    if not isinstance(content, dict) or START not in content or END not in content:
        raise UserError(f"{path} is no vocabulary of CLIP: it lacks {START} or {END}")
    return {str(symbol): int(number) for symbol, number in content.items()}


def byte_symbols() -> list[str]:
    """Return the 256 characters that stand for bytes, the printable ones first."""
    printable = [*range(ord("!"), 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printable), *(chr(0x100 + i) for i in range(256 - len(printable)))]
