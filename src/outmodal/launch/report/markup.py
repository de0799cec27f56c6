"""HTML whose text is escaped by construction."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

_ALONE = frozenset({"meta", "link", "br", "hr", "col"})


class Markup(str):
    """Text that is HTML already; every other string is escaped where it is put in."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str | int | bool | None) -> Markup:
    """An element. A child that is no `Markup` is text, and is escaped, as attributes are.

    Args:
        name: Name of the element.
        children: Its contents.
        attributes: `class_` is class, `aria_label` aria-label; None and False are left out.
    """
    shown = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _ALONE:
        return Markup(f"<{name}{shown}>")
    return Markup(f"<{name}{shown}>{join(children)}</{name}>")


def join(children: Iterable[str]) -> Markup:
    """Several pieces one after the other."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in children))


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, class_: str = ""
) -> Markup:
    """A table in a frame that scrolls by itself; the first cell of each row is its header."""
    top = tag("tr", *[tag("th", cell, scope="col") for cell in head])
    body = [
        tag("tr", tag("th", row[0], scope="row"), *[tag("td", cell) for cell in row[1:]])
        for row in rows
    ]
    inner = tag(
        "table", tag("caption", caption), tag("thead", top), tag("tbody", *body), class_=class_
    )
    return scroller(inner, caption)


def scroller(inner: Markup, label: str) -> Markup:
    """A frame that scrolls sideways, also from the keyboard."""
    return tag("div", inner, class_="scroll", role="region", tabindex=0, aria_label=label)


def data(value: Any) -> Markup:
    """JSON for the page's own script, which can end no element and open no comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json">{text}</script>')


def _attribute(key: str, value: str | int | bool | None) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False or (value == "" and name == "class"):
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'
