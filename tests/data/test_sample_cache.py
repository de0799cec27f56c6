"""The cache of read samples: bounded, what came first stays, memory of its own, threads."""

from __future__ import annotations

import threading

import numpy as np
import torch

from outmodal.data.manifest import Modality
from outmodal.data.sample_cache import OVERHEAD, Facts, Input, Key, Raw, SampleCache

COST = OVERHEAD + 4 * 100


def entry(value: float) -> Input:
    return Input(torch.full((100,), float(value)), True)


def key(index: int) -> Key:
    return ("train", index, "image", "input")


def test_access_in_turns_hits_as_often_as_there_is_room() -> None:
    """Dropping the least recently used would never hit here."""
    cache = SampleCache(30 * COST)
    hits = 0
    for epoch in range(4):
        for i in np.random.default_rng(epoch).permutation(40).tolist():
            found = cache.get(key(i))
            hits += found is not None and epoch > 0
            cache.put(key(i), entry(i))
    assert hits == 3 * 30
    assert cache.bytes == 30 * COST


def test_it_holds_nothing_beyond_its_limit() -> None:
    cache = SampleCache(10 * COST)
    for i in range(1000):
        cache.put(key(i % 37), entry(i))
        cache.put(("train", i % 37, "", "facts"), Facts(1, None))
        cache.put(("train", i % 37, "speech", "raw"), Raw(np.zeros(i % 90, np.float32)))
        cache.put(("train", i % 37, "film", "raw"), Raw(bytes(i % 90)))
        assert cache.bytes <= cache.limit
    nothing = SampleCache(0)
    nothing.put(("train", 0, "", "facts"), Facts(1, None))
    assert len(nothing) == 0


def test_an_entry_does_not_share_memory_with_what_was_put() -> None:
    cache = SampleCache(10 * COST)
    value, wave = torch.zeros(1000), np.zeros(100, np.float32)
    cache.put(("train", 0, "speech", "input"), Input(value[:100], True))
    cache.put(("train", 0, "speech", "raw"), Raw(wave[:10]))
    cache.put(("train", 0, "", "facts"), Facts(2, value[:1], "k"))
    value += 1
    wave += 1
    kept, facts = cache.get(("train", 0, "speech", "input")), cache.get(("train", 0, "", "facts"))
    raw = cache.get(("train", 0, "speech", "raw"))
    assert isinstance(kept, Input)
    assert kept.value is not None
    assert not kept.value.any()
    assert kept.value.untyped_storage().nbytes() == 400
    assert isinstance(facts, Facts)
    assert facts.target is not None
    assert facts.target.tolist() == [0.0]
    assert isinstance(raw, Raw)
    assert isinstance(raw.value, np.ndarray)
    assert not raw.value.any()


def test_bytes_keep_what_they_are() -> None:
    cache, spec = SampleCache(10 * COST), Modality(kind="image", ext="jpg", channels=3)
    cache.put(("train", 0, "image", "raw"), Raw(b"12", spec))
    kept = cache.get(("train", 0, "image", "raw"))
    assert isinstance(kept, Raw)
    assert (kept.value, kept.spec) == (b"12", spec)


def test_threads_that_put_at_once_stay_within_the_limit() -> None:
    cache = SampleCache(50 * COST)

    def put(first: int) -> None:
        for i in range(first, first + 200):
            cache.put(key(i), entry(i))

    threads = [threading.Thread(target=put, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache) == 50
    assert cache.bytes == 50 * COST
