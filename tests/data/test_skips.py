"""The ledger of corrupt samples: counted once, named, and limited."""

from __future__ import annotations

import logging

import pytest

from outmodal.data.skips import SkipLedger, SkipRecord
from outmodal.errors import UserError


def record(index: int, split: str = "train") -> SkipRecord:
    return SkipRecord(split, f"{split}-000003.tar", index, f"k{index:03d}", "image: truncated")


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
