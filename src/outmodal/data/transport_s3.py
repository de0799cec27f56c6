"""Requests to S3 and whatever speaks its protocol, through s3fs.

Everything about the server and the account comes from the environment, as for all AWS tools:
AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,
AWS_PROFILE. Without credentials buckets are read as the public may.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from outmodal.data.store import ChangedError, StoreError
from outmodal.data.store_config import RemoteConfig
from outmodal.data.transport import Answer, DeniedError, Hiccup, Receiver
from outmodal.errors import UserError

PIECE = 1 << 20

_PASSING = ("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling")


class S3:
    """The transport of one process. Raises UserError if s3fs is not installed."""

    def __init__(self, config: RemoteConfig) -> None:
        try:
            import aiohttp
            import botocore.exceptions  # type: ignore[import-untyped]
            import s3fs
        except ImportError as error:
            raise UserError(
                f"data sets on s3 need the package {error.name}: pip install 'outmodal[remote]'"
            ) from None
        self._errors = botocore.exceptions
        self._broken = (
            botocore.exceptions.HTTPClientError,
            botocore.exceptions.ConnectionError,
            aiohttp.ClientError,
        )
        self._make = s3fs.S3FileSystem
        self._config = config
        self._lock = threading.Lock()
        self._files = self._session(public=False)

    def _session(self, public: bool) -> Any:
        """Return a file system without retries and caches of its own."""
        own = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        settings: dict[str, Any] = {
            "connect_timeout": self._config.connect_timeout,
            "read_timeout": self._config.timeout,
            "retries": {"total_max_attempts": 1},
        }
        if own:  # buckets of a server of one's own have no host names of their own
            settings["s3"] = {"addressing_style": "path"}
        files = self._make(
            anon=public, skip_instance_cache=True, config_kwargs=settings, use_listings_cache=False
        )
        files.retries = 1
        return files

    def get(self, url: str, begin: int, end: int | None, receiver: Receiver) -> None:
        """Make one request, see `Transport`."""
        errors, files = self._errors, self._files
        try:
            self._request(files, url, begin, end, receiver)
        except ChangedError:
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(2, f"the server answers 404: {error}") from None
        except errors.NoCredentialsError:
            if files.anon:
                raise DeniedError(f"{url}: no credentials; {_CREDENTIALS}") from None
            with self._lock:  # of several threads that were refused the first makes the session
                if self._files is files:
                    self._files = self._session(public=True)
            self.get(url, begin, end, receiver)
        except PermissionError as error:
            raise DeniedError(f"{url}: the server refuses ({error}); {_CREDENTIALS}") from None
        except (TimeoutError, errors.ReadTimeoutError):
            raise Hiccup("no answer in time") from None
        except self._broken as error:
            raise Hiccup(_text(error)) from None
        except (errors.BotoCoreError, OSError) as error:
            raise _sorted(url, error) from None

    def _request(
        self, files: Any, url: str, begin: int, end: int | None, receiver: Receiver
    ) -> None:
        from fsspec.asyn import sync

        sync(files.loop, self._get, files, url, begin, end, receiver)

    async def _get(
        self, files: Any, url: str, begin: int, end: int | None, receiver: Receiver
    ) -> None:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        asked = {}
        if begin or end is not None:
            asked["Range"] = f"bytes={begin}-{'' if end is None else end - 1}"
        answer = await files._call_s3("get_object", Bucket=bucket, Key=key, **asked)
        body = answer["Body"]
        try:
            told = _answer(answer)
            receiver.start(told)
            got, stop = told.begin, told.begin + answer["ContentLength"]
            while data := await body.read(PIECE):
                receiver.write(data)
                got += len(data)
            if got < stop:
                raise Hiccup(f"the transfer ended at byte {got} of {stop}")
        finally:
            body.close()


_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


def _answer(answer: Any) -> Answer:
    tag = answer.get("ETag") or str(answer.get("LastModified") or "")
    span = answer.get("ContentRange", "")
    if not span:
        return Answer(0, int(answer["ContentLength"]), tag, whole=True)
    first, _, total = span.removeprefix("bytes ").partition("/")
    return Answer(int(first.partition("-")[0]), int(total), tag)


def _sorted(url: str, error: Exception) -> Exception:
    """Return what an error of the client means."""
    cause = error.__cause__ or error
    found = getattr(cause, "response", None) or {}
    code = str(found.get("Error", {}).get("Code", ""))
    status = int(found.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "InvalidRange" or status == 416:
        return ChangedError("shorter than it was: the server refuses the range")
    if status == 404:
        return FileNotFoundError(2, f"the server answers 404 {code}".rstrip())
    if status in (401, 403):
        return DeniedError(f"{url}: the server answers {status} {code}; {_CREDENTIALS}")
    if status >= 500 or status == 429 or code in _PASSING:
        return Hiccup(f"the server answers {status} {code}".rstrip())
    if not found and isinstance(error, OSError):
        return Hiccup(_text(error))
    return StoreError(f"{url}: {error}; look at AWS_ENDPOINT_URL, AWS_REGION and the bucket")


def _text(error: BaseException) -> str:
    return f"the connection failed: {str(error) or type(error).__name__}"
