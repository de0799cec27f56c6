"""The configuration of a run: composed here from each component's own class, read from a
recipe (one page of YAML), overridden by `--section.key value`, and written out in full."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, create_model

from outmodal.base import Config
from outmodal.data.stream import StreamConfig
from outmodal.errors import UserError, nearest
from outmodal.launch.arguments import parse
from outmodal.launch.code import OPTION, method_of_recipe, method_of_run
from outmodal.launch.commands.train import take_option
from outmodal.launch.recipe import Recipe, explain, merge, read_recipe
from outmodal.models.learners import LearnerConfig
from outmodal.models.perceptors import PerceptorConfig
from outmodal.train.engine import EngineConfig
from outmodal.train.methods import MethodConfig
from outmodal.train.methods.outside import OutsideSettings
from outmodal.train.optim import OptimConfig


class RunConfig(Config):
    """A run: data, learners, frozen perceptors, method, optimizer and engine.

    Attributes:
        out: The run's folder; "" chooses runs/RECIPE.
        seed: Decides initial weights, sample order and every draw of the method.
        data: Data set and how it is streamed.
        learners: Trainable encoders, one a modality.
        perceptors: Frozen encoders whose features are computed once before training.
        method: What is trained, and against what.
        optim: Optimizer and schedule.
        engine: Length, precision, processes, checkpoints.
    """

    out: str = ""
    seed: int = 0
    data: StreamConfig = StreamConfig()
    learners: tuple[LearnerConfig, ...] = ()
    perceptors: tuple[PerceptorConfig, ...] = ()
    method: MethodConfig
    optim: OptimConfig = OptimConfig()
    engine: EngineConfig = EngineConfig()


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    folder = resources.files("outmodal.train") / "recipes"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def recipe_path(recipe: str) -> Path:
    """Path of a shipped recipe's file, or of a YAML file that the user names.

    Raises:
        UserError: No such file and no such recipe; names the nearest recipe.
    """
    if recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        path = Path(recipe)
        if not path.is_file():
            raise UserError(f"there is no recipe file {recipe}: give a path to a YAML file")
        return path
    if recipe not in recipe_names():
        raise UserError(f"unknown recipe '{recipe}'{nearest(recipe, recipe_names())}")
    return Path(str(resources.files("outmodal.train") / "recipes" / f"{recipe}.yaml"))


def load_config(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and apply overrides.

    Raises:
        UserError: Every mistake in the recipe, each with file, line, key and remedy; or the
            first mistaken override.
    """
    raw = read_recipe(recipe_path(recipe), recipe_path)
    code, words = take_option(list(overrides), OPTION)
    rest = _switch_names(raw, words)
    schema = _schema(method_of_recipe(raw, code, named=len(_method_names(words)) > 0))
    config = _validate(raw, schema)
    parsed = parse(
        schema,
        rest,
        prog=f"outmodal train {recipe}",
        example=f"outmodal train {recipe} --data.batch 64 --engine.epochs 5",
        default=config,
    )
    return parsed.model_copy(update={"method": parsed.method.resolved()})


def adapted(recipe: str, sections: dict[str, Any], origin: str) -> RunConfig:
    """A recipe with some sections changed, as a recipe with `base: RECIPE` would change them.

    Args:
        recipe: Name or path.
        sections: Nested values.
        origin: Who changes them, for messages about keys that the recipe does not have.

    Raises:
        UserError: As `load_config`.
    """
    raw = read_recipe(recipe_path(recipe), recipe_path)
    changed = Recipe(merge(raw.values, sections), raw.lines, origin)
    config = _validate(changed, _schema(method_of_recipe(changed, None, named=False)))
    return config.model_copy(update={"method": config.method.resolved()})


def parse_config(text: str, origin: str) -> RunConfig:
    """Validate a run's config.yaml.

    Args:
        text: Its YAML.
        origin: Its path; the run's folder holds the code of a method from outside.

    Raises:
        UserError: It is wrong, or wants code that the command line does not allow.
    """
    raw = Recipe.from_text(text, origin)
    return _validate(raw, _schema(method_of_run(raw, Path(origin).parent)))


def dump_config(config: RunConfig) -> str:
    """Every resolved value as YAML, in declaration order; `parse_config` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)


def _schema(method: type[OutsideSettings] | None) -> type[RunConfig]:
    """The class of a run's configuration; one that is made for a method from outside."""
    if method is None:
        return RunConfig
    fields: dict[str, Any] = {"method": (method, ...)}
    return create_model("RunConfig", __base__=RunConfig, __doc__=RunConfig.__doc__, **fields)


def _validate(raw: Recipe, schema: type[RunConfig] = RunConfig) -> RunConfig:
    try:
        return schema.model_validate(raw.values)
    except ValidationError as error:
        raise UserError(explain(error, raw, schema)) from None


def _method_names(overrides: Sequence[str]) -> list[str]:
    return [arg for arg in overrides if arg.partition("=")[0] == "--method.name"]


def _switch_names(raw: Recipe, overrides: list[str]) -> list[str]:
    """Apply `--section.name other` to the raw recipe, keeping the keys that `other` knows.

    A union's member decides which keys exist, so it has to be settled before the rest of the
    overrides can be parsed. Returns the overrides that are left.
    """
    rest: list[str] = []
    queue = list(overrides)
    while queue:
        arg = queue.pop(0)
        key, _, value = arg.partition("=")
        path = key.removeprefix("--").split(".")
        if not arg.startswith("--") or path[-1] != "name" or len(path) < 2:
            rest.append(arg)
            continue
        if not value:
            if not queue:
                raise UserError(f"{key} wants a value")
            value = queue.pop(0)
        raw.switch(path[:-1], value)
        _drop_foreign_keys(raw, path[:-1])
    return rest


def _drop_foreign_keys(raw: Recipe, path: list[str]) -> None:
    try:
        RunConfig.model_validate(raw.values)
    except ValidationError as error:
        for problem in error.errors():
            where = raw.locate(problem["loc"])
            inside = [str(p) for p in where[:-1]] == path
            if problem["type"] == "extra_forbidden" and inside:
                raw.remove(where)


def resolved_out(config: RunConfig, recipe: str) -> Path:
    """The run's folder as an absolute path."""
    return Path(config.out or f"runs/{Path(recipe).stem}").absolute()


def set_keys(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """A copy with some dotted keys replaced, validated again.

    >>> # set_keys(cfg, {"engine.epochs": 3, "data.path": "D"})
    """
    raw = Recipe(config.model_dump(mode="json"), {}, "configuration")
    for key, value in values.items():
        raw.assign(key.split("."), value)
    return _validate(raw, type(config))
