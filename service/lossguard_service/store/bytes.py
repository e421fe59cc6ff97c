"""The bytes of chunks and segments: in their database row, or in an object that the row names.

Guarantees. An object is written before the transaction that names it, under a key that is never used again, so a row
never names bytes that are not there, and a crash in between leaves an object that nobody names (`cleanup` finds it).
An object is deleted only after the row that named it is gone, and some time later (`doom`). Each row says where its own
bytes are, so the setting may change at any time: what is in the database stays there and stays readable.

BytesError
├── BytesUnavailable   the object store did not answer, or refused us: nothing was stored, later may do
│   └── AnotherStore   it answers, but it is not the one with this database's objects: nothing was stored
└── BytesLost          an object that a row names is not there, or is not what was written: somebody deleted it
"""

import asyncio
import functools
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.store import schema

K = TypeVar("K")
BYTES_OPTION: Final = "lossguard_bytes"
"""The execution option by which a connection knows its database's byte store."""
LEAST_BYTES: Final = 4096
"""Less than this stays in its row: as an object it would cost a request of its own, whatever its size."""
AT_ONCE: Final = 32
"""Requests to the object store that one read has under way."""
KEEP_SECONDS: Final = 86_400.0
PROBE_SECONDS: Final = 10.0


class BytesError(Exception):
    """Bytes that a row names, or should name, cannot be had."""


class BytesUnavailable(BytesError):
    """The object store did not answer or refused us; nothing was stored, and the same may succeed later."""


class AnotherStore(BytesUnavailable):
    """The store answers, but it is not the one with this database's objects; nothing was stored."""


class BytesLost(BytesError):
    """An object that a row names is gone or cut short: no later try brings it back."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An object that exists.

    Attributes:
        key: its name.
        size: in bytes.
        modified: Unix seconds by the object store's clock.
    """

    key: str
    size: int
    modified: float


class Objects(Protocol):
    """An object store: whole values under keys. Every method raises `BytesUnavailable`."""

    @property
    def may_vanish(self) -> bool:
        """Whether another, empty one may stand in its place from one moment to the next: a folder that is unmounted."""
        ...

    async def put(self, key: str, data: bytes) -> None:
        """Store `data`; when this returns, it is durable."""
        ...

    async def get(self, key: str, ranges: Sequence[tuple[int, int]] | None = None) -> list[bytes]:
        """The bytes of each range (start, size), or of the whole object as the only one.

        Raises:
            BytesLost: there is no such object, or a range reaches beyond its end.
        """
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Make these not exist; it is no error if some do not."""
        ...

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        ...

    def listed(self, prefix: str) -> AsyncIterator[list[Listed]]:
        """All objects whose key begins with the folder `prefix`, some at a time."""
        ...


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Bytes that are in an object: `size` of them from `start` on, or all of it."""

    key: str
    start: int = 0
    size: int | None = None


Held = bytes | Elsewhere
"""What a row holds: the bytes, or where they are."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What to write into a row.

    Attributes:
        data: for its column `data`.
        object: for its column `object`; None if the bytes are in `data`.
        since: when the object began to be written, Unix seconds.
    """

    data: bytes
    object: str | None = None
    since: float = 0.0


