"""How addresses are read, on the command line of everything that opens data sets.

`--allow-pipe` belongs to every command. `--data.remote.KEY VALUE` is a key of a recipe where a
command takes one; the others take it here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from outmodal.data.store_config import CHOSEN, RemoteConfig
from outmodal.launch.arguments import parse

FLAGS = ("--allow-pipe", "--allow_pipe")
PREFIX = "--data.remote."

_OF_RECIPES = ("train", "plan", "submit")


@contextmanager
def chosen_remote(command: str, argv: Sequence[str]) -> Iterator[list[str]]:
    """Apply the options, in this process and those that it starts, and yield the other arguments.

    Raises UserError for an unknown key, or a value of the wrong type.
    """
    chosen, rest = _taken(command, argv)
    before = os.environ.get(CHOSEN)
    os.environ[CHOSEN] = json.dumps({**json.loads(before or "{}"), **chosen})
    try:
        yield rest
    finally:
        if before is None:
            del os.environ[CHOSEN]
        else:
            os.environ[CHOSEN] = before


def _taken(command: str, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What is chosen, and the arguments without it."""
    rest = [word for word in argv if word not in FLAGS]
    chosen: dict[str, Any] = {"allow_pipe": True} if len(rest) < len(argv) else {}
    if command in _OF_RECIPES:
        return chosen, rest
    keys: list[str] = []
    others: list[str] = []
    while rest:
        word = rest.pop(0)
        if not word.startswith(PREFIX):
            others.append(word)
            continue
        keys.append("--" + word.removeprefix(PREFIX))
        if "=" not in word and rest:
            keys.append(rest.pop(0))
    example = f"outmodal {command} ... --data.remote.cache FOLDER --data.remote.retries 8"
    given = {key.removeprefix("--").partition("=")[0] for key in keys if key.startswith("--")}
    parsed = parse(
        RemoteConfig, keys, prog=f"outmodal {command}", example=example, default=RemoteConfig()
    )
    return chosen | {k: v for k, v in parsed.model_dump().items() if k in given}, others
