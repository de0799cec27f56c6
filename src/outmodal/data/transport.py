"""Getting bytes from an address: what one request gives, and how often it is tried.

A `Transport` makes one request and tells apart what may pass (`Hiccup`) from what will not. The
functions here try again with growing pauses, and go on at the byte where a transfer broke.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from outmodal.data.store import ChangedError, StoreError
from outmodal.data.store_config import RemoteConfig

LONGEST_PAUSE = 30.0
"""Seconds between two tries, at most."""

_PROGRESS = 8 << 20  # bytes after which a transfer that breaks again starts its count of tries anew
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a server says before the bytes come.

    Attributes:
        begin: Position of the first byte that comes.
        total: Bytes of the whole file, -1 if the server does not say.
        tag: What changes with the content: ETag, else time of change, else "".
        whole: All bytes to the last one come, whatever was asked for.
    """

    begin: int
    total: int
    tag: str
    whole: bool = False


class Hiccup(Exception):
    """A request failed in a way that may pass.

    Attributes:
        text: What happened.
        after: Seconds that the server asked to wait, 0 if it did not.
    """

    def __init__(self, text: str, after: float = 0.0) -> None:
        super().__init__(text)
        self.text, self.after = text, after


class DeniedError(StoreError):
    """The server knows the address and refuses it."""


class NoRangesError(StoreError):
    """The server gives whole files only."""


class Receiver(Protocol):
    """Takes what a request gives. What its methods raise ends the request."""

    def start(self, answer: Answer) -> None:
        """Called once, before the bytes."""
        ...

    def write(self, data: bytes) -> None:
        """Called with each piece."""
        ...


class Transport(Protocol):
    """Makes requests; belongs to one process, serves all its threads."""

    def get(self, url: str, begin: int, end: int | None, receiver: Receiver) -> None:
        """Request the bytes [begin, end) of `url`, to its last where `end` is None.

        Raises Hiccup, FileNotFoundError, StoreError, and what the receiver raises.
        """
        ...


def fetch_range(
    transport: Transport, url: str, begin: int, end: int, tag: str, config: RemoteConfig
) -> tuple[bytes, Answer]:
    """Return the bytes [begin, end) of a file, and what the server says of the file.

    Args:
        transport: Makes the requests.
        url: The file.
        begin, end: 0 <= begin < end <= bytes of the file.
        tag: Of an earlier answer; "" compares nothing.
        config: Tries, pauses.

    Raises ChangedError if the content is another than that of `tag`, NoRangesError,
    FileNotFoundError, StoreError.
    """
    into = _Stretch(url, begin, end, tag)
    tries(lambda: transport.get(url, into.at, end, into), url, config)
    if into.answer is None or len(into.data) != end - begin:
        raise ChangedError(f"ends at byte {into.at}, byte {end} was asked for")
    return bytes(into.data), into.answer


def ask(transport: Transport, url: str, config: RemoteConfig) -> Answer:
    """Return what the server says of a file, without reading it. Errors as in `fetch_whole`."""
    into = _Enough()

    def request() -> None:
        try:
            transport.get(url, 0, 1, into)
        except _Stop:
            return

    tries(request, url, config)
    if into.answer is None:
        raise StoreError(f"{url}: the server says nothing of it")
    return into.answer


def fetch_whole(transport: Transport, url: str, limit: int, config: RemoteConfig) -> bytes:
    """Return a whole small file. Raises FileNotFoundError, StoreError; also above `limit` bytes."""
    into = Whole(url, limit)
    tries(lambda: transport.get(url, into.at, None, into), url, config)
    return bytes(into.data)


