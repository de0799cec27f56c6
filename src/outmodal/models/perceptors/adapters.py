"""Low-rank adapters, folded into the weights they adapt: W + (alpha / r) B A.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022). Key layouts of a
projection P inside `vision_model.encoder.base_model.model.`:

    peft before 0.7: P.weight             P.lora_A.default.weight, P.lora_B.default.weight
    peft since 0.7:  P.base_layer.weight  the same
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from outmodal.errors import UserError
from outmodal.models.perceptors.checkpoint import Checkpoint

_WRAPPER = "encoder.base_model.model."
_BASE = ".base_layer."
_ADAPTER = re.compile(r"(?P<weight>.+)\.lora_(?P<side>[AB])\.[^.]+\.weight")


@dataclass(frozen=True)
class Adapters:
    """What a checkpoint holds, seen as if its adapters had been folded in.

    Attributes:
        keys: Name without adapters -> key in the checkpoint.
        shapes: Shapes of these.
        pairs: Adapted weight, by its name without adapters -> (A [r, in], B [out, r]).
        rank: r, or 0 without adapters.
        layout: Which of the two key layouts, in words.
        scale: alpha / r.
    """

    keys: dict[str, str]
    shapes: dict[str, torch.Size]
    pairs: dict[str, tuple[Tensor, Tensor]]
    rank: int
    layout: str
    scale: float

    def fold(self, name: str, weight: Tensor) -> Tensor:
        """Return the weight `name` with its adapter folded in, in fp32, or as it is without."""
        if name not in self.pairs:
            return weight
        a, b = self.pairs[name]
        return weight.float() + self.scale * (b @ a)


def find_adapters(
    checkpoint: Checkpoint, names: Iterable[str], targets: Iterable[str], rank: int, alpha: float
) -> Adapters:
    """Sort a checkpoint's keys into base weights and adapters, and read the adapters.

    Args:
        checkpoint: Its files.
        names: The keys to sort.
        targets: Weights that adapters sit on, if there are any; then on all of them.
        rank: Expected r.
        alpha: Numerator of the scale.

    Raises:
        UserError: An A without its B, adapters on other weights than `targets`, another rank, a
            weight that is there twice.
    """
    keys: dict[str, str] = {}
    sides: dict[str, dict[str, str]] = {}
    for key in names:
        plain = key.replace(_WRAPPER, "encoder.").replace(_BASE, ".")
        adapter = _ADAPTER.fullmatch(plain)
        group = sides.setdefault(f"{adapter['weight']}.weight", {}) if adapter else keys
        name = adapter["side"] if adapter else plain
        if name in group:
            raise UserError(f"{checkpoint.label} holds {key} and {group[name]}, which are the same")
        group[name] = key
    shapes = {plain: checkpoint.shapes[key] for plain, key in keys.items()}
    pairs = _read_pairs(checkpoint, sides)
    _check(checkpoint, pairs, set(targets), shapes, rank)
    modern = any(_BASE in key for key in keys.values())
    layout = "none" if not pairs else "base_layer" if modern else "plain"
    held = rank if pairs else 0
    return Adapters(keys, shapes, pairs, held, layout, alpha / rank if pairs else 1.0)


def _read_pairs(
    checkpoint: Checkpoint, sides: dict[str, dict[str, str]]
) -> dict[str, tuple[Tensor, Tensor]]:
    for name, held in sides.items():
        if len(held) != 2:
            raise UserError(
                f"{checkpoint.label} has {next(iter(held.values()))} but not the other half of "
                f"the adapter of {name}: download it again"
            )
    wanted = [key for held in sides.values() for key in held.values()]
    read = {key: tensor.float() for key, tensor in checkpoint.read(wanted)}
    return {name: (read[held["A"]], read[held["B"]]) for name, held in sides.items()}


def _check(
    checkpoint: Checkpoint,
    pairs: dict[str, tuple[Tensor, Tensor]],
    targets: set[str],
    shapes: dict[str, torch.Size],
    rank: int,
) -> None:
    """Raise UserError unless every target has an adapter that fits it, or none has."""
    if not pairs:
        return
    wrong = sorted(pairs.keys() ^ targets)
    if wrong:
        where = "has no adapter" if wrong[0] in targets else "has one, which it should not"
        raise UserError(
            f"{checkpoint.label}: {len(wrong)} weights have adapters in the wrong places: "
            f"{wrong[0]} {where}; config.json (add_time_attn) belongs to another checkpoint"
        )
    for name, (a, b) in pairs.items():
        if not a.shape[0] == b.shape[1] == rank:
            raise UserError(
                f"{checkpoint.label}: the adapter of {name} has rank {a.shape[0]} and "
                f"{b.shape[1]}, but lora_r of config.json is {rank}"
            )
        if name in shapes and (b.shape[0], a.shape[1]) != shapes[name]:
            raise UserError(
                f"{checkpoint.label}: the adapter of {name} is made for a weight of shape "
                f"{[b.shape[0], a.shape[1]]}, which is {[*shapes[name]]}"
            )
