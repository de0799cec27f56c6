"""The command line as a process: overview, JSON, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from outmodal.launch.cli import COMMANDS


def outmodal(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a fresh process."""
    return subprocess.run(
        [sys.executable, "-m", "outmodal", *args],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=120,
        check=False,
    )


def test_help_lists_every_command() -> None:
    result = outmodal("--help")
    assert result.returncode == 0
    for name in COMMANDS:
        assert f"  {name} " in result.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from outmodal.launch.cli import main; main(['--help']);"
        "heavy = {'torch', 'transformers', 'pydantic', 'tyro', 'numpy', 'yaml'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = outmodal(command, "--help")
    assert result.returncode == 0, result.stderr
    assert "example" in result.stdout


def test_unknown_command_names_the_nearest() -> None:
    result = outmodal("trian")
    assert result.returncode == 2
    assert "did you mean 'train'" in result.stderr
    assert "Traceback" not in result.stderr


def test_json_is_one_object_even_on_failure() -> None:
    result = outmodal("train", "no-such-recipe", "--json")
    assert result.returncode == 2
    answer = json.loads(result.stdout)
    assert "no-such-recipe" in answer["error"]
