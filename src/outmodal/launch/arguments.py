"""Command-line arguments by tyro: one way to declare, parse, explain and refuse them."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro
from pydantic import BaseModel

from outmodal.errors import UserError, nearest

T = TypeVar("T")

_CONFIG = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
_BOX = re.compile(r"[╭╮╰╯│─]+|^\s*[|+]|[|+]\s*$|-{5,}")  # drawn in ASCII where need be
_REFUSED = re.compile(r"Error parsing (\S+): \d+ validation errors? for \S+ (.*)")
_PROBLEM = re.compile(
    r"(?:([a-z_][\w.]*) )?([A-Z].*?) \[type=(\w+), input_value=(.*), input_type=\w+\]"
)
_ADVICE = re.compile(r"For further information visit \S+")


def parse(
    schema: type[T], argv: Sequence[str], *, prog: str, example: str, default: T | None = None
) -> T:
    """Parse `argv` into `schema`; --help prints every option and the example, then exits 0.

    Raises:
        UserError: An unknown option (the nearest known one is named) or a value of the
            wrong type, in one sentence.
    """
    if default is not None and isinstance(default, BaseModel):
        refuse_unknown(argv, flatten(default))
    description = (schema.__doc__ or "").strip() + f"\n\nexample: {example}"
    errors = io.StringIO()
    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            parsed: T = tyro.cli(
                schema,
                args=list(argv),
                prog=prog,
                description=description,
                config=_CONFIG,
                use_underscores=True,
                **kwargs,
            )
            return parsed
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(one_sentence(errors.getvalue()) + f" (see {prog} --help)") from None


def parse_positional(
    schema: type[T], argv: Sequence[str], key: str, *, prog: str, sample: str
) -> T:
    """Parse as `parse` does, with the bare arguments in front as the value of `--key`."""
    args = [f"--{key}", *argv] if argv and not argv[0].startswith("-") else argv
    return parse(schema, args, prog=prog, example=f"{prog} {sample}")


def one_sentence(box: str) -> str:
    """tyro's error box without its frame and its closing advice."""
    lines = [_BOX.sub(" ", line).strip() for line in box.splitlines()]
    kept = [line for line in lines[1:] if line and not line.startswith("For full helptext")]
    refused = _REFUSED.fullmatch(" ".join(kept))
    if refused:
        return "; ".join(_problems(refused[1], refused[2]))
    return re.sub(r"\s+", " ", "; ".join(kept)) or "the options are wrong"


def _problems(section: str, text: str) -> list[str]:
    """What a section's model said of it, in the words in which a recipe's file is refused."""
    said = []
    for part in filter(None, map(str.strip, _ADVICE.split(text))):
        found = _PROBLEM.fullmatch(part)
        if found is None:
            said.append(f"{section}: {part}")
            continue
        key, message, kind, given = found.groups()
        message = message.removeprefix("Value error, ")
        where = f"{section}.{key}" if key else section
        shown = "" if kind == "value_error" else f", got {given}"
        said.append(f"{where}: {message[0].lower()}{message[1:]}{shown}")
    return said


def flatten(model: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a configuration and their values; entries of tuples by position.

    >>> # flatten(cfg)["data.batch"] -> 128; flatten(cfg)["learners.0.name"] -> "vit"
    """
    flat: dict[str, Any] = {}
    for key in type(model).model_fields:
        value = getattr(model, key)
        nested = list(value) if isinstance(value, tuple) else [value]
        if any(isinstance(v, BaseModel) for v in nested):
            for i, v in enumerate(nested):
                inner = f"{prefix}{key}.{i}." if isinstance(value, tuple) else f"{prefix}{key}."
                flat.update(flatten(v, inner))
        else:
            flat[prefix + key] = value
    return flat


def refuse_unknown(argv: Sequence[str], known: dict[str, Any]) -> None:
    """Raise UserError for the first `--key` that no configuration has."""
    for arg in argv:
        if not arg.startswith("--") or arg in ("--help",):
            continue
        key = arg[2:].split("=", 1)[0].replace("-", "_")
        if key not in known:
            raise UserError(f"unknown key '{key}'{nearest(key, known)}")


def progress_bar(total: int, what: str, unit: str) -> Any:
    """A progress bar on stderr with an estimate of the time left."""
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=unit, file=sys.stderr, leave=False, dynamic_ncols=True)
