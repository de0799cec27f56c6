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
_BOX = re.compile(r"[╭╮╰╯│─]+")


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
    return re.sub(r"\s+", " ", "; ".join(kept)) or "the options are wrong"


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
