"""How addresses are read, chosen on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from outmodal.data.store_config import CHOSEN, RemoteConfig, as_chosen, pipes_allowed
from outmodal.errors import UserError
from outmodal.launch.cli import main
from outmodal.launch.config import load_config
from outmodal.launch.local import run_local
from outmodal.launch.remote import chosen_remote
from tests.data.tiny import make_tiny


def answer(*argv: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capfd.readouterr()
    code = main([*argv, "--json"])
    return code, json.loads(capfd.readouterr().out.splitlines()[-1])


@pytest.fixture
def piped(tmp_path: Path) -> str:
    """The address of a data set that a program gives."""
    make_tiny(tmp_path / "set", modalities=("pose",))
    return f"pipe:cat {tmp_path}/set/{{}}"


def test_values_reach_every_place_that_opens_addresses() -> None:
    argv = ["DATA", "--data.remote.retries", "8", "--rows", "2", "--data.remote.cache=/c", "-x"]
    with chosen_remote("data", argv) as rest:
        assert rest == ["DATA", "--rows", "2", "-x"]
        assert as_chosen(RemoteConfig(timeout=3)) == RemoteConfig(retries=8, cache="/c", timeout=3)
        assert not pipes_allowed()
    assert as_chosen(None) == RemoteConfig()
    assert CHOSEN not in os.environ


def test_recipes_keep_their_keys_and_no_file_allows_programs(tmp_path: Path) -> None:
    argv = ["erm", "--data.remote.retries", "8", "--allow-pipe"]
    with chosen_remote("train", argv) as rest:
        assert rest == argv[:-1]
        assert pipes_allowed()
        assert load_config("erm", rest[1:]).data.remote.retries == 8
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: erm\ndata: {remote: {allow_pipe: true}}\n", "utf-8")
    with pytest.raises(UserError, match="allow_pipe"):
        load_config(str(recipe))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--data.remote.cach", "/c"], "did you mean 'cache'"),
        (["--data.remote.retries", "many"], "many"),
        (["--data.remote.cache_gb", "-1"], "cache_gb"),
    ],
)
def test_mistakes_are_named(argv: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, found = answer("data", "stats", "file:///nowhere", *argv, capfd=capfd)
    assert code == 2
    assert words in found["error"]


def test_a_program_runs_only_where_the_command_says_so(
    piped: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = ["--data.remote.cache", str(tmp_path / "cache")]
    for command in (["data", "stats"], ["data", "check"], ["doctor", "--data"]):
        code, found = answer(*command, piped, *cache, capfd=capfd)
        assert code == 2
        assert "--allow-pipe" in json.dumps(found)
        code, found = answer(*command, piped, *cache, "--allow-pipe", capfd=capfd)
        assert code == 0, found
    code, found = answer("train", "erm", "--data.path", piped, "--out", str(tmp_path), capfd=capfd)
    assert code == 2
    assert "--allow-pipe" in found["error"]


def test_processes_that_a_command_starts_know_it(piped: str, tmp_path: Path) -> None:
    with chosen_remote("embed", ["--allow-pipe", f"--data.remote.cache={tmp_path}/cache"]):
        code, out = run_local(["data", "stats", piped, "--json"], 1)
    assert code == 0
    assert json.loads(out)["splits"]["train"]["samples"] == 24
