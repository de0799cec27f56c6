"""Exceptions that end a command with a defined exit code and one clear sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The user's input is wrong: the message names the thing and the remedy. Exit code 2.

    Attributes:
        quiet: Another process says it; this one only ends.
    """

    exit_code = 2
    quiet = False


class StoppedEarly(Exception):
    """The run stopped on request after a complete checkpoint was written. Exit code 75.

    Attributes:
        quiet: Another process says it; this one only ends.
    """

    exit_code = 75
    quiet = False


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'X'?" for the closest known name, or the list of known names.

    >>> nearest("cosin", ["cosine", "wsd"])
    "; did you mean 'cosine'?"
    """
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(options)}" if options else ""
