"""Recipes, overrides and the messages for every mistake in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from outmodal.errors import UserError
from outmodal.launch.arguments import flatten
from outmodal.launch.config import (
    RunConfig,
    dump_config,
    load_config,
    parse_config,
    recipe_names,
    set_keys,
)


def changed_keys(old: RunConfig, new: RunConfig) -> list[str]:
    a, b = flatten(old), flatten(new)
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_survives_a_round_trip(name: str) -> None:
    config = load_config(name)
    again = parse_config(dump_config(config), "config.yaml")
    assert again == config
    assert changed_keys(config, again) == []


def test_overrides_reach_nested_keys() -> None:
    config = load_config("cox", ["--data.batch", "32", "--optim.lr", "1e-4", "--seed", "3"])
    assert (config.data.batch, config.optim.lr, config.seed) == (32, 1e-4, 3)
    assert changed_keys(load_config("cox"), config) == ["data.batch", "optim.lr", "seed"]


def test_yaml_floats_without_a_point_are_numbers(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "base: cox\noptim:\n  lr: 1e-4\n")
    assert load_config(recipe).optim.lr == 1e-4


def test_unknown_key_names_file_line_and_the_nearest(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "base: cox\noptim:\n  shedule: cosine\n")
    with pytest.raises(
        UserError,
        match=r"r\.yaml:3: optim\.shedule: unknown key; did you mean "
        r"'schedule'",
    ):
        load_config(recipe)


def test_wrong_value_names_what_is_allowed(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "base: cox\noptim:\n  schedule: cosin\n")
    with pytest.raises(
        UserError,
        match=r"r\.yaml:3: optim\.schedule: must be .*'cosine'.*got "
        r"'cosin'",
    ):
        load_config(recipe)


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    text = "base: cox\nseed: many\ndata:\n  batsh: 3\noptim:\n  lr: fast\n"
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path / "r.yaml", text))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert [line.split(":")[1] for line in sorted(lines)] == ["2", "4", "6"]


def test_unknown_method_names_the_nearest(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "base: cox\nmethod:\n  name: coxx\n")
    with pytest.raises(
        UserError, match=r"r\.yaml:2: method: unknown name 'coxx'; did you mean 'cox'"
    ):
        load_config(recipe)


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "base: cox\ndata: [1, 2\nseed: 1\n")
    with pytest.raises(UserError, match=r"r\.yaml:3"):
        load_config(recipe)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown recipe 'coxs'; did you mean 'cox'"):
        load_config("coxs")


def test_unknown_override_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown key 'data\.batchs'; did you mean 'data\.batch'"):
        load_config("cox", ["--data.batchs", "64"])


def test_wrong_type_of_an_override_names_the_key() -> None:
    with pytest.raises(UserError, match=r"--data\.batch.*many"):
        load_config("cox", ["--data.batch", "many"])


def test_switching_the_method_keeps_what_both_know() -> None:
    cox = load_config("cox")
    erm = load_config("cox", ["--method.name", "erm"])
    assert erm.method.name == "erm"
    assert changed_keys(cox, erm)
    assert all(k.startswith("method.") for k in changed_keys(cox, erm))


def test_set_keys_validates() -> None:
    config = load_config("cox")
    assert set_keys(config, {"engine.epochs": 2}).engine.epochs == 2
    with pytest.raises(UserError, match="epochz"):
        set_keys(config, {"engine.epochz": 2})
