"""The base of every configuration class: frozen, and strict about unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen pydantic model that refuses unknown keys.

    Each component's configuration derives from this and lives beside the component;
    `outmodal.launch.config` only composes them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
