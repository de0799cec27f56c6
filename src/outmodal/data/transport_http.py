"""Requests to http and https addresses, over the session of fsspec's file system.

Proxies and credentials come from the environment: HTTPS_PROXY, NO_PROXY, and the file NETRC.
"""

from __future__ import annotations

import re
from typing import Any

from outmodal.data.store import ChangedError, StoreError
from outmodal.data.store_config import RemoteConfig
from outmodal.data.transport import Answer, DeniedError, Hiccup, Receiver
from outmodal.errors import UserError

REDIRECTS = 5
PIECE = 1 << 20

_PASSING = (408, 425, 429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Http:
    """The transport of one process. Raises UserError if aiohttp is not installed."""

    def __init__(self, config: RemoteConfig) -> None:
        try:
            import aiohttp
            from fsspec.implementations.http import HTTPFileSystem
        except ImportError as error:
            raise UserError(
                f"data sets on http(s) need the package {error.name}: "
                "pip install 'outmodal[remote]'"
            ) from None
        self._aiohttp = aiohttp
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=config.connect_timeout, sock_read=config.timeout
        )
        self._files = HTTPFileSystem(
            skip_instance_cache=True,
            client_kwargs={"timeout": timeout, "trust_env": True, "read_bufsize": PIECE},
        )

    def get(self, url: str, begin: int, end: int | None, receiver: Receiver) -> None:
        """Make one request, see `Transport`."""
        from fsspec.asyn import sync

        aiohttp = self._aiohttp
        try:
            sync(self._files.loop, self._get, url, begin, end, receiver)
        except aiohttp.TooManyRedirects:
            raise StoreError(f"{url}: more than {REDIRECTS} redirects") from None
        except aiohttp.InvalidURL:
            raise StoreError(f"{url}: not an address") from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise StoreError(
                f"{url}: the server's certificate is not accepted ({error}); name your "
                "authority's file in SSL_CERT_FILE"
            ) from None
        except TimeoutError:
            raise Hiccup("no answer in time") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Hiccup(_text(error)) from None

    async def _get(self, url: str, begin: int, end: int | None, receiver: Receiver) -> None:
        headers = {"Accept-Encoding": "identity"}
        if begin or end is not None:
            headers["Range"] = f"bytes={begin}-{'' if end is None else end - 1}"
        session = await self._files.set_session()
        async with session.get(url, headers=headers, max_redirects=REDIRECTS) as answer:
            if url.startswith("https:") and answer.url.scheme != "https":
                raise StoreError(f"{url}: redirects to an address without encryption")
            _refuse(url, answer)
            told = _answer(answer)
            receiver.start(told)
            stop = told.total if end is None or answer.status == 200 else min(end, told.total)
            got = told.begin
            async for data in answer.content.iter_any():
                receiver.write(data)
                got += len(data)
            if got < stop:
                raise Hiccup(f"the transfer ended at byte {got} of {stop}")


def _refuse(url: str, answer: Any) -> None:
    """Raise what a status other than 200 and 206 means."""
    status = answer.status
    if status in (200, 206):
        return
    said = f"the server answers {status} {answer.reason or ''}".rstrip()
    if status in _PASSING:
        raise Hiccup(said, _seconds(answer.headers.get("Retry-After", "")))
    if status in (404, 410):
        raise FileNotFoundError(2, said)
    if status == 416:
        raise ChangedError(f"shorter than it was: {said}")
    if status in (401, 403, 407):
        raise DeniedError(
            f"{url}: {said}; give credentials in the file that NETRC names, or make it readable"
        )
    raise StoreError(f"{url}: {said}; look whether the address is right")


def _answer(answer: Any) -> Answer:
    headers = answer.headers
    tag = headers.get("ETag") or headers.get("Last-Modified") or ""
    if answer.status == 200:
        return Answer(0, int(headers.get("Content-Length", -1)), tag, whole=True)
    found = _RANGE.fullmatch(headers.get("Content-Range", ""))
    if found is None:
        raise Hiccup("the server's answer lacks its range")
    return Answer(int(found[1]), -1 if found[3] == "*" else int(found[3]), tag)


def _seconds(text: str) -> float:
    """Return the header Retry-After in seconds; dates are not looked at."""
    return float(text) if text.isdigit() else 0.0


def _text(error: BaseException) -> str:
    system = getattr(error, "os_error", None) or error
    told = getattr(system, "strerror", None) or str(error) or type(error).__name__
    return f"the connection failed: {told}"
