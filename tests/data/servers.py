"""Servers on loopback for tests: nginx, an S3 server, and an HTTP server with faults."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NGINX = """
worker_processes 1;
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        location /moved/ {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
        location /circle/ {{ return 302 /circle/; }}
        location /secret/ {{ deny all; }}
    }}
}}
"""


@contextmanager
def held_port() -> Iterator[int]:
    """A port of loopback that nobody else gets, and where nobody listens.

    A program that sets SO_REUSEADDR, as servers do, may still listen there.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, **options: Any) -> Iterator[None]:
    """A program that listens on `port`, until the end of the block."""
    program = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    )
    try:
        _wait(program, port)
        yield
    finally:
        program.send_signal(signal.SIGTERM)
        program.wait(120)


def _wait(program: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + 200
    while time.monotonic() < end:
        assert program.poll() is None, f"{program.args} ended with {program.returncode}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"{program.args} does not listen")


@contextmanager
def nginx(root: Path, folder: Path) -> Iterator[str]:
    """The address of `root`, served by nginx; its own files lie in `folder`."""
    folder.mkdir()
    with held_port() as port:
        yield from _nginx(root, folder, port)


def _nginx(root: Path, folder: Path, port: int) -> Iterator[str]:
    config = folder / "nginx.conf"
    # As root it would serve as another user, who must not enter root's temporary folders.
    head = "user root;\n" if os.geteuid() == 0 else ""
    config.write_text(head + NGINX.format(folder=folder, root=root, port=port))
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    command = ["nginx", "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
    with running(command, port, env={**os.environ, "PATH": path}):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of an S3 server without contents."""
    with held_port() as port:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        with running(command, port):
            yield f"http://127.0.0.1:{port}"


class Faults:
    """What a `faulty` server does wrong, and what it was asked.

    Attributes:
        cut: Bytes of the body after which each transfer is cut off; None sends all.
        cuts: Transfers that are still to be cut; -1 is every one.
        status: Status in place of an answer, for the next `statuses` requests; -1 is every one.
        pause: Seconds before the body.
        ranges: Whether the header Range is heeded.
        tag: ETag.
        replace: path -> bytes in place of the file's.
        asked: (path, Range) of every request.
    """

    def __init__(self, tag: str = '"one"') -> None:
        self.cut: int | None = None
        self.cuts = -1
        self.status, self.statuses = 503, 0
        self.pause = 0.0
        self.ranges = True
        self.tag = tag
        self.replace: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.only = ".tar"
        """Faults meet paths with this end."""
        self.lock = threading.Lock()
        self.over = threading.Event()
        """Set at the end of the server, which nothing pauses any more."""

    def shards(self) -> list[str | None]:
        """The ranges that were asked of shards."""
        return [span for path, span in self.asked if path.endswith(".tar")]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A reader that was killed is no news."""


@contextmanager
def faulty(root: Path) -> Iterator[tuple[str, Faults]]:
    """A server of `root` that does what `Faults` says."""
    faults = Faults()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits some 40 ms

        def do_GET(self) -> None:
            _answer(self, root, faults)

        def log_message(self, *_: Any) -> None: ...

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        faults.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(request: BaseHTTPRequestHandler, root: Path, faults: Faults) -> None:
    """Answer one request; what goes wrong is settled before the reader hears anything.

    A reader may stop at the head and change the faults for its next request.
    """
    span = request.headers.get("Range")
    faults.asked.append((request.path, span))
    struck = request.path.endswith(faults.only)
    with faults.lock:
        refused = struck and faults.statuses != 0
        faults.statuses -= refused
        status = faults.status
    if refused:
        _head(request, status, 0)
        return
    file = root / request.path.lstrip("/")
    data = faults.replace.get(request.path) or (file.read_bytes() if file.is_file() else None)
    if data is None:
        _head(request, 404, 0)
        return
    body, part = data, ""
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", span or "")
    if found and faults.ranges:
        first = int(found[1])
        last = min(int(found[2] or len(data) - 1), len(data) - 1)
        if first > last:
            _head(request, 416, 0)
            return
        body, part = data[first : last + 1], f"bytes {first}-{last}/{len(data)}"
    _send(request, body, part, faults if struck else Faults(faults.tag))


def _send(request: BaseHTTPRequestHandler, body: bytes, part: str, faults: Faults) -> None:
    pause, size = faults.pause, len(body)
    with faults.lock:
        if faults.cut is not None and faults.cuts and size > faults.cut:
            faults.cuts -= 1
            body = body[: faults.cut]
            request.close_connection = True
    if part:
        _head(request, 206, size, **{"ETag": faults.tag, "Content-Range": part})
    else:
        _head(request, 200, size, ETag=faults.tag)
    faults.over.wait(pause)
    try:
        request.wfile.write(body)
    except OSError:
        request.close_connection = True  # the reader has gone


def _head(request: BaseHTTPRequestHandler, status: int, size: int, **headers: str) -> None:
    request.send_response(status)
    request.send_header("Content-Length", str(size))
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()
