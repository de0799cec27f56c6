"""Data sets that a program of this machine fetches: `pipe:PROGRAM ARGUMENT ... {}`.

`{}` stands for the name of the file, whose bytes the program must write to its standard output:
`pipe:rclone cat store:set/{}`. No shell sees the text: it is cut into arguments as a shell would
cut it, and nothing in it is expanded. It runs only where `--allow-pipe` is on the command line,
because whoever writes such an address runs a program on every machine that opens it.
"""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass

from outmodal.data.store import ShardFile, StoreError
from outmodal.data.store_config import RemoteConfig, pipes_allowed
from outmodal.data.store_remote import LARGEST_FILE, RemoteShard
from outmodal.data.transport import Whole, tries
from outmodal.data.transport_pipe import PREFIX, Pipe
from outmodal.errors import UserError


def arguments(address: str) -> tuple[str, ...]:
    """Return the program and its arguments; UserError if the address is no such thing."""
    try:
        words = tuple(shlex.split(address.removeprefix(PREFIX)))
    except ValueError as error:
        raise UserError(f"{address}: {error}") from None
    if not words or not any("{}" in word for word in words[1:]):
        raise UserError(f"{address}: write pipe:PROGRAM ARGUMENT ..., with {{}} for a file's name")
    if shutil.which(words[0]) is None:
        raise UserError(f"{address}: there is no program '{words[0]}' on this machine")
    return words


@dataclass(frozen=True)
class PipeStore:
    """What a program gives. Shards are fetched whole, so that a cache folder is needed.

    Attributes:
        where: The address.
        config: Its cache must be set.
    """

    where: str
    config: RemoteConfig

    def __post_init__(self) -> None:
        if not pipes_allowed():
            raise UserError(
                f"{self.where}: runs a program of this machine; add --allow-pipe to the command "
                "if you wrote the address yourself, or give the address of a server"
            )
        arguments(self.where)
        if not self.config.cache:
            raise UserError(
                f"{self.where}: a program gives whole shards only; set data.remote.cache to a "
                "folder where they are kept"
            )

    @property
    def folder(self) -> None:
        """None: there is no folder."""
        return None

    def read_bytes(self, name: str) -> bytes:
        """Return a whole small file; StoreError."""
        into = Whole(self._url(name), LARGEST_FILE)
        tries(lambda: Pipe().get(into.url, 0, None, into), into.url, self.config)
        return bytes(into.data)

    def open(self, name: str) -> ShardFile:
        """Not to be had: StoreError."""
        raise StoreError(f"{self.where}: gives whole shards only")

    def size(self, name: str) -> int:
        """Return the bytes of a file by reading all of it; StoreError."""
        return len(self.read_bytes(name))

    def shard(self, name: str, size: int, sha256: str) -> PipeShard:
        """Return the place of a shard."""
        return PipeShard(self._url(name), size, sha256, self.config)

    def _url(self, name: str) -> str:
        return self.where.replace("{}", name)


@dataclass(frozen=True)
class PipeShard(RemoteShard):
    """A shard that a program gives, from the cache folder."""

    @property
    def name(self) -> str:
        """The program's argument that names the shard."""
        words = (word for word in shlex.split(self.url) if word.endswith(".tar"))
        return next(words, self.url).rpartition("/")[2]

    def index_bytes(self) -> None:
        """None: with the whole shard here its headers cost little."""
        return None
