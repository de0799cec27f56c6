"""Targets that a frozen text encoder gives once for a few sentences: a table on the device.

What a step needs of the encoder is picked by row, so that it never runs while a run trains. Tables
are kept in the cache under what made them: a resumed run, and every rank, reads the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from outmodal.data.cache import cache_dir, write_atomic
from outmodal.data.manifest import Dataset, Manifest, Modality
from outmodal.errors import UserError
from outmodal.models.perceptors import Perceptor, PerceptorBase, load_perceptor
from outmodal.models.prompts import encode_texts

GAP = "{}"
SENTENCES = 1000
"""Unrelated sentences of supervision level 1."""

_SUBJECTS = (
    "The old gardener",
    "A tired pilot",
    "My neighbour's cousin",
    "The night train",
    "An honest baker",
    "The third violinist",
    "A lost umbrella",
    "The harbour master",
    "Her younger brother",
    "The quiet librarian",
)
_VERBS = (
    "forgot",
    "repaired",
    "painted",
    "counted",
    "sold",
    "remembered",
    "hid",
    "measured",
    "admired",
    "postponed",
)
_OBJECTS = (
    "the broken clock before breakfast.",
    "seven letters from the ministry.",
    "a wooden boat in the rain.",
    "the longest bridge of the county.",
    "two tickets to the opera.",
    "an argument about the weather.",
    "the recipe for plum dumplings.",
    "a map without any names.",
    "the price of copper in March.",
    "every step of the staircase.",
)


def number_sentences(template: str, count: int) -> list[str]:
    """Return `template` with each of 0 .. count - 1 in its gap.

    >>> number_sentences("This is about class {}.", 2)
    ['This is about class 0.', 'This is about class 1.']

    Raises:
        UserError: The template has no gap, or more than one.
    """
    if template.count(GAP) != 1:
        raise UserError(
            f"method.sentence '{template}' needs {GAP} once, where the number goes, as in "
            "'This is about class {}.'"
        )
    return [template.replace(GAP, str(number)) for number in range(count)]


def unrelated_sentences() -> list[str]:
    """Return 1,000 different sentences that say nothing about any data set."""
    return [f"{s} {v} {o}" for s in _SUBJECTS for v in _VERBS for o in _OBJECTS]


def encode_guide(config: PerceptorBase, sentences: Sequence[str]) -> Tensor:
    """Return [n, d] fp32 features of sentences as the frozen encoder gives them, unscaled.

    From the cache where they are; the encoder is loaded, and freed, only where they are not.

    Raises:
        UserError: The encoder has no weights, or reads no text.
    """
    name = config.reads()
    words = {"sentences": list(sentences), "encoder": config.model_dump(mode="json")}
    words["weights"] = list(_weights(config))
    digest = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
    path = cache_dir() / "guides" / f"{digest[:32]}.safetensors"
    kept = _kept(path, len(sentences))
    if kept is not None:
        return kept
    spec = {name or "text": Modality(kind="text", ext="txt")}
    manifest = Manifest(name="sentences", classes=(), modalities=spec, splits={})
    # a run's weights must not depend on what the cache holds; perceptors are loaded on the CPU
    with torch.random.fork_rng(devices=[]):
        perceptor = _loaded(config, Dataset(Path(), manifest))
        table = encode_texts(perceptor, sentences, raw=True).cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save({"table": table}))
    return table


def _weights(config: PerceptorBase) -> tuple[str, ...]:
    try:
        return tuple(config.identities())
    except UserError as error:
        raise UserError(f"method.helper: {error}") from None


def _loaded(config: PerceptorBase, dataset: Dataset) -> Perceptor:
    try:
        return load_perceptor(config, dataset)
    except UserError as error:
        raise UserError(f"method.helper must be an encoder of text: {error}") from None


def _kept(path: Path, rows: int) -> Tensor | None:
    try:
        table = load_file(path)["table"]
    except (OSError, SafetensorError, KeyError):
        return None
    return table if table.ndim == 2 and len(table) == rows else None
