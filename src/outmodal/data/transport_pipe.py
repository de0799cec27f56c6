"""Whole files from the standard output of a program."""

from __future__ import annotations

import shlex
import subprocess

from outmodal.data.store import StoreError
from outmodal.data.transport import Answer, Hiccup, Receiver

PREFIX = "pipe:"
PIECE = 1 << 20


class Pipe:
    """Runs one program for each request, without a shell."""

    def get(self, url: str, begin: int, end: int | None, receiver: Receiver) -> None:
        """Give the whole file, see `Transport`; a program that fails is a Hiccup."""
        words = shlex.split(url.removeprefix(PREFIX))
        try:
            program = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise StoreError(f"{url}: {error.strerror}; is the program installed?") from None
        with program:
            assert program.stdout is not None
            try:
                receiver.start(Answer(0, -1, ""))
                while data := program.stdout.read(PIECE):
                    receiver.write(data)
            except BaseException:
                program.kill()
                raise
        if program.returncode:
            raise Hiccup(f"the program ended with {program.returncode}")
