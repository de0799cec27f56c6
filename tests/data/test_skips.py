"""The ledger of corrupt samples: counted once, named, and limited."""

from __future__ import annotations

import logging
import threading

import pytest

from outmodal.data.skips import SkipLedger, SkipRecord, per_source, united
from outmodal.errors import UserError


def record(index: int, split: str = "train", source: str = "") -> SkipRecord:
    shard = f"{split}-000003.tar"
    return SkipRecord(split, shard, index, f"k{index:03d}", "image: truncated", source)


def test_a_sample_counts_once() -> None:
    ledger = SkipLedger(2)
    for _ in range(5):
        ledger.extend([record(7), record(7, "test")])
    assert ledger.count == 2
    assert ledger.report()[0] == {
        "split": "train",
        "shard": "train-000003.tar",
        "index": 7,
        "key": "k007",
        "reason": "image: truncated",
        "source": "",
    }


def test_one_more_than_the_budget_names_the_first_ten_and_the_remedy() -> None:
    ledger = SkipLedger(12, "/data/mine")
    ledger.extend(record(i) for i in range(12))
    with pytest.raises(UserError) as caught:
        ledger.add(record(12))
    message = str(caught.value)
    assert message.startswith("13 corrupt samples, and data.max_skips=12")
    assert "train-000003.tar k000 (image: truncated)" in message
    assert "k009" in message
    assert "k010" not in message
    assert "and 3 more" in message
    assert "outmodal data check /data/mine" in message
    assert "raise data.max_skips" in message


def test_a_budget_of_zero_stops_at_the_first() -> None:
    with pytest.raises(UserError, match="1 corrupt samples"):
        SkipLedger(0).add(record(0))


def test_a_sample_without_a_key_is_named_by_its_index() -> None:
    assert "sample 9 of 'test'" in str(SkipRecord("test", "test-000000.tar", 9, "", "cut short"))


def test_a_workers_ledger_hands_each_record_over_once_and_never_stops() -> None:
    ledger = SkipLedger(0, enforce=False)
    ledger.add(record(1))
    assert [r.index for r in ledger.drain()] == [1]
    ledger.extend([record(1), record(2), record(3)])
    assert [r.index for r in ledger.drain()] == [2, 3]
    assert ledger.drain() == []


def test_the_log_names_the_first_records_and_then_grows_slowly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        SkipLedger(1000).extend(record(i) for i in range(200))
    assert "train-000003.tar k000" in caplog.records[0].getMessage()
    assert len(caplog.records) == 10 + 4  # 16, 32, 64, 128


def test_each_source_of_a_mixture_has_its_own_budget() -> None:
    ledger = SkipLedger(3, "a and b")
    ledger.extend(record(i, source="a") for i in range(3))
    ledger.extend(record(i, source="b") for i in range(10, 13))
    with pytest.raises(UserError, match=r"^4 corrupt samples.*check b` to find") as caught:
        ledger.add(record(13, source="b"))
    assert "k000" not in str(caught.value)


def test_what_several_ranks_met_is_counted_once() -> None:
    ranks = [SkipLedger(9), SkipLedger(9)]
    ranks[0].extend([record(5, source="a"), record(1, source="b")])
    ranks[1].extend([record(5, source="a"), record(7, source="a")])
    whole = united(ledger.report() for ledger in ranks)
    assert [(r.source, r.index) for r in whole] == [("a", 5), ("a", 7), ("b", 1)]
    assert per_source(whole) == {"a": 2, "b": 1}


def test_threads_that_find_the_same_samples_count_them_once() -> None:
    ledger = SkipLedger(10**6)
    threads = [
        threading.Thread(target=ledger.extend, args=([record(i) for i in range(200)],))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.count == len(ledger.drain()) == 200
