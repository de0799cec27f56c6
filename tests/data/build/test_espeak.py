"""The speech synthesiser: voices, and what is said when it is not installed."""

from __future__ import annotations

import ctypes
import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from outmodal.data.build.espeak import Espeak, Voice, espeak_version
from outmodal.errors import UserError

LIBRARY = "libespeak-ng.so.1"


@pytest.fixture(scope="module")
def synthesiser() -> Espeak:
    return Espeak()


def test_speech_is_a_wave_in_range(synthesiser: Espeak) -> None:
    wave = synthesiser.say("ankle boot", Voice("gmw/en-US+f3"))
    assert wave.dtype == np.float32
    assert synthesiser.rate // 4 < len(wave) < 3 * synthesiser.rate
    assert 0.05 < np.abs(wave).max() <= 1


def test_voice_settings_are_heard(synthesiser: Espeak) -> None:
    def say(name: str, rate: int = 175, pitch: int = 50) -> Any:
        return synthesiser.say("coat", Voice(name, rate, pitch)).tobytes()

    said = {
        say("gmw/en"),
        say("gmw/en+f1"),
        say("gmw/en-US+f1"),
        say("gmw/en+f1", rate=240),
        say("gmw/en+f1", pitch=80),
    }
    assert len(said) == 5


def test_faster_is_shorter(synthesiser: Espeak) -> None:
    slow = synthesiser.say("a long grey coat", Voice("gmw/en", rate=140))
    fast = synthesiser.say("a long grey coat", Voice("gmw/en", rate=260))
    assert len(fast) < len(slow)


def test_an_utterance_holds_nothing_of_the_one_before(synthesiser: Espeak) -> None:
    assert len(synthesiser.say("", Voice("gmw/en"))) < synthesiser.rate // 10


def test_an_unknown_voice_is_named(synthesiser: Espeak) -> None:
    with pytest.raises(UserError, match=r"has no voice 'gmw/xx\+f1'; .*apt-get install"):
        synthesiser.say("coat", Voice("gmw/xx+f1"))


def test_the_version_is_a_number() -> None:
    assert espeak_version().split(".")[0].isdigit()


def without_debian_library(monkeypatch: pytest.MonkeyPatch) -> None:
    load = ctypes.CDLL

    def refuse(name: str) -> ctypes.CDLL:
        if name == LIBRARY:
            raise OSError(f"{LIBRARY}: cannot open shared object file")
        return load(name.removeprefix("wheel/"))

    monkeypatch.setattr(ctypes, "CDLL", refuse)


def with_wheel(monkeypatch: pytest.MonkeyPatch, loader: Any) -> None:
    def find(name: str) -> Any:
        assert name == "espeakng_loader"
        if loader is None:
            raise ModuleNotFoundError(f"No module named '{name}'")
        return loader

    monkeypatch.setattr(importlib, "import_module", find)


def test_without_any_library_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without_debian_library(monkeypatch)
    with_wheel(monkeypatch, None)
    with pytest.raises(UserError, match="apt-get install dataset-fashion-mnist espeak-ng"):
        Espeak()


def test_the_wheel_is_used_where_debian_s_library_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_debian_library(monkeypatch)
    paths = SimpleNamespace(
        get_library_path=lambda: f"wheel/{LIBRARY}", get_data_path=lambda: "/usr/share"
    )
    with_wheel(monkeypatch, paths)
    assert espeak_version()
