"""Methods from outside of the package: which files may be run, and the section that they give.

A file with code runs only where the command line says so: `--method.path FILE` names it, or
`--allow-code` lets a recipe or a run name it. Neither a recipe nor a run's folder can say so
itself: whoever wrote it is not always the one who opens it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from outmodal.errors import UserError
from outmodal.launch.recipe import Recipe
from outmodal.train.methods import AnyMethodConfig
from outmodal.train.methods.outside import OutsideSettings, digest, outside_method, read_code
from outmodal.train.runfolder import CODE

FLAGS = ("--allow-code", "--allow_code")
OPTION = "--method.path"
ALLOWED = "OUTMODAL_CODE"
"""Environment variable in which a command hands on to all its processes, as JSON, what its command
line allows: "any", and absolute paths as "files"."""

_OF_RUNS = ("eval", "export", "report", "doctor", "reproduce")
"""Where the option is no key of a recipe."""


@contextmanager
def chosen_code(command: str, argv: Sequence[str]) -> Iterator[list[str]]:
    """Apply the options, in this process and those that it starts, and yield the other arguments.

    Raises UserError for the option without a file.
    """
    rest = [word for word in argv if word not in FLAGS]
    allowed = _allowed()
    allowed["any"] = allowed["any"] or len(rest) < len(argv)
    for path in _files(rest):
        allowed["files"] = [*allowed["files"], str(Path(path).absolute())]
    if command in _OF_RUNS:
        rest = _without_files(rest)
    before = os.environ.get(ALLOWED)
    os.environ[ALLOWED] = json.dumps(allowed)
    try:
        yield rest
    finally:
        if before is None:
            del os.environ[ALLOWED]
        else:
            os.environ[ALLOWED] = before


def _files(argv: Sequence[str]) -> Iterator[str]:
    for i, word in enumerate(argv):
        if word == OPTION and i + 1 == len(argv):
            raise UserError(f"{OPTION} wants a value")
        if word == OPTION:
            yield argv[i + 1]
        elif word.startswith(f"{OPTION}="):
            yield word.split("=", 1)[1]


def _without_files(argv: Sequence[str]) -> list[str]:
    return [
        word
        for before, word in zip(["", *argv], argv, strict=False)
        if OPTION not in (before, word) and not word.startswith(f"{OPTION}=")
    ]


def _allowed() -> dict[str, Any]:
    text = os.environ.get(ALLOWED, "")
    try:
        found = json.loads(text) if text else {}
        return {"any": found.get("any") is True, "files": list(found.get("files", []))}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"the environment variable {ALLOWED} is no JSON object: unset it") from None


def code_allowed() -> bool:
    """Whether recipes and runs may name code."""
    return bool(_allowed()["any"])


def method_of_recipe(raw: Recipe, given: str | None, named: bool) -> type[OutsideSettings] | None:
    """The class of a recipe's method where it is one from outside; fills in its section.

    Args:
        raw: The recipe; `path`, `sha256` and `name` of its method are set.
        given: `--method.path` of the command line.
        named: Whether the command line also names the method.

    Raises:
        UserError: The recipe names code, and the command line does not allow it; the code is not
            what the recipe was written with; see also `outside_method`.
    """
    section = raw.values.setdefault("method", {}) if given else raw.values.get("method")
    path = given or (section.get("path") if isinstance(section, dict) else None)
    if not isinstance(section, dict) or not isinstance(path, str) or not path:
        return None
    file = str(Path(path).absolute())
    allowed = _allowed()
    if given is None and not allowed["any"] and file not in allowed["files"]:
        raise UserError(
            f"{raw.line(('method', 'path'))}: method.path names code, {path}, which a recipe alone "
            f"does not make outmodal execute: read it, and give {FLAGS[0]}, or {OPTION} {path}"
        )
    source = read_code(path)
    _check_same(section.get("sha256"), source, path, raw.line(("method", "sha256")))
    cls = outside_method(file, source, known_methods())
    name = cls.model_fields["name"].default
    if section.get("name", name) != name and (named or given is None):
        raise UserError(
            f"method.path {path} defines method '{name}', not '{section['name']}': set method.name "
            f"to '{name}'"
        )
    if section.get("name") != name:  # the rest of the section is of another method
        for key in set(section) - set(cls.model_fields):
            del section[key]
    section |= {"name": name, "path": file, "sha256": digest(source)}
    return cls


def known_methods() -> frozenset[str]:
    """Names of the package's own methods."""
    return frozenset(cls.model_fields["name"].default for cls in get_args(AnyMethodConfig))


def _check_same(wanted: object, source: bytes, path: str, where: str) -> None:
    if wanted and wanted != digest(source):
        raise UserError(
            f"{where}: {path} has changed since this configuration was written (method.sha256 is "
            f"{str(wanted)[:12]}..., the file's is {digest(source)[:12]}...): give the file as it "
            "was, or take `sha256` out"
        )


def method_of_run(raw: Recipe, root: Path) -> type[OutsideSettings] | None:
    """The class of a run's method where it is one from outside.

    Args:
        raw: The run's config.yaml.
        root: The run's folder, which keeps a copy of the code.

    Raises:
        UserError: The command line does not allow the code, or what it names is other code.
    """
    section = raw.values.get("method")
    if not isinstance(section, dict) or not section.get("path"):
        return None
    allowed, kept = _allowed(), root / CODE
    named = {path: read_code(path) for path in allowed["files"]}
    if allowed["any"] and (kept.is_file() or not named):
        named[str(kept)] = read_code(kept)
    for path, source in named.items():
        if digest(source) == section.get("sha256"):
            return outside_method(path, source, known_methods())
    what = f"the method of run {root} is code from outside of outmodal"
    if named:
        raise UserError(
            f"{what}, and {' and '.join(named)} is not that code (its sha256 would begin with "
            f"{str(section.get('sha256'))[:12]}): name the file as it was, {OPTION} {kept}"
        )
    raise UserError(
        f"{what}, which opening a run does not execute: read {kept}, and give {FLAGS[0]}, or "
        f"{OPTION} {kept}"
    )
