"""Recipes: YAML files that remember on which line each key stands, so that every mistake can
be reported as `file.yaml:7: optim.schedule: must be 'cosine' or 'wsd', got 'cosin'`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from outmodal.errors import UserError, nearest

Location = tuple[str | int, ...]


@dataclass
class Recipe:
    """Raw values of a recipe and where each stands.

    Attributes:
        values: Nested dictionaries and lists, not validated yet.
        lines: Path of keys -> "file:line".
        origin: The file, for messages about keys without a line.
    """

    values: dict[str, Any]
    lines: dict[Location, str] = field(default_factory=dict)
    origin: str = ""

    @staticmethod
    def from_text(text: str, origin: str) -> Recipe:
        """Parse YAML. Raises UserError with file and line where it is not YAML."""
        try:
            values = yaml.safe_load(text) or {}
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark is not None else ""
            what = getattr(error, "problem", None) or "not valid YAML"
            raise UserError(f"{origin}{line}: {what}: mend the YAML there") from None
        if not isinstance(values, dict):
            raise UserError(f"{origin}:1: a recipe is a mapping of sections, not a single value")
        lines: dict[Location, str] = {}
        _record_lines(node, (), origin, lines)
        return Recipe(values, lines, origin)

    def locate(self, loc: Sequence[str | int]) -> Location:
        """Path in the file for pydantic's location, which also holds the union's tags."""
        where: list[str | int] = []
        node: Any = self.values
        for part in loc:
            if isinstance(node, dict) and part not in node and node.get("name") == part:
                continue
            where.append(part)
            if isinstance(node, dict):
                node = node.get(str(part))
            elif isinstance(node, list) and isinstance(part, int) and part < len(node):
                node = node[part]
            else:
                node = None
        return tuple(where)

    def line(self, where: Location) -> str:
        """ "file:line" of a key, or of the closest section that has one."""
        for end in range(len(where), 0, -1):
            if where[:end] in self.lines:
                return self.lines[where[:end]]
        return self.origin

    def _parent(self, path: Sequence[str | int]) -> Any:
        node: Any = self.values
        for part in path:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(str(part), {})
        return node

    def assign(self, path: Sequence[str], value: Any) -> None:
        """Set a value by its path; list entries by position."""
        parent = self._parent(path[:-1])
        parent[int(path[-1]) if isinstance(parent, list) else path[-1]] = value

    def switch(self, path: Sequence[str], name: str) -> None:
        """Choose another member of a tagged union."""
        try:
            self._parent(path)["name"] = name
        except (IndexError, ValueError, TypeError):
            raise UserError(f"unknown key '{'.'.join([*path, 'name'])}'") from None

    def remove(self, where: Location) -> None:
        """Delete a key."""
        parent = self._parent(where[:-1])
        del parent[where[-1]]


def _record_lines(
    node: yaml.Node | None, path: Location, origin: str, lines: dict[Location, str]
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            lines[here] = f"{origin}:{key.start_mark.line + 1}"
            _record_lines(value, here, origin, lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*path, i)] = f"{origin}:{value.start_mark.line + 1}"
            _record_lines(value, (*path, i), origin, lines)


def read_recipe(path: Path, find: Callable[[str], Path]) -> Recipe:
    """Read a recipe; its key `base: OTHER` starts from another recipe and replaces what it names.

    A section with another `name` replaces the base's section as a whole.
    """
    try:
        recipe = Recipe.from_text(path.read_text(encoding="utf-8"), path.name)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    base = recipe.values.pop("base", None)
    if base is None:
        return recipe
    below = read_recipe(find(str(base)), find)
    merged = merge(below.values, recipe.values)
    return Recipe(merged, {**below.lines, **recipe.lines}, recipe.origin)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Values of a recipe with others in place of what they name; a section with another `name`
    takes the place of the whole section."""
    other_member = "name" in above and above["name"] != below.get("name")
    result = {} if other_member else dict(below)
    for key, value in above.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return result


def explain(error: ValidationError, recipe: Recipe, schema: type[BaseModel]) -> str:
    """One line per mistake: `file:line: key: what is expected, got what`."""
    lines = []
    for problem in error.errors():
        where = recipe.locate(problem["loc"])
        key = ".".join(map(str, where))
        known = _siblings(schema, problem["loc"])
        lines.append(f"{recipe.line(where)}: {key}: {_sentence(dict(problem), known)}")
    return "\n".join(lines)


def _sentence(problem: dict[str, Any], known: list[str]) -> str:
    kind, context, given = problem["type"], problem.get("ctx", {}), problem.get("input")
    if kind == "extra_forbidden":
        return f"unknown key{nearest(str(problem['loc'][-1]), known)}"
    if kind == "literal_error":
        return f"must be {context['expected']}, got {given!r}"
    if kind == "union_tag_invalid":
        tags = [t.strip().strip("'") for t in context["expected_tags"].split(",")]
        return f"unknown name '{context['tag']}'{nearest(context['tag'], tags)}"
    if kind == "union_tag_not_found":
        return "wants a `name` that says which kind it is"
    if kind == "missing":
        return "is missing: add it"
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(given, (dict, list)) else f", got {given!r}"
    return f"{message[0].lower()}{message[1:]}{shown}"


def _siblings(schema: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Field names of the model that holds the last part of `loc`."""
    models: list[type[BaseModel]] = [schema]
    for part in loc[:-1]:
        following = [m for model in models for m in _models_under(model, part)]
        models = following or models
    return sorted({name for model in models for name in model.model_fields})


def _models_under(model: type[BaseModel], part: str | int) -> list[type[BaseModel]]:
    if isinstance(part, int):
        return [model]
    if part in model.model_fields:
        return _models_in(model.model_fields[part].annotation)
    name = model.model_fields.get("name")
    return [model] if name is not None and name.default == part else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for inner in getattr(annotation, "__args__", ()) for m in _models_in(inner)]
