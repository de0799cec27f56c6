"""The part of a model card that shows how to use the folder: programs that run as they stand."""

from __future__ import annotations

from outmodal.models.export_folder import CHECK, CLASSIFIER, HEAD, ExportInfo
from outmodal.models.graph import GRAPH_FILES


def usage(info: ExportInfo) -> str:
    """Return the sections on use."""
    sections = ["## Use\n", _ours(info) if info.forward is None else _theirs(info)]
    sections.append(_library(info))
    if info.head is not None or info.classifier_norm is not None:
        sections += ["### Head and classifier alone\n", _parts(info)]
    if GRAPH_FILES["onnx"] in info.files:
        sections += ["### ONNX\n", _onnx(info)]
    if GRAPH_FILES["torch"] in info.files:
        sections += ["### torch.export\n", _program(info)]
    return "\n".join(sections)


def _python(lines: list[str]) -> str:
    return "```python\n" + "\n".join(lines) + "\n```\n"


def _shape(info: ExportInfo) -> str:
    return ", ".join(str(n) for n in info.input.shape)


def _ours(info: ExportInfo) -> str:
    name = info.learner.name
    return (
        f"transformers has no `{name}`: config.json names the architecture "
        f"`outmodal-{name}`, and outmodal loads it:\n\n"
    ) + _python(
        [
            "from pathlib import Path",
            "",
            "from outmodal.models.export_folder import load_export",
            "",
            'encoder = load_export(Path("."))',
            f"outputs = encoder.outputs(x)  # x: [B, {_shape(info)}]",
        ]
    )


def _theirs(info: ExportInfo) -> str:
    return _python(
        [
            "import torch",
            "from safetensors.torch import load_file",
            "from transformers import AutoModel",
            "",
            'backbone = AutoModel.from_pretrained(".").eval()',
            f'check = load_file("{CHECK}")',
            f'x = check["inputs"]  # [B, {_shape(info)}]',
            *head_lines(info),
            *classifier_lines(info),
            "with torch.no_grad():",
            *(f"    {line}" for line in representation_lines(info)),
            "    e = r" if info.head is None else "    e = head(r)",
            *(f"    {line}" for line in _logit_lines(info)),
            'print((r - check["repr"]).abs().max())  # about 0',
            'print((e - check["embedding"]).abs().max())  # about 0',
        ]
    )


def _library(info: ExportInfo) -> str:
    names = {"text": 'a text", "another'}
    sample = names.get(info.kind, 'file-1", "file-2')
    lines = ["import outmodal", "", 'encoder = outmodal.load(".")']
    lines.append(f'vectors = encoder.embed(["{sample}"])  # [N, {info.embed_dim}], unit length')
    if info.classifier_norm is not None:
        lines.append(f'guesses = encoder.classify(["{sample}"]).names')
    return "With outmodal, from files or decoded values:\n\n" + _python(lines)


def _parts(info: ExportInfo) -> str:
    """Two lines for the head, two for the classifier."""
    lines = ["import torch", "from safetensors.torch import load_file", ""]
    text = ""
    if info.head is not None:
        lines += head_lines(info)
        text += f"`head` maps the representation [B, {info.repr_dim}] to the embedding. "
    lines += classifier_lines(info)
    if info.classifier_norm is not None:
        text += f"`classifier` maps {_NORMS[info.classifier_norm]} to {len(info.classes)} logits."
    return text.strip() + "\n\n" + _python(lines)


def _onnx(info: ExportInfo) -> str:
    outputs = "representation" if info.head is None else "representation, embedding"
    tail = "(representation,)" if info.head is None else outputs
    return f"`x` [batch, {_shape(info)}] -> {outputs}, any batch:\n\n" + _python(
        [
            "import onnxruntime",
            "",
            f'session = onnxruntime.InferenceSession("{GRAPH_FILES["onnx"]}")',
            f'{tail} = session.run(None, {{"x": x.numpy()}})',
        ]
    )


def _program(info: ExportInfo) -> str:
    return (
        "Loads with torch alone. This file holds no pickles, but the format may: load files of "
        "others only if you trust them.\n\n"
    ) + _python(
        [
            "import torch",
            "",
            f'program = torch.export.load("{GRAPH_FILES["torch"]}").module()',
            f"named = program(x)  # x: [batch, {_shape(info)}], any batch",
            f"{'r' if info.head is None else 'e'} = "
            f'named["{"representation" if info.head is None else "embedding"}"]',
        ]
    )


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


def head_lines(info: ExportInfo) -> list[str]:
    """The two lines that make `head`, a module r -> e; none where there is no head."""
    if info.head is None:
        return []
    r, h, e = info.repr_dim, info.head.hidden, info.head.dim

    def linear(before: int, after: int) -> str:
        return f"torch.nn.Linear({before}, {after})"

    layers = {
        "linear": [linear(r, e)],
        "linear_ln": [linear(r, e), f"torch.nn.LayerNorm({e})"],
        "mlp": [linear(r, h), f"torch.nn.LayerNorm({h})", "torch.nn.GELU()", linear(h, e)],
        "mlp3": [linear(r, h), _RELU, linear(h, h), _RELU, linear(h, e)],
    }[info.head.kind]
    return [
        f"head = torch.nn.Sequential({', '.join(layers)})",
        f'head.load_state_dict({{k.removeprefix("layers."): w for k, w in load_file("{HEAD}")'
        ".items()})",
    ]


def classifier_lines(info: ExportInfo) -> list[str]:
    """The two lines that make `classifier`, a module from the normalised e to logits; none where
    there is no classifier."""
    if info.classifier_norm is None:
        return []
    return [
        f"classifier = torch.nn.Linear({info.embed_dim}, {len(info.classes)})",
        f'classifier.load_state_dict(load_file("{CLASSIFIER}"))',
    ]


def _logit_lines(info: ExportInfo) -> list[str]:
    if info.classifier_norm is None:
        return []
    unit = "z = torch.nn.functional.normalize(e, dim=-1, eps=1e-6)"
    scaled = {"none": "z = e", "l2": unit, "l2_sqrtd": f"{unit} * {info.embed_dim}**0.5"}
    return [scaled[info.classifier_norm], "logits = classifier(z)"]


_RELU = "torch.nn.ReLU()"
_NORMS = {
    "none": "the embedding",
    "l2": "the embedding at unit length",
    "l2_sqrtd": "the embedding at length sqrt(its size)",
}