def tries(
    request: Callable[[], None],
    url: str,
    config: RemoteConfig,
    got: Callable[[], int] = lambda: 0,
) -> None:
    """Call `request` until it passes, `config.retries` times more than once at most.

    Args:
        request: Raises Hiccup for what may pass.
        url: For the messages.
        config: Tries and pauses.
        got: Bytes so far; a transfer that went on well starts its count of tries anew.
    """
    failed, mark = 0, got()
    while True:
        try:
            request()
            return
        except Hiccup as hiccup:
            if got() - mark >= _PROGRESS:
                failed, mark = 0, got()
            failed += 1
            if failed > config.retries:
                raise StoreError(
                    f"{url}: {hiccup.text} (tried {failed} times); look at the server and the "
                    "network, or raise data.remote.retries or data.remote.timeout"
                ) from None
            pause = min(config.pause * 2 ** (failed - 1), LONGEST_PAUSE)
            pause = max(pause * random.uniform(0.5, 1.0), min(hiccup.after, LONGEST_PAUSE))
            _log.info("%s: %s; again in %.1f s", url, hiccup.text, pause)
        time.sleep(pause)


class _Stop(Exception):
    """The receiver has what it wants."""


class _Enough:
    """Receives what the server says, and ends the request."""

    def __init__(self) -> None:
        self.answer: Answer | None = None

    def start(self, answer: Answer) -> None:
        """Keep the answer."""
        self.answer = answer
        raise _Stop

    def write(self, data: bytes) -> None:
        """Not called."""


class _Stretch:
    """Receives a stretch of a file, in any number of requests."""

    def __init__(self, url: str, begin: int, end: int, tag: str) -> None:
        self.url, self.at, self.end, self.tag = url, begin, end, tag
        self.data = bytearray()
        self.answer: Answer | None = None

    def start(self, answer: Answer) -> None:
        """Check that these are the bytes that were asked for."""
        if answer.begin != self.at or (answer.whole and answer.total != self.end):
            raise NoRangesError(
                f"{self.url}: the server gives whole files only (it ignores the header Range); "
                "set data.remote.cache to a folder, so that whole shards are kept there"
            )
        compare_tags(self.tag, answer.tag)
        self.tag = self.tag or answer.tag
        self.answer = answer

    def write(self, data: bytes) -> None:
        """Keep a piece."""
        self.data += data
        self.at += len(data)


class Whole:
    """Receives a whole file into memory; one that changes on the way begins again."""

    def __init__(self, url: str, limit: int) -> None:
        self.url, self.limit, self.at, self.tag = url, limit, 0, ""
        self.data = bytearray()

    def start(self, answer: Answer) -> None:
        """Go on where the last request ended, or begin again."""
        if answer.begin != self.at or (self.at and answer.tag != self.tag):
            self.data.clear()
            self.at = 0
            if answer.begin:
                raise Hiccup("the content changed on the way")
        self.tag = answer.tag
        if answer.total > self.limit:
            raise StoreError(f"{self.url}: {answer.total} bytes, more than {self.limit}")

    def write(self, data: bytes) -> None:
        """Keep a piece."""
        self.data += data
        self.at += len(data)
        if self.at > self.limit:
            raise StoreError(f"{self.url}: more than {self.limit} bytes")


def compare_tags(known: str, found: str) -> None:
    """Raise ChangedError if two answers are about different contents."""
    if known and found and known != found:
        raise ChangedError(
            f"changed while it was read: the server's tag was {known}, and is {found} now"
        )


_lock = threading.Lock()
_open: dict[tuple[str, RemoteConfig, str], Transport] = {}
_inherited: list[object] = []


def transport(scheme: str, config: RemoteConfig) -> Transport:
    """Return this process's transport for a scheme; UserError if its packages are missing."""
    from outmodal.data import transport_http, transport_pipe, transport_s3

    if scheme == "pipe":
        return transport_pipe.Pipe()
    # The client takes it from the environment once, and programs may change theirs.
    key = (scheme, config, os.environ.get("AWS_ENDPOINT_URL", ""))
    with _lock:
        known = _open.get(key)
        if known is None:
            make = transport_s3.S3 if scheme == "s3" else transport_http.Http
            known = _open[key] = make(config)
        return known


def _after_fork() -> None:
    """Forget the parent's connections: their event loop does not run here.

    They stay referenced, because their destructors would shut the parent's sockets.
    """
    global _lock
    _lock = threading.Lock()
    _inherited.append(dict(_open))
    _open.clear()


os.register_at_fork(after_in_child=_after_fork)
