"""Tries, pauses, and what is put together from several requests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outmodal.data import transport
from outmodal.data.store import ChangedError, StoreError
from outmodal.data.store_config import RemoteConfig
from outmodal.data.transport import (
    Answer,
    Hiccup,
    NoRangesError,
    Receiver,
    ask,
    fetch_range,
    fetch_whole,
    tries,
)

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, which take no time here."""
    slept: list[float] = []
    monkeypatch.setattr(transport.time, "sleep", slept.append)
    monkeypatch.setattr(transport.random, "uniform", lambda low, high: high)
    return slept


class Scripted:
    """A transport whose requests end after given numbers of bytes, the last one whole."""

    def __init__(self, *ends: int, tags: tuple[str, ...] = ("a",), ranges: bool = True) -> None:
        self.ends, self.tags, self.ranges = list(ends), list(tags), ranges
        self.asked: list[tuple[int, int | None]] = []

    def get(self, url: str, begin: int, end: int | None, receiver: Receiver) -> None:
        self.asked.append((begin, end))
        tag = self.tags.pop(0) if len(self.tags) > 1 else self.tags[0]
        if not self.ranges:
            begin, end = 0, None
        receiver.start(Answer(begin, len(CONTENT), tag, whole=not self.ranges))
        part = CONTENT[begin:end]
        if self.ends:
            receiver.write(part[: self.ends.pop(0)])
            raise Hiccup("cut")
        receiver.write(part)


def failing(times: int, after: float = 0.0) -> Callable[[], None]:
    left = [times]

    def request() -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise Hiccup("no", after)

    return request


def test_pauses_grow_to_a_limit(pauses: list[float]) -> None:
    tries(failing(9), "url", RemoteConfig(retries=9, pause=0.5))
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_the_server_may_ask_for_a_longer_pause(pauses: list[float]) -> None:
    tries(failing(3, after=7.0), "url", RemoteConfig(retries=3, pause=0.5))
    assert pauses == [7, 7, 7]
    pauses.clear()
    tries(failing(1, after=3600.0), "url", RemoteConfig(retries=1, pause=0.5))
    assert pauses == [30]


@pytest.mark.parametrize("retries", [0, 3])
def test_tries_are_bounded(pauses: list[float], retries: int) -> None:
    with pytest.raises(StoreError, match=rf"url: no \(tried {retries + 1} times\)"):
        tries(failing(1000), "url", RemoteConfig(retries=retries))
    assert len(pauses) == retries


def test_a_transfer_that_gets_on_may_break_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_PROGRESS", 100)
    got = [0]

    def request() -> None:
        got[0] += 100
        if got[0] < 2000:
            raise Hiccup("cut")

    tries(request, "url", RemoteConfig(retries=1), lambda: got[0])
    assert got == [2000]


def test_a_stretch_goes_on_where_it_broke() -> None:
    server = Scripted(10, 0, 30)
    data, answer = fetch_range(server, "url", 100, 200, "", RemoteConfig())
    assert data == CONTENT[100:200]
    assert answer.total == len(CONTENT)
    assert server.asked == [(100, 200), (110, 200), (110, 200), (140, 200)]


def test_a_stretch_of_two_contents_is_refused() -> None:
    with pytest.raises(ChangedError, match="tag was a, and is b now"):
        fetch_range(Scripted(10, tags=("a", "b")), "url", 100, 200, "", RemoteConfig())
    with pytest.raises(ChangedError, match="tag was old"):
        fetch_range(Scripted(), "url", 100, 200, "old", RemoteConfig())
    assert fetch_range(Scripted(tags=("",)), "url", 1, 2, "old", RemoteConfig())[0] == b"\x01"


def test_a_stretch_behind_the_end_is_refused() -> None:
    end = len(CONTENT) + 5
    with pytest.raises(ChangedError, match=f"byte {end} was asked for"):
        fetch_range(Scripted(), "url", end - 10, end, "", RemoteConfig())


@pytest.mark.parametrize("begin", [0, 100])
def test_servers_without_ranges_are_found_out(begin: int) -> None:
    server = Scripted(ranges=False)
    with pytest.raises(NoRangesError):
        fetch_range(server, "url", begin, 200, "", RemoteConfig())
    assert fetch_range(server, "url", 0, len(CONTENT), "", RemoteConfig())[0] == CONTENT


def test_a_whole_file_begins_again_where_it_must() -> None:
    server = Scripted(10, 20)
    assert fetch_whole(server, "url", 1 << 20, RemoteConfig()) == CONTENT
    assert [begin for begin, _ in server.asked] == [0, 10, 30]
    changed = Scripted(10, tags=("a", "b", "b"))
    assert fetch_whole(changed, "url", 1 << 20, RemoteConfig()) == CONTENT
    assert [begin for begin, _ in changed.asked] == [0, 10, 0]
    assert fetch_whole(Scripted(10, ranges=False), "url", 1 << 20, RemoteConfig()) == CONTENT


def test_a_whole_file_has_a_limit() -> None:
    with pytest.raises(StoreError, match="more than 100"):
        fetch_whole(Scripted(), "url", 100, RemoteConfig())


def test_asking_reads_nothing() -> None:
    server = Scripted(5)
    assert ask(server, "url", RemoteConfig()) == Answer(0, len(CONTENT), "a")
    assert server.asked == [(0, 1)]
