"""Configurations that tests plan."""

from __future__ import annotations

from typing import Any

from outmodal.launch.config import RunConfig

IMAGE = {"name": "image", "size": [28, 28], "channels": 1, "mean": [0.3], "std": [0.35]}
TOKENS = {"name": "tokens", "length": 12, "vocab_size": 128}


def vit_config(width: int = 256, depth: int = 6, batch: int = 256, **engine: Any) -> RunConfig:
    """Supervised training of a vision transformer on the embedded pictures."""
    learner = {
        "name": "vit",
        "modality": "image",
        "size": "custom",
        "width": width,
        "depth": depth,
        "heads": 4,
        "patch": 4,
        "input": IMAGE,
    }
    return RunConfig.model_validate(
        {
            "data": {"batch": batch},
            "learners": [learner],
            "method": {"name": "erm", "unknown": "image", "label_fraction": 1.0},
            "engine": {"epochs": 1, "max_steps": 2, "threads": 1, **engine},
        }
    )


def align_config(batch: int = 64, **engine: Any) -> RunConfig:
    """Two encoders and a contrastive objective."""
    image = vit_config(32, 2).learners[0].model_dump(mode="json")
    text = {"name": "bert", "modality": "text", "size": "tiny", "pool": "mean", "input": TOKENS}
    return RunConfig.model_validate(
        {
            "data": {"batch": batch},
            "learners": [image, text],
            "method": {"name": "align", "head": {"dim": 32}},
            "engine": {"epochs": 1, **engine},
        }
    )


def large_config(size: str = "tiny", batch: int = 2048, **engine: Any) -> RunConfig:
    """A vision transformer at 224 pixels for a thousand classes."""
    image = {"name": "image", "size": [224, 224], "channels": 3}
    learner = {"name": "vit", "modality": "image", "size": size, "patch": 16, "input": image}
    return RunConfig.model_validate(
        {
            "data": {"path": "imagenet", "batch": batch},
            "learners": [learner],
            "method": {"name": "erm", "unknown": "image", "label_fraction": 1.0},
            "engine": {"epochs": 300, "precision": "bf16", "ema": 0.9999, **engine},
        }
    )
