"""What a run records about its machine: plausible, and in TensorBoard only."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from outmodal.train.hardware import Usage
from outmodal.train.metrics import Metrics
from outmodal.train.recorder import Recorder


def test_memory_and_processor_time_are_plausible() -> None:
    usage = Usage()
    begin = time.process_time()
    while time.process_time() - begin < 0.1:
        pass
    busy = usage.read()
    assert 20 < busy["host_MiB"] < 1e6
    assert busy["cpu_cores"] > 0
    time.sleep(0.2)
    assert usage.read()["cpu_cores"] < busy["cpu_cores"] + 1


def test_the_recorder_shows_them_and_gauges_beside_the_speed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown: dict[str, float] = {}
    monkeypatch.setattr(Metrics, "board", lambda self, step, values: shown.update(values))
    recorder = Recorder(1, 10)
    recorder.gauges["data/skipped"] = lambda: 3
    recorder.open(tmp_path, 0, 0)
    recorder.speed(5, 0.0)
    recorder.close()
    assert {"speed/steps_per_s", "hardware/host_MiB", "hardware/cpu_cores"} <= shown.keys()
    assert shown["data/skipped"] == 3
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
