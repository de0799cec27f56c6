"""The cache of transformed samples: bounded, least recently used first, with memory of its own."""

from __future__ import annotations

import torch

from outmodal.data.sample_cache import OVERHEAD, Facts, Input, SampleCache

COST = OVERHEAD + 4 * 100


def entry(value: float) -> Input:
    return Input(torch.full((100,), float(value)), True)


def test_the_least_recently_used_goes_first() -> None:
    cache = SampleCache(3 * COST)
    for i in range(3):
        cache.put(("train", i, "image"), entry(i))
    assert cache.get(("train", 0, "image")) is not None
    cache.put(("train", 3, "image"), entry(3))
    held = [i for i in range(4) if cache.get(("train", i, "image")) is not None]
    assert held == [0, 2, 3]
    assert cache.bytes == 3 * COST


def test_it_holds_nothing_beyond_its_limit() -> None:
    cache = SampleCache(10 * COST)
    for i in range(1000):
        cache.put(("train", i % 37, "image"), entry(i))
        cache.put(("train", i % 37, None), Facts(1, None))
        assert cache.bytes <= cache.limit
    nothing = SampleCache(0)
    nothing.put(("train", 0, None), Facts(1, None))
    assert len(nothing) == 0


def test_an_entry_does_not_share_memory_with_what_was_put() -> None:
    cache = SampleCache(10 * COST)
    value = torch.zeros(1000)
    cache.put(("train", 0, "speech"), Input(value[:100], True))
    cache.put(("train", 0, None), Facts(2, value[:1]))
    value += 1
    kept, facts = cache.get(("train", 0, "speech")), cache.get(("train", 0, None))
    assert isinstance(kept, Input)
    assert kept.value is not None
    assert not kept.value.any()
    assert kept.value.untyped_storage().nbytes() == 400
    assert isinstance(facts, Facts)
    assert facts.target is not None
    assert facts.target.tolist() == [0.0]
