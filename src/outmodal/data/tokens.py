"""Input for text: token ids from a vocabulary that the training texts gave, or from a folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from outmodal.data.augment import Form, Pipeline
from outmodal.data.augment.text import templates
from outmodal.data.cache import write_atomic
from outmodal.data.decode import DecodeError
from outmodal.data.manifest import Dataset
from outmodal.data.transform import BaseInput, Transform, Value, fit_values
from outmodal.data.wordpiece import LONGEST_WORD, fit_vocabulary
from outmodal.errors import UserError

if TYPE_CHECKING:
    from outmodal.data.draws import Draw

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FIT_TEXTS = 100_000
FILE = "tokenizer.json"


class TokenInput(BaseInput):
    """Token ids [length] int64: [CLS], the text's pieces, [SEP], then padding with 0.

    The tokenizer is, in this order: the one in FOLDER/tokenizer-MODALITY or FOLDER of the run or
    export; the one that `tokenizer` names; a lower-casing WordPiece vocabulary fitted to the first
    100,000 training texts. The last two are saved in FOLDER/tokenizer-MODALITY.

    Attributes:
        length: Tokens; longer texts lose their end.
        vocab_size: Most entries that a fitted vocabulary may have, and at least as many as a given
            tokenizer has; the learner's embedding table has this many rows.
        tokenizer: Folder with a tokenizer.json whose padding id is 0.
    """

    kinds: ClassVar[tuple[str, ...]] = ("text",)
    forms: ClassVar[tuple[Form, ...]] = ("text",)
    name: Literal["tokens"] = "tokens"
    length: int = Field(default=24, ge=3)
    vocab_size: int = Field(default=2048, gt=len(SPECIALS))
    tokenizer: Path | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    def build(self, dataset: Dataset | None, modality: str, folder: Path | None) -> Transform:
        self.spec(dataset, modality)
        kept = _kept(modality, folder)
        if kept is not None:
            return TokenTransform(self, load_tokenizer(kept))
        if self.tokenizer is not None:
            tokenizer = load_tokenizer(self.tokenizer / FILE)
        elif dataset is not None:
            values = fit_values(dataset, modality, FIT_TEXTS)
            texts = [str(v) for _, v in values]
            around = templates((*self.augment, *self.strong))
            # each sentence as often as training will show it: a rare word is left in pieces
            often = max(2, len(texts) // max(1, len(around)))
            tokenizer = fit_tokenizer([*texts, *around * often], self.vocab_size)
        else:
            raise UserError(
                f"no tokenizer for '{modality}': expected {FILE} in {folder}, a tokenizer folder "
                "in the input's config, or a data set to fit one to"
            )
        transform = TokenTransform(self, tokenizer)
        if folder is not None:
            transform.save(folder / f"tokenizer-{modality}")
        return transform


class TokenTransform(Transform):
    """Texts to [length] int64; saved as PreTrainedTokenizerFast.

    Raises:
        UserError: The tokenizer has more entries than the configuration says, or does not pad
            with 0.
    """

    def __init__(self, config: TokenInput, tokenizer: Tokenizer) -> None:
        super().__init__(config, config.shape, torch.int64)
        self.pipeline = Pipeline(config.augment, config.strong)
        self.random = self.pipeline.random
        size = tokenizer.get_vocab_size()
        if size > config.vocab_size:
            raise UserError(
                f"the tokenizer has {size} entries, more than the input's vocab_size "
                f"{config.vocab_size}: set vocab_size to {size}"
            )
        self.plain = tokenizer.to_str(pretty=True)
        pad = next((t for t in ("[PAD]", "<pad>") if tokenizer.token_to_id(t) == 0), None)
        if pad is None:
            raise UserError(
                "expected a tokenizer whose id 0 is [PAD] or <pad>, got "
                f"'{tokenizer.id_to_token(0)}': leave out `tokenizer` to fit one"
            )
        self.pad = pad
        self.tokenizer = tokenizer
        tokenizer.enable_truncation(max_length=config.length)
        tokenizer.enable_padding(length=config.length, pad_id=0, pad_token=pad)

    def __call__(self, value: Value, key: str) -> Tensor:
        if not isinstance(value, str):
            raise DecodeError(f"expected text, got an array of shape {value.shape}")
        return torch.tensor(self.tokenizer.encode(value).ids, dtype=torch.int64)

    def compact(self, value: Value, key: str, draw: Draw | None = None) -> Tensor:
        return self(self.pipeline.sample(value, key, draw), key)

    def blank(self, raw: bool = False) -> Tensor:
        return self(" ", "")

    def save(self, folder: Path) -> None:
        super().save(folder)
        known = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "pad": self.pad}
        content: dict[str, object] = {
            f"{role}_token": token
            for role, token in known.items()
            if self.tokenizer.token_to_id(token) is not None
        }
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
        content["model_max_length"] = self.shape[0]
        # tokenizer.json last: its presence says that the folder is complete. Ranks that write the
        # same folder at once write the same bytes.
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        write_atomic(folder / "tokenizer_config.json", text.encode())
        write_atomic(folder / FILE, self.plain.encode())


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, or raise UserError."""
    if not path.is_file():
        raise UserError(
            f"no tokenizer at {path}: expected a folder with {FILE}, as "
            "PreTrainedTokenizerFast.save_pretrained writes it"
        )
    try:
        tokenizer: Tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the tokenizers library raises bare Exception for a bad file
        raise UserError(f"{path} is not a tokenizer file ({error}): save it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def fit_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Fit a lower-casing WordPiece tokenizer: the same texts give the same vocabulary."""
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    words: Counter[str] = Counter()
    for text, count in Counter(texts).items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            words[word] += count
    pieces = fit_vocabulary(words, vocab_size, SPECIALS)
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    model = WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    cls, sep = SPECIALS.index("[CLS]"), SPECIALS.index("[SEP]")
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def _kept(modality: str, folder: Path | None) -> Path | None:
    """Return the tokenizer file that a run or export folder holds for a modality."""
    if folder is None:
        return None
    places = (folder / f"tokenizer-{modality}" / FILE, folder / FILE)
    return next((p for p in places if p.is_file()), None)
