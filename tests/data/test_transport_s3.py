"""Buckets that the public may read, for a process without an account."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from outmodal.data.store_config import RemoteConfig
from outmodal.data.transport import Answer, DeniedError, Whole
from outmodal.data.transport_s3 import S3

THREADS = 4


def reader(monkeypatch: pytest.MonkeyPatch, refused: threading.Barrier, public: bool) -> S3:
    """A transport whose requests with an account fail, all at the same moment."""
    made = S3(RemoteConfig())

    def request(files: Any, url: str, begin: int, end: int | None, receiver: Any) -> None:
        if not files.anon:
            refused.wait()
        if not (files.anon and public):
            raise made._errors.NoCredentialsError
        receiver.start(Answer(0, 3, "tag"))
        receiver.write(b"abc")

    monkeypatch.setattr(made, "_request", request)
    return made


def test_threads_that_are_refused_at_once_all_read_as_the_public(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = reader(monkeypatch, threading.Barrier(THREADS, timeout=120), public=True)
    found: list[bytes] = []

    def read() -> None:
        into = Whole("s3://shelf/a", 10)
        made.get("s3://shelf/a", 0, None, into)
        found.append(bytes(into.data))

    threads = [threading.Thread(target=read) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"abc"] * THREADS


def test_a_bucket_that_is_not_public_asks_for_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    made = reader(monkeypatch, threading.Barrier(1), public=False)
    for _ in range(2):
        with pytest.raises(DeniedError, match="no credentials; set AWS_ACCESS_KEY_ID"):
            made.get("s3://shelf/a", 0, None, Whole("s3://shelf/a", 10))
