"""The command `outmodal`: find the command, run it, turn its outcome into output and exit code.

Nothing heavy is imported here, so that `outmodal --help` answers at once; every command
lives in a module of `outmodal.launch.commands` and is imported when it is called.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast

from outmodal import __version__
from outmodal.errors import StoppedEarly, UserError, nearest
from outmodal.train.signals import ends_after_stop, ignore_more


@dataclass(frozen=True)
class Command:
    """Where a command lives, and its line in the overview."""

    module: str
    help: str


COMMANDS: Mapping[str, Command] = {
    "quickstart": Command("quickstart", "the whole flow on the embedded data set"),
    "data": Command("data", "build, index, check, transcode, stats, show: make and look at data"),
    "embed": Command("embed", "run frozen perceptors once over a data set, keep their features"),
    "train": Command("train", "train a recipe; repeat the command to resume"),
    "plan": Command("plan", "memory, wires, hours and storage of a run, before it is paid for"),
    "submit": Command("submit", "run a recipe, or a table's cells, as a job of a SLURM cluster"),
    "eval": Command("evaluate", "evaluate a run, an export, or perceptors alone, on a data set"),
    "reproduce": Command("reproduce", "the methods of a table of a paper, on a data set"),
    "report": Command("report", "one HTML page about runs: curves, tables, maps; opens offline"),
    "export": Command("export", "export a run's encoder for transformers.AutoModel"),
    "bench": Command("bench", "measure kernels, perceptors, reading and training beside peers"),
    "doctor": Command("doctor", "check this machine and its installation"),
}

_CODE = ("--allow-code", "--allow_code", "--method.path")
_REMOTE = ("--allow-pipe", "--allow_pipe", "--data.remote.")


@dataclass(frozen=True)
class Outcome:
    """What a command returns: `data` for --json, `text` for people, and the exit code."""

    data: Mapping[str, Any]
    text: str
    exit_code: int = 0


def overview() -> str:
    """The text of `outmodal --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {c.help}" for name, c in COMMANDS.items()]
    return "\n".join(
        [
            f"outmodal {__version__}: encoders for new modalities, against frozen encoders.",
            "",
            "usage: outmodal COMMAND ... [--section.key value ...] [--json]",
            "",
            *lines,
            "",
            "`outmodal COMMAND --help` shows a command's options and an example.",
            "Data sets at addresses are read as --data.remote.KEY VALUE says (cache, cache_gb, "
            "retries,\ntimeout, connect_timeout, pause); pipe: addresses want --allow-pipe.",
            "Recipes and runs that name code (method.path) want --allow-code.",
            "With --json a command prints one JSON object on stdout, all else on stderr.",
            "Exit codes: 0 done; 2 wrong input; 75 stopped early after a checkpoint; 1 else.",
        ]
    )


@contextmanager
def _stdout_to_stderr() -> Any:
    """Send file descriptor 1 to 2, for this process and its children; yield the real stdout."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    real = os.fdopen(os.dup(saved), "w", encoding="utf-8")
    try:
        yield real
    finally:
        sys.stdout.flush()
        real.close()
        os.dup2(saved, 1)
        os.close(saved)


def _run(name: str, argv: Sequence[str]) -> Outcome:
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'{nearest(name, COMMANDS)}")
    module = importlib.import_module(f"outmodal.launch.commands.{COMMANDS[name].module}")
    words = list(argv)
    with ExitStack() as stack:
        if any(word.startswith(_CODE) for word in words):
            from outmodal.launch.code import chosen_code

            words = stack.enter_context(chosen_code(name, words))
        if any(word.startswith(_REMOTE) for word in words):
            from outmodal.launch.remote import chosen_remote

            words = stack.enter_context(chosen_remote(name, words))
        return cast(Outcome, module.run(words))


def _guarded(name: str, argv: Sequence[str]) -> Outcome:
    """Run a command; user errors and early stops become outcomes with their exit codes."""
    try:
        return _run(name, argv)
    except (UserError, StoppedEarly) as error:
        message = str(error)
        if not error.quiet:
            sys.stderr.write(f"outmodal {name}: {message}\n")
        data = {"error": message, "exit_code": error.exit_code}
        return Outcome(data, "", error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write(f"outmodal {name}: interrupted\n")
        return Outcome({"error": "interrupted", "exit_code": 1}, "", 1)
    except Exception as error:  # noqa: BLE001 - the border to the shell: report and exit 1
        traceback.print_exc()
        return Outcome({"error": f"{type(error).__name__}: {error}", "exit_code": 1}, "", 1)


def _print_json(stream: IO[str], data: Mapping[str, Any]) -> None:
    stream.write(json.dumps(data, sort_keys=False) + "\n")
    stream.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        ends_after_stop()
    as_json = "--json" in args
    args = [a for a in args if a != "--json"]
    if not args or args[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview() + "\n")
        return 0
    if args[0] == "--version":
        sys.stdout.write(__version__ + "\n")
        return 0
    if not as_json:
        outcome = _guarded(args[0], args[1:])
        if outcome.text:
            sys.stdout.write(outcome.text.rstrip() + "\n")
    else:
        with _stdout_to_stderr() as real:
            outcome = _guarded(args[0], args[1:])
            _print_json(real, outcome.data)
    if argv is None and outcome.exit_code == StoppedEarly.exit_code:
        ignore_more()  # a second signal must not turn 75 into a death by that signal
    return outcome.exit_code
