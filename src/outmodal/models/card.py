"""The model card of an export: README.md with the front matter that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from outmodal import __version__
from outmodal.models.card_usage import usage
from outmodal.models.export_folder import TRAINING, ExportInfo

_RECIPE = f"`{TRAINING}` holds every value of the run; folders of its machine are left out.\n"
_TERMS = (
    "Whoever publishes this encoder chooses its licence. The terms of the training data and of the "
    "frozen encoders above may reach to it: read them first.\n"
)


@dataclass(frozen=True)
class CardInfo:
    """What a run knows about the encoder that it exports.

    Attributes:
        name: Name of the encoder.
        method: Method that trained it.
        data: Name of the data set.
        command: Command line that repeats the run.
        recipe: The run's configuration as YAML, without paths of its machine; the export holds it
            as training.yaml. "" writes none.
        metrics: Metric -> value on the evaluation split.
        perceptors: Identities of the frozen encoders that it was trained against.
        licences: Perceptor -> the licence of its weights, in words.
        details: Further facts, one table row each: seed, epochs, fraction of labels.
        limits: Sentences on what the encoder must not be trusted with.
    """

    name: str
    method: str
    data: str
    command: str
    recipe: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    perceptors: Sequence[str] = ()
    licences: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    limits: Sequence[str] = ()


def render_card(card: CardInfo, info: ExportInfo) -> str:
    """Return the text of README.md."""
    parts = [
        _front_matter(card, info),
        f"# {card.name}\n",
        _summary(card, info),
        usage(info),
        "## Training\n",
        _table({"data": card.data, "method": card.method, **card.details}),
        "Frozen encoders (perceptors) that it was trained against:\n",
        "".join(f"- `{p}`{_licence(card, p)}\n" for p in card.perceptors) or "- none\n",
        "## Metrics\n",
        _table({name: f"{value:.4f}" for name, value in sorted(card.metrics.items())}),
        "## Limits\n",
        "".join(f"- {sentence}\n" for sentence in (*card.limits, *_limits(card, info))),
        "## Repeat\n",
        f"```\n{card.command}\n```\n",
        *([_RECIPE] if card.recipe else []),
        "## Licence\n",
        _TERMS,
        f"Written by outmodal {__version__}.\n",
    ]
    return "\n".join(parts)


def _front_matter(card: CardInfo, info: ExportInfo) -> str:
    content = {
        "library_name": "transformers" if info.forward else "outmodal",
        "tags": ["outmodal", "feature-extraction", info.kind, card.method],
        "datasets": [card.data],
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False)}---\n"


def _summary(card: CardInfo, info: ExportInfo) -> str:
    classes = f" Its classifier knows {len(info.classes)} classes." if info.classifier_norm else ""
    return (
        f"Encoder of the modality `{info.modality}` ({info.kind}), trained by `{card.method}` on "
        f"`{card.data}`: a representation of {info.repr_dim} numbers, an embedding of "
        f"{info.embed_dim}.{classes}\n"
    )


def _limits(card: CardInfo, info: ExportInfo) -> list[str]:
    """What holds for every export."""
    return [
        f"Trained on `{card.data}` only; other recording conditions were not tested.",
        f"Inputs must be prepared as `{info.input.name}` in outmodal.json says.",
        "Checked in fp32 against the trainer's own outputs; lower precision was not.",
    ]


def _table(rows: Mapping[str, str]) -> str:
    if not rows:
        return "None recorded.\n"
    lines = [f"| {name} | {value.replace('|', '/')} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines]) + "\n"


def _licence(card: CardInfo, perceptor: str) -> str:
    return f", licence: {card.licences[perceptor]}" if perceptor in card.licences else ""
