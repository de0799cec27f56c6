"""Tables of keys for the pages of methods, made from the configuration classes.

`python -m tests.docs.knobs` writes them into docs/methods, between lines such as
`<!-- keys: cox -->` and `<!-- end -->`; a test compares them.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from outmodal.models.objectives import ObjectiveConfig
from outmodal.train.methods import AnyMethodConfig

PAGES = Path(__file__).parent.parent.parent / "docs" / "methods"
MARK = re.compile(r"(<!-- keys: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_ITEM = re.compile(r"^    ([a-z0-9_]+(?:, [a-z0-9_]+)*): (.*(?:\n      +.*)*)", re.MULTILINE)


def _members(union: Any) -> Iterator[type[BaseModel]]:
    for part in get_args(union):
        if inspect.isclass(part) and issubclass(part, BaseModel):
            yield part
        else:
            yield from _members(part)


def named(union: Any) -> dict[str, type[BaseModel]]:
    """name -> class of the members of a union that is told apart by `name`."""
    return {cls.model_fields["name"].default: cls for cls in _members(union)}


METHODS = named(AnyMethodConfig)
OBJECTIVES = named(ObjectiveConfig)
CLASSES = METHODS | OBJECTIVES


def described(cls: type[BaseModel]) -> dict[str, str]:
    """Key -> what the docstrings of a class and its bases say of it; the nearest one counts."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for names, meaning in _ITEM.findall(text):
            for name in names.split(", "):
                found[name] = " ".join(meaning.split())
    return found


def table(cls: type[BaseModel]) -> str:
    """One row a key: its name, its default, what it means."""
    texts = described(cls)
    rows = []
    for key, field in cls.model_fields.items():
        if key != "name":
            assert key in texts, f"{cls.__name__}.{key} has no line in a docstring"
            meaning = texts[key].replace("|", "\\|").replace("<", "&lt;")
            rows.append(f"| `{key}` | {_default(field.default)} | {meaning} |")
    return "\n".join(["| key | default | |", "| --- | --- | --- |", *rows]) + "\n"


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "must be set"
    if isinstance(value, BaseModel):
        held = {k: v for k, v in value.model_dump().items() if v is not None}
        first = {k: held[k] for k in list(held)[:2]}
        return "`{" + ", ".join(f"{k}: {v}" for k, v in first.items()) + "}`"
    if value == ():
        return "`()`"
    return f"`{value}`"


def filled(text: str) -> str:
    """A page with its tables made anew."""
    return MARK.sub(lambda m: f"{m[1]}{table(CLASSES[m[2]])}{m[3]}", text)


if __name__ == "__main__":
    for page in sorted(PAGES.glob("*.md")):
        page.write_text(filled(page.read_text("utf-8")), "utf-8")
        sys.stdout.write(f"{page}\n")