class ByteStore:
    """Where this service puts bytes, and how it gets them back.

    Args:
        objects: the object store; None keeps everything in the database.
        keep_seconds: how long an object stays when no row names it any more. A backup of the database that is younger
            than this is whole; a transaction that takes longer than half of it is refused.
        clock: Unix seconds.
    """

    def __init__(
        self,
        objects: Objects | None = None,
        *,
        keep_seconds: float = KEEP_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.objects = objects
        self.keep_seconds = keep_seconds
        self._clock = clock
        self.folder = ""
        self.hold: Callable[[], Awaitable[None]] | None = None
        """Makes sure that the store is this database's (`ownership`); asked before the first object is put."""
        self._held = False
        self._probed = -PROBE_SECONDS

    async def keep(self, run: str, name: str, data: bytes, *, index: bytes = b"") -> Kept:
        """Put bytes where they belong.

        Args:
            run: `run_folder` of the run.
            name: what they are, for people who look into the store.
            data: the bytes.
            index: what the row shall hold in place of the bytes if they go elsewhere.
        """
        if self.objects is None or len(data) < LEAST_BYTES:
            return Kept(data)
        await self._hold()
        key, since = f"{self.folder}/{run}/{name}-{secrets.token_hex(8)}", self._clock()
        await self.objects.put(key, data)
        return Kept(index, key, since)

    @property
    def mark(self) -> str:
        """The key of the object that says whose the objects are."""
        return f"{self.folder}/owner"

    async def _hold(self) -> None:
        if self.hold is None or self.objects is None:
            return
        if not self._held or (self.objects.may_vanish and not await self.objects.exists(self.mark)):
            self._held = False
            await self.hold()
            self._held = True

    def check(self, kept: Kept) -> None:
        """To be asked by the transaction that names an object: clean-up must not have begun to look at it.

        Raises:
            BytesUnavailable: it was written too long ago.
        """
        if kept.object is not None and abs(self._clock() - kept.since) > self.keep_seconds / 2:
            raise BytesUnavailable("an object waited too long for its transaction: send the same again")

    async def where(self) -> str:
        """Where bytes go, in words; whether they can is tried out, at most every `PROBE_SECONDS`.

        Raises:
            BytesUnavailable: there is an object store, and it does not take them or give them back.
        """
        if self.objects is None:
            return "in the database"
        await self._hold()
        if not 0 <= self._clock() - self._probed < PROBE_SECONDS:
            key = f"{self.folder}/probe"
            await self.objects.put(key, b"a probe; it may be deleted")
            await self.objects.get(key)
            self._probed = self._clock()
        return "in an object store, which answers"

    async def discard(self, kept: Kept) -> None:
        """Delete an object of which it is certain that no row names it; what fails here is left to the clean-up."""
        if kept.object is not None and self.objects is not None:
            with suppress(BytesUnavailable):
                await self.objects.delete([kept.object])

    async def fetch(self, held: Sequence[Mapping[K, Held]]) -> list[dict[K, bytes]]:
        """The bytes themselves; one request for each object that is needed."""
        found: list[dict[K, Any]] = [dict(one) for one in held]
        wanted: dict[str, list[tuple[dict[K, Any], K, Elsewhere]]] = {}
        for one in found:
            for name, value in one.items():
                if isinstance(value, Elsewhere):
                    wanted.setdefault(value.key, []).append((one, name, value))
        if not wanted:
            return found
        objects, turn = self.objects, asyncio.Semaphore(AT_ONCE)
        if objects is None:
            raise BytesUnavailable("bytes are in object storage, of which this service was not told: set bytes_url")

        async def get(key: str, places: list[tuple[dict[K, Any], K, Elsewhere]]) -> None:
            ranges = None if places[0][2].size is None else [(one.start, one.size or 0) for _, _, one in places]
            async with turn:
                values = await objects.get(key, ranges)
            for (one, name, _), value in zip(places, values, strict=True):
                one[name] = value

        await asyncio.gather(*(get(key, places) for key, places in wanted.items()))
        return found


@functools.lru_cache(maxsize=4096)
def run_folder(project: str, name: str) -> str:
    """The run's part of a key: of one length whatever the names are made of, and spread over all keys."""
    return hashlib.sha256(f"{project}\0{name}".encode()).hexdigest()[:24]


def doom(
    connection: Connection, run_id: int, attempt: int, index: int, kind: str, keys: Sequence[str], now: float
) -> None:
    """Note that no row names these objects any more, in the transaction that made it so; `cleanup` deletes them.

    Args:
        connection: inside that transaction.
        run_id, attempt, index: whose they were: the first chunk's.
        kind: what they were, `chunks` or `segment`.
        keys: of the objects; none is fine.
        now: Unix seconds.
    """
    if keys:
        values = {"run_id": run_id, "attempt": attempt, "first_index": index, "kind": kind}
        connection.execute(sa.insert(schema.doomed_objects), values | {"objects": list(keys), "since": now})
