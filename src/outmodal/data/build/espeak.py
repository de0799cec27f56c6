"""Speech from libespeak-ng, called in this process through ctypes: about 0.6 ms an utterance.

The library has one global state a process, and what it says depends a little on what it said
before. Whoever needs the same bytes again makes the same calls, in the same order, in a process
that has not spoken yet.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outmodal.errors import UserError

PACKAGES = "apt-get install dataset-fashion-mnist espeak-ng"
"""The command that installs what fashion-speech is made from."""

_SONAME = "libespeak-ng.so.1"

# Constants of espeak-ng/speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_POS_CHARACTER = 1
_RATE, _PITCH, _RANGE = 1, 3, 4

_SynthCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@dataclass(frozen=True)
class Voice:
    """How to say something.

    Attributes:
        name: A voice *file* and a variant: "gmw/en-US+f3", not "en-us+f3".
        rate: Words a minute.
        pitch: 0 to 99.
        spread: Pitch range, 0 to 99.
    """

    name: str
    rate: int = 175
    pitch: int = 50
    spread: int = 50


class Espeak:
    """The speech synthesiser of this process.

    Attributes:
        rate: Samples a second of what `say` returns.
    """

    def __init__(self) -> None:
        """Start the library; UserError if it is not installed."""
        self._library, data = _load()
        self.rate = int(self._library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data, 0))
        if self.rate <= 0:
            raise UserError(f"libespeak-ng finds no voice data; install it: {PACKAGES}")
        self._chunks: list[NDArray[np.int16]] = []
        self._callback = _SynthCallback(self._collect)  # the library keeps no reference to it
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, voice: Voice) -> NDArray[np.float32]:
        """Return `text` as spoken, [T] in -1..1; UserError for a voice that is not installed."""
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise UserError(
                f"eSpeak NG {espeak_version()} has no voice '{voice.name}'; "
                f"install Debian's voices: {PACKAGES}"
            )
        settings = {_RATE: voice.rate, _PITCH: voice.pitch, _RANGE: voice.spread}
        for parameter, value in settings.items():
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        encoded = text.encode()
        self._library.espeak_Synth(
            encoded, len(encoded) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        self._library.espeak_Synchronize()
        if not self._chunks:
            return np.zeros(0, np.float32)
        return np.concatenate(self._chunks).astype(np.float32) / np.float32(32768)

    def _collect(self, wave: ctypes._Pointer[ctypes.c_short], count: int, _: int | None) -> int:
        if wave and count > 0:
            self._chunks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        return 0


def espeak_version() -> str:
    """Return the version of the installed library, "1.51" for instance, without starting it."""
    library, _ = _load()
    info: Callable[..., bytes] = library.espeak_Info
    return info(None).decode().split()[0]


def _load() -> tuple[ctypes.CDLL, bytes | None]:
    """Return the library, and the folder of its data if that is not the one it was built for."""
    try:
        library, data = ctypes.CDLL(_SONAME), None
    except OSError:
        library, data = _load_wheel()
    library.espeak_Info.restype = ctypes.c_char_p
    return library, data


def _load_wheel() -> tuple[ctypes.CDLL, bytes]:
    """Load the library that the wheel `espeakng-loader` carries, for machines without root."""
    try:
        loader = importlib.import_module("espeakng_loader")
        library = ctypes.CDLL(loader.get_library_path())
    except (ImportError, OSError) as error:
        raise UserError(
            f"eSpeak NG is not installed ({error}); install it with `{PACKAGES}`, "
            "or without root with `pip install espeakng-loader`"
        ) from None
    return library, str(loader.get_data_path()).encode()
