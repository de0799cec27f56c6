"""`outmodal data COMMAND`: make data sets and look at them. One module for each command."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import cast

from outmodal.errors import UserError, nearest
from outmodal.launch.cli import Command, Outcome

COMMANDS: Mapping[str, Command] = {
    "build": Command("data_build", "make one: fashion-speech, six-view, imagenet, folder (own)"),
    "index": Command("data_index", "DIR: make dataset.json for tars that other tools wrote"),
    "check": Command("data_check", "DIR: verify every shard, decode every sample; --repair"),
    "stats": Command("data_stats", "DIR: counts, classes, gaps, durations, values, duplicates"),
    "show": Command("data_show", "DIR: draw a contact sheet (PNG)"),
    "transcode": Command("transcode", "DIR --out DIR: smaller pictures, which decode faster"),
}


def usage() -> str:
    """The text of `outmodal data --help`."""
    lines = [f"  {name:<10} {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: outmodal data COMMAND ...",
            "",
            *lines,
            "",
            "`outmodal data COMMAND --help` shows a command's options and an example.",
            "",
            "example: outmodal data build fashion-speech --out fashion --train 10000 --workers 2",
        ]
    )


def run(argv: Sequence[str]) -> Outcome:
    """Entry point of the command."""
    if not argv or argv[0] in ("-h", "--help"):
        return Outcome({}, usage())
    name = argv[0]
    if name not in COMMANDS:
        raise UserError(f"unknown command 'data {name}'{nearest(name, COMMANDS)}")
    module = importlib.import_module(f"outmodal.launch.commands.{COMMANDS[name].module}")
    return cast(Outcome, module.run(list(argv[1:])))
