"""One small interface over SQLite and PostgreSQL: `read` and `write` run a function inside one transaction; `glance`
runs one small SELECT, which is a transaction by itself.

The function takes a SQLAlchemy `Connection` and is the same for both. On SQLite it runs in a thread, and writes that
queue up share a commit (`lossguard_service.store.sqlite`). On PostgreSQL it runs in a greenlet on the event loop over
asyncpg (`lossguard_service.store.postgres`). When `write` returns, the transaction is durable. `at_once` does a
transaction of which all is known beforehand in one way there and back or, on SQLite, on the event loop itself, where
those that are asked for in one turn of it share a commit, too.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.util import await_only

from lossguard_service.store.bytes import BYTES_OPTION, ByteStore
from lossguard_service.store.hot import Guarded, Hot
from lossguard_service.store.postgres import PostgresDatabase
from lossguard_service.store.sqlite import SqliteDatabase

T = TypeVar("T")


class DatabaseUrlError(ValueError):
    """The database's URL names no database that this service can use; nothing was opened."""


class Database(Protocol):
    """Where everything is kept. `read` and `write` may be called from any task of one event loop."""

    @property
    def name(self) -> str:
        """`sqlite` or `postgresql`."""
        ...

    @property
    def bytes(self) -> ByteStore:
        """Where the bytes of chunks and segments go."""
        ...

    @property
    def is_far(self) -> bool:
        """Whether a statement is a way there and back, so that `at_once` is always worth its while; where it is near,
        only for who is alone, or for little: it holds up the event loop.
        """
        ...

    async def read(self, function: Callable[[Connection], T]) -> T:
        """What `function` returns from one consistent snapshot; it must not write."""
        ...

    async def glance(self, select: Hot, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The rows of one SELECT that reads a few rows by their keys: what is asked again and again."""
        ...

    async def write(self, function: Callable[[Connection], T]) -> T:
        """What `function` returns, once its transaction is durable; an exception undoes all it wrote."""
        ...

    async def at_once(
        self, guarded: Guarded, values: Mapping[str, Any], size: int, *, together: bool = False
    ) -> bool | None:
        """Do a transaction of which all is known, without the ordinary way's cost.

        Args:
            guarded: its statements.
            values: theirs.
            size: of the bytes among the values.
            together: whether to wait for those who ask for the same in this turn of the event loop, and share a commit.

        Returns:
            True if it is done, durably; False if nothing of it is done, because the guard found no row, or because now
            the ordinary way is the better one; None if nobody knows, because a connection was lost.
        """
        ...

    async def close(self) -> None:
        """Finish what is queued and release files, threads and connections."""
        ...


def open_database(url: str, *, connections: int = 8, bytes: ByteStore | None = None) -> Database:
    """The database behind a URL: `sqlite:///relative/or//absolute/path` or `postgresql://user:password@host/name`.

    Args:
        url: as above.
        connections: at most so many at once.
        bytes: where the bytes of chunks and segments go; into their rows by default.

    Raises:
        DatabaseUrlError: with a sentence that says what to write instead.
    """
    try:
        parsed = make_url(url)
    except sa.exc.ArgumentError:
        raise DatabaseUrlError(
            f"{url!r} is no database URL: use sqlite:///path/to/file.db or postgresql://user:password@host/name"
        ) from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise DatabaseUrlError(
                "a database in memory would forget everything: name a file, sqlite:///path/to/file.db"
            )
        return SqliteDatabase(Path(parsed.database), readers=max(2, min(connections, 4)), bytes=bytes or ByteStore())
    if backend == "postgresql":
        return PostgresDatabase(parsed, connections=connections, bytes=bytes or ByteStore())
    raise DatabaseUrlError(f"{backend} is not supported: use sqlite:///path/to/file.db or postgresql://...")


def offload(function: Callable[[], T]) -> T:
    """Run CPU-heavy work inside a `read` or `write` without blocking the event loop.

    On SQLite we are in a thread already; on PostgreSQL the greenlet waits while a worker thread works.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function()
    return await_only(asyncio.to_thread(function))


def wait_for(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Await something inside a `read` or `write`, which keeps its transaction, and its locks, open meanwhile."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    return await_only(work())


def bytes_of(connection: Connection) -> ByteStore:
    """The byte store of the database that a `read` or `write` works on."""
    found: ByteStore = connection.get_execution_options()[BYTES_OPTION]
    return found
