"""How shards on other machines are read: the `data.remote.*` keys, and what the command line says
beside a recipe."""

from __future__ import annotations

import json
import os
from typing import Any

from pydantic import Field, ValidationError

from outmodal.base import Config
from outmodal.errors import UserError

CHOSEN = "OUTMODAL_REMOTE"
"""Environment variable in which a command hands on to all its processes, as JSON, what its command
line says: keys of RemoteConfig, and "allow_pipe"."""


class RemoteConfig(Config):
    """How data sets with an address (http, https, s3) are read.

    Attributes:
        cache: Folder that the processes of one node share for whole shards; "" keeps none, and
            reads the wanted stretches of each shard over the network every time.
        cache_gb: Size that the folder never exceeds, in GB (10^9 bytes).
        retries: Further tries of a request that failed on the way, with growing pauses.
        timeout: Seconds without a single byte after which a request has failed.
        connect_timeout: Seconds to reach the server.
        pause: Seconds before the second try; each further pause is twice as long.
    """

    cache: str = ""
    cache_gb: float = Field(default=100.0, gt=0)
    retries: int = Field(default=5, ge=0, le=100)
    timeout: float = Field(default=60.0, gt=0)
    connect_timeout: float = Field(default=10.0, gt=0)
    pause: float = Field(default=0.5, ge=0)


def as_chosen(config: RemoteConfig | None) -> RemoteConfig:
    """Return `config` with what the command line says in its place."""
    chosen = {key: value for key, value in _chosen().items() if key != "allow_pipe"}
    if not chosen:
        return config or RemoteConfig()
    try:
        return RemoteConfig.model_validate({**(config or RemoteConfig()).model_dump(), **chosen})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"data.remote.{name}: {first['msg']}, got {first['input']!r}") from None


def pipes_allowed() -> bool:
    """Whether addresses may run programs of this machine. No file can say so: whoever writes a
    recipe is not always the one who runs it."""
    return _chosen().get("allow_pipe") is True


def _chosen() -> dict[str, Any]:
    text = os.environ.get(CHOSEN, "")
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"the environment variable {CHOSEN} is no JSON object: unset it")
    return found
