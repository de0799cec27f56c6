"""A watch over progress: a run in which nothing happens shows where every rank stands, and ends.

Ranks wait for each other in every step, so where one hangs, all stand still. Each has a thread
that counts for how long its rank made no progress (a clock of its own: clocks of other machines
are never compared). The first to lose patience *alarms* the others by a file in the run's folder;
every rank then writes the stacks of its threads and of its loader's workers beside it, with the
shards and samples that they read; the one that alarmed joins them to one
RUN/hang-*.txt and names the ranks that did not answer (stopped processes, lost nodes), and all
leave with 1.

A rank that hangs inside a library that holds Python's lock cannot run that thread. For it
faulthandler keeps a timer outside of Python, which writes the same file and ends the process; where
no other rank is there to join it, `lastwords` does.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TextIO

from outmodal.data import board
from outmodal.data.cache import write_atomic
from outmodal.train import gather
from outmodal.train.folderlock import writing
from outmodal.train.lastwords import LastWords
from outmodal.train.together import on_main

_log = logging.getLogger(__name__)

_LOOKS = 20  # in the time of patience
_SLOWEST_LOOK = 10.0  # seconds


class Watchdog:
    """Watches this rank while entered; entering and leaving without an error are collective.

    Args:
        folder: The run's folder, which all ranks see.
        minutes: Patience; 0 watches nothing.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self._folder, self._patience = folder, 60 * minutes
        self._look = min(self._patience / _LOOKS, _SLOWEST_LOOK)
        self._here: Path | None = None
        self._last = (time.monotonic(), "starting")
        self._leave = threading.Event()
        self._thread: threading.Thread | None = None
        self._words: LastWords | None = None
        self._late: TextIO | None = None

    def beat(self, doing: str) -> None:
        """Note progress: `doing` says in a few words what was reached."""
        self._last = (time.monotonic(), doing)

    def __enter__(self) -> Watchdog:
        if self._patience > 0:
            self._here = Path(on_main(self._prepare))
            self.beat("starting")
            if gather.world().size == 1:
                self._words = LastWords(self._say_last_words)
            with writing(self._folder):
                own = self._part(gather.world().rank)
                self._late = own.with_suffix(".late").open("w", encoding="utf-8")
            self._set_timer()  # here: what hangs may never let the thread run
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            faulthandler.cancel_dump_traceback_later()
            if self._late is not None:
                self._late.close()
            if self._words is not None:
                self._words.cancel()
            if gather.is_main() and self._here is not None:
                shutil.rmtree(self._here, ignore_errors=True)

    def _prepare(self) -> str:
        """A folder of this attempt's own, so that an older one's alarm says nothing."""
        for old in self._folder.glob(".watch-*"):
            shutil.rmtree(old, ignore_errors=True)
        here = self._folder / f".watch-{os.urandom(6).hex()}"
        with writing(self._folder):
            here.mkdir(parents=True)
        return str(here)

    # --- the watching thread -----------------------------------------------------------------

    def _watch(self) -> None:
        assert self._here is not None
        alarm = self._here / "alarm"
        seen = self._last[0]
        while not self._leave.wait(self._look):
            if self._last[0] != seen:
                seen = self._last[0]
                self._set_timer()
            if alarm.exists():
                self._answer(first=False)
            elif time.monotonic() - self._last[0] > self._patience:
                self._answer(first=_created(alarm))

    def _set_timer(self) -> None:
        """Have the stacks written from outside Python, and the process ended, some time later."""
        late_by = self._patience + 4 * self._look + 1.0
        assert self._late is not None
        faulthandler.dump_traceback_later(late_by, exit=True, file=self._late)

    def _answer(self, first: bool) -> None:
        """Write this rank's part; the first joins them, the others wait for it. Does not return.

        The timer stays on: what hangs may be the disk that this writes to.
        """
        faulthandler.dump_traceback_later(2 * self._answer_time(), exit=True, file=2)
        try:
            self._write_part()
            if first:
                self._join()
            else:
                self._until(lambda: not self._alarmed())
        except OSError as error:
            _log.error("no progress, and its report cannot be written: %s", error)
        finally:
            _end_process()

    def _write_part(self) -> None:
        own = self._part(gather.world().rank)
        with own.with_suffix(".partial").open("w", encoding="utf-8") as file:
            file.write(self._heading() + "\n")
            file.flush()
            faulthandler.dump_traceback(file=file, all_threads=True)
            file.write(reading + "\n" if (reading := board.report()) else "")
            file.flush()
            os.fsync(file.fileno())
        os.replace(own.with_suffix(".partial"), own)

    def _heading(self) -> str:
        world, (when, doing) = gather.world(), self._last
        job = os.environ.get("SLURM_JOB_ID")
        place = f"{socket.gethostname()}, process {os.getpid()}" + (f", job {job}" if job else "")
        waits = time.monotonic() - when
        return f"=== rank {world.rank} of {world.size} on {place}: {waits:.0f} s after '{doing}'"

    def _join(self) -> None:
        """One file of all ranks' parts, in rank order; then the alarm is over."""
        ranks = range(gather.world().size)
        self._until(lambda: all(self._part(rank).exists() for rank in ranks))
        texts = [
            f"No progress for {self._patience:.0f} s. Innermost calls come first. A rank "
            "in a collective\nwaits for another one: look for the rank that does something else."
        ]
        for rank in ranks:
            found = self._found(rank)
            texts.append(found or f"=== rank {rank} did not answer: stopped, killed or cut off")
        silent = [str(rank) for rank in ranks if not self._found(rank)]
        target = self._free_name()
        write_atomic(target, ("\n\n".join(texts) + "\n").encode())
        note = f"; no answer from rank {', '.join(silent)}" if silent else ""
        _log.error(
            "no progress for %.0f s%s: see %s. Run the same command again to go on; if it was only "
            "slow, raise engine.hang_minutes",
            self._patience,
            note,
            target,
        )
        shutil.rmtree(self._here or target, ignore_errors=True)

    def _say_last_words(self) -> None:
        """In a child, when this process is gone: report what its timer has written, if it has."""
        if not self._alarmed() and (late := self._found(0)):
            text = f"No progress for {self._patience:.0f} s.\n\n{late}\n{board.readings()}\n"
            target = self._free_name()
            write_atomic(target, text.encode())
            os.write(2, f"no progress for {self._patience:.0f} s: see {target}\n".encode())
            shutil.rmtree(self._here or target, ignore_errors=True)

    def _found(self, rank: int) -> str:
        part = self._part(rank)
        for path in (part, part.with_suffix(".late")):
            if path.exists() and (text := path.read_text("utf-8", errors="replace").strip()):
                return text if path == part else f"=== rank {rank} (stuck inside a library)\n{text}"
        return ""

    def _free_name(self) -> Path:
        number = 1
        while (path := self._folder / f"hang-{number}.txt").exists():
            number += 1
        return path

    def _part(self, rank: int) -> Path:
        assert self._here is not None
        return self._here / f"rank-{rank}.txt"

    def _alarmed(self) -> bool:
        return self._here is not None and (self._here / "alarm").exists()

    def _answer_time(self) -> float:
        """Seconds that looks of all ranks and their timers may take, and a little more."""
        return 6 * self._look + 5.0

    def _until(self, done: Callable[[], bool]) -> None:
        """Wait for `done()` for the time of an answer."""
        end = time.monotonic() + self._answer_time()
        while not done() and time.monotonic() < end:
            time.sleep(min(self._look, 0.2))


def _created(path: Path) -> bool:
    """Make an empty file; False where there is one, or where it cannot be made."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except OSError:
        return False
    return True


def _end_process() -> None:
    """Leave at once: the main thread hangs, so nothing can be closed in order."""
    for worker in multiprocessing.active_children():
        worker.kill()
    logging.shutdown()
    os._exit(1)
