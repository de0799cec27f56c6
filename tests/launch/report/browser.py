"""Headless Chromium over the DevTools protocol, through two pipes: no port, no package."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no address is waited for
    "--remote-debugging-pipe",
)
PATIENCE = 90.0  # seconds: a machine under load starts a browser slowly
_HIGH = 60  # pipe ends lie above the numbers 3 and 4, which the browser wants


def executable() -> str:
    """Path of the browser; fails with the command that installs it."""
    for name in NAMES:
        found = shutil.which(name)
        if found:
            return found
    raise AssertionError(
        "these tests need Chromium: run `apt-get install chromium` (`make debian` does) and repeat"
    )


class Browser:
    """One browser process with one page.

    Attributes:
        events: What the page reported since `load`: (method, parameters).
    """

    def __init__(self, profile: Path) -> None:
        theirs_in, self._out = _pipe()
        self._in, theirs_out = _pipe()
        self._process = subprocess.Popen(
            [executable(), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            close_fds=False,
            preexec_fn=lambda: _hand_over(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest, self._count, self._session = b"", 0, ""
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def load(self, page: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Open a file in a window of this size and colour scheme, and wait until it is drawn."""
        self.call("Page.navigate", url="about:blank")
        self.until("location.href === 'about:blank'")  # the page before says nothing more
        self.events.clear()
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=page.as_uri())
        drawn = "document.readyState === 'complete' && location.protocol === 'file:' && "
        drawn += "[...document.querySelectorAll('.plot')].every((p) => p.querySelector('svg'))"
        self.until(drawn)

    def until(self, condition: str) -> None:
        """Wait until an expression of the page is true."""
        end = time.monotonic() + PATIENCE
        while not self.value(condition):
            assert time.monotonic() < end, f"never became true: {condition}"
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """What an expression gives in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key, of one character or by name."""
        text = {"text": key} if len(key) == 1 else {}
        code = {"Tab": 9, "Enter": 13, " ": 32}.get(key, 0)
        text |= {"text": "\r"} if key == "Enter" else {}
        common = {"key": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def mouse(self, kind: str, x: float, y: float, held: bool = False) -> None:
        """A mouse event: mouseMoved, mousePressed, mouseReleased."""
        button = {"button": "left", "buttons": 1, "clickCount": 1} if held else {}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def picture(self, path: Path, **clip: float) -> None:
        """Save the window, or x, y, width, height of the page, as PNG."""
        more = {"clip": {"scale": 1, **clip}, "captureBeyondViewport": True} if clip else {}
        shot = self.call("Page.captureScreenshot", format="png", **more)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[Any]:
        """Errors and warnings of the page's console, exceptions, refusals of its policy."""
        loud = ("error", "warning", "assert")
        found = []
        for method, event in self.events:
            if method == "Runtime.exceptionThrown":
                found.append(event["exceptionDetails"])
            elif method == "Log.entryAdded" and event["entry"]["level"] in loud:
                found.append(event["entry"])
            elif method == "Runtime.consoleAPICalled" and event["type"] in loud:
                found.append(event["args"])
        return found

    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        sent = [event for method, event in self.events if method == "Network.requestWillBeSent"]
        return [event["request"]["url"] for event in sent]

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            piece = os.read(self._in, 1 << 16)
            assert piece, f"Chromium ended with {self._process.poll()}"
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(text)
        if "method" in answer:
            self.events.append((answer["method"], answer["params"]))
        return answer

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)


def _pipe() -> tuple[int, int]:
    """The ends to read and to write, above the low numbers."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _HIGH) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]


def _hand_over(read: int, write: int) -> None:
    """In the child: put the pipes where the browser looks for them."""
    os.dup2(read, 3)
    os.dup2(write, 4)
