"""The model card of an export: README.md with the front matter that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from outmodal import __version__
from outmodal.models.export_folder import CHECK, CLASSIFIER, HEAD, ExportInfo


@dataclass(frozen=True)
class CardInfo:
    """What a run knows about the encoder that it exports.

    Attributes:
        name: Name of the encoder.
        method: Method that trained it.
        data: Name of the data set.
        command: Command line that repeats the run.
        metrics: Metric -> value on the evaluation split.
        perceptors: Identities of the frozen encoders that it was trained against.
        details: Further facts, one table row each: seed, epochs, fraction of labels.
        limits: Sentences on what the encoder must not be trusted with.
    """

    name: str
    method: str
    data: str
    command: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    perceptors: Sequence[str] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    limits: Sequence[str] = ()


def render_card(card: CardInfo, info: ExportInfo) -> str:
    """Return the text of README.md."""
    parts = [
        _front_matter(card, info),
        f"# {card.name}\n",
        _summary(card, info),
        "## Use\n",
        _usage(info),
        "## Training\n",
        _table({"data": card.data, "method": card.method, **card.details}),
        "Frozen encoders (perceptors) that it was trained against:\n",
        "".join(f"- `{p}`\n" for p in card.perceptors) or "- none\n",
        "## Metrics\n",
        _table({name: f"{value:.4f}" for name, value in sorted(card.metrics.items())}),
        "## Limits\n",
        "".join(f"- {sentence}\n" for sentence in (*card.limits, *_limits(card, info))),
        "## Repeat\n",
        f"```\n{card.command}\n```\n",
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
    ]


def _table(rows: Mapping[str, str]) -> str:
    if not rows:
        return "None recorded.\n"
    lines = [f"| {name} | {value.replace('|', '/')} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines]) + "\n"


def _usage(info: ExportInfo) -> str:
    """A program that runs as it stands in the export's folder."""
    if info.forward is None:
        return (
            f"transformers has no `{info.learner.name}`: config.json names the architecture "
            f"`outmodal-{info.learner.name}`, and outmodal loads it:\n\n"
            "```python\nfrom pathlib import Path\n\n"
            "from outmodal.models.export_folder import load_export\n\n"
            'encoder = load_export(Path("."))\n'
            f"outputs = encoder.outputs(x)  # x: [B, {_shape(info)}]\n```\n"
        )
    lines = [
        "import torch",
        "from safetensors.torch import load_file",
        "from transformers import AutoModel",
        "",
        'backbone = AutoModel.from_pretrained(".").eval()',
        f'check = load_file("{CHECK}")',
        f'x = check["inputs"]  # [B, {_shape(info)}]',
        "with torch.no_grad():",
        *(f"    {line}" for line in representation_lines(info)),
        'print((r - check["repr"]).abs().max())  # about 0',
        *embedding_lines(info),
        'print((e - check["embedding"]).abs().max())  # about 0',
        *_logit_lines(info),
    ]
    return "```python\n" + "\n".join(lines) + "\n```\n"


def _shape(info: ExportInfo) -> str:
    return ", ".join(str(n) for n in info.input.shape)


def representation_lines(info: ExportInfo) -> list[str]:
    """Python that makes r from backbone and x."""
    assert info.forward is not None
    call = f"backbone({info.forward.argument}=x"
    lines = []
    if info.forward.pad_token is not None:
        lines = [f"mask = (x != {info.forward.pad_token}).long()", "mask[:, 0] = 1"]
        call += ", attention_mask=mask"
    if info.pool == "pooler":
        return [*lines, f"r = {call}).pooler_output.flatten(1)"]
    lines.append(f"hidden = {call}).last_hidden_state")
    if info.pool == "cls":
        return [*lines, "r = hidden[:, 0]"]
    if info.forward.pad_token is None:
        return [*lines, "r = hidden.mean(1)"]
    return [*lines, "r = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)"]


def embedding_lines(info: ExportInfo) -> list[str]:
    """Python that makes e from r."""
    if info.head is None:
        return ["e = r"]
    lines = [f'head = load_file("{HEAD}")']
    first = 'torch.nn.functional.linear(r, head["layers.0.weight"], head["layers.0.bias"])'
    if info.head.kind == "linear":
        return [*lines, f"e = {first}"]
    return [
        *lines,
        f"e = {first}",
        f"e = torch.nn.functional.layer_norm(e, ({info.head.hidden},), "
        'head["layers.1.weight"], head["layers.1.bias"])',
        "e = torch.nn.functional.gelu(e)",
        'e = torch.nn.functional.linear(e, head["layers.3.weight"], head["layers.3.bias"])',
    ]


def _logit_lines(info: ExportInfo) -> list[str]:
    if info.classifier_norm is None:
        return []
    unit = "z = torch.nn.functional.normalize(e, dim=-1, eps=1e-6)"
    scaled = {"none": "z = e", "l2": unit, "l2_sqrtd": f"{unit} * {info.embed_dim}**0.5"}
    return [
        f'classifier = load_file("{CLASSIFIER}")',
        scaled[info.classifier_norm],
        'logits = torch.nn.functional.linear(z, classifier["weight"], classifier["bias"])',
    ]
