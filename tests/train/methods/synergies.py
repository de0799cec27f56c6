"""Synergy with targets that no encoder made, for its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from outmodal.models.perceptors import HubPerceptor
from outmodal.train.methods import Synergy, SynergyConfig, build_method
from tests.models.hub_models import bert
from tests.train.methods.fakes import World, make_context, make_world

TABLE = torch.randn(7, 9, generator=torch.Generator().manual_seed(1))


def tabled(table: Tensor = TABLE, **keys: Any) -> SynergyConfig:
    """A configuration with a table that no encoder made."""
    config = SynergyConfig.model_validate({"unknown": "touch", "targets": "gaussian", **keys})
    return config.restored({"targets.table": table})


def made(config: SynergyConfig, world: World | None = None, **keys: Any) -> Synergy:
    method = build_method(config, make_context(world or make_world(), **keys))
    assert isinstance(method, Synergy)
    return method


def hub_bert(root: Path, monkeypatch: pytest.MonkeyPatch) -> HubPerceptor:
    """A small BERT in a folder, as a hub would have it, and an empty cache."""
    monkeypatch.setenv("OUTMODAL_CACHE", str(root / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    return HubPerceptor(modality="text", path=str(bert(root / "bert")))
