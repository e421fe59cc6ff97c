"""SQLite, one file in WAL mode; see `lossguard_service.store.database`.

Reads run in a pool of threads, writes in one writer thread that puts whatever has queued up into one commit (group
commit: the sync to disk is paid once for all of them; each function has its own savepoint, so one failure undoes only
itself). `at_once` does what it is asked on the event loop itself (`near`).
"""

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine

from lossguard_service.store.bytes import BYTES_OPTION, ByteStore
from lossguard_service.store.hot import Guarded, Hot
from lossguard_service.store.near import Near, Pace, Wanted
from lossguard_service.store.opened_file import OpenedFile

T = TypeVar("T")
GROUP_COMMIT_JOBS: Final = 64
"""At most so many writes share a commit: it bounds how long the first of them waits for the last."""
PAGE_BYTES: Final = 8_192
"""Of a new file. A commit writes each page that it touched as a whole, seven or eight beside the chunk's bytes."""
WAL_BYTES: Final = 8 << 20
"""Written pages are copied into the database when there are so many: seldom, and yet a small file to read."""
BUSY_SECONDS: Final = 60.0
"""How long a connection waits for another process's lock on the file: longer than any migration of ours."""


@dataclass(slots=True)
class _Job:
    """What is to be written, and who waits for it."""

    function: Callable[[Connection], Any]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"


@dataclass(slots=True)
class _Outcome:
    """What came of a job."""

    job: _Job
    result: Any
    failure: BaseException | None


def _tell(outcomes: list[_Outcome]) -> None:
    """Wake those who wait: one call into their loop for all of them, because each call wakes it."""
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        outcomes[0].job.loop.call_soon_threadsafe(_settle, outcomes)


def _settle(outcomes: list[_Outcome]) -> None:
    for one in outcomes:
        # A caller that went away has cancelled its future; what it asked for was written all the same.
        if one.job.future.done():
            continue
        if one.failure is None:
            one.job.future.set_result(one.result)
        else:
            one.job.future.set_exception(one.failure)


class SqliteDatabase:
    """One file in WAL mode; see the module."""

    name = "sqlite"
    is_far = False

    def __init__(self, path: Path, *, readers: int = 4, bytes: ByteStore) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.bytes = bytes
        url = URL.create("sqlite", database=str(path))
        self._writer_engine = _sqlite_engine(url, begin="BEGIN IMMEDIATE", pool=1, bytes=bytes)
        self._reader_engine = _sqlite_engine(url, begin="BEGIN", pool=readers, bytes=bytes)
        self._pace = Pace()
        self._file = OpenedFile(path)
        near = _sqlite_engine(url, begin="BEGIN", pool=1, bytes=bytes)
        self._near = Near(near, self._pace, WAL_BYTES, self._file)
        self._under_way = 0
        self._together: list[tuple[Wanted, asyncio.Future[bool]]] = []
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="lossguard-read")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_loop, name="lossguard-write", daemon=True)
        self._closed = False
        self._writer.start()

    async def read(self, function: Callable[[Connection], T]) -> T:
        """See `Database`."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, function)

    def _read(self, function: Callable[[Connection], T]) -> T:
        with self._reader_engine.begin() as connection:
            self._file.check()
            return function(connection)

    async def glance(self, select: Hot, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """See `Database`; on the event loop, where it takes 10 us: the way to a thread and back alone takes 100.

        A reader of a WAL file waits for nobody. Should this one have to all the same, it gives up at once, and a thread
        waits in its place.
        """
        found = self._near.rows(select, values)
        if found is not None:
            return found
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._slow_glance, select, values)

    def _slow_glance(self, select: Hot, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        self._near.open()
        return self._read(lambda connection: select.run(connection, values))

    async def write(self, function: Callable[[Connection], T]) -> T:
        """See `Database`."""
        if self._closed:
            raise RuntimeError("the database is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        # A caller that goes away (a client that hangs up) cancels its future, and not a write that may be under way.
        self._jobs.put(_Job(function, loop, future))
        self._under_way += 1
        try:
            return await future
        finally:
            self._under_way -= 1

    async def at_once(
        self, guarded: Guarded, values: Mapping[str, Any], size: int, *, together: bool = False
    ) -> bool | None:
        """See `Database`; on the event loop, while the writer thread has nothing to do and the disk is quick."""
        if self._closed or self._under_way:
            return False  # who comes now may share the thread's next commit
        if not self._near.is_open:
            await asyncio.get_running_loop().run_in_executor(self._readers, self._near.open)
        wanted = Wanted(guarded, values, size)
        if not together:
            return self._near.write([wanted])[0]
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        if not self._together:
            loop.call_soon(self._write_together)  # behind all that has come in the same turn
        self._together.append((wanted, future))
        return await future

    def _write_together(self) -> None:
        together, self._together = self._together, []
        try:
            done = self._near.write([wanted for wanted, _ in together])
        except Exception as error:
            for _, future in together:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), is_done in zip(together, done, strict=True):
            if not future.done():  # else its caller went away; what it asked for was written all the same
                future.set_result(is_done)

    async def close(self) -> None:
        """See `Database`."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        self._near.close()
        self._writer_engine.dispose()
        self._reader_engine.dispose()

    def _write_loop(self) -> None:
        waiting = self._jobs.get()
        while waiting is not None:
            try:
                connection = self._writer_engine.connect()
            except Exception as error:
                # No folder, no permission, locked for too long: the caller hears it, the next job tries again.
                _tell([_Outcome(waiting, None, error)])
                waiting = self._jobs.get()
                continue
            with connection:
                waiting = self._write_with(connection, waiting)

    def _write_with(self, connection: Connection, first: _Job) -> _Job | None:
        """Write until the database is closed, or the connection is lost: then the next job is returned."""
        job: _Job | None = first
        while job is not None:
            group = [job]
            last = False
            while len(group) < GROUP_COMMIT_JOBS:
                try:
                    more = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    last = True
                    break
                group.append(more)
            is_usable = self._commit(connection, group)
            job = None if last else self._jobs.get()
            if not is_usable:
                connection.invalidate()
                return job
        return None

    def _commit(self, connection: Connection, group: list[_Job]) -> bool:
        """Write in one transaction; whether the connection is free of it afterwards.

        Where the disk is full or broken SQLite rolls back by itself, and SQLAlchemy, whose rollback then fails, would
        not begin anything on this connection again.
        """
        outcomes: list[_Outcome] = []
        try:
            with connection.begin() as transaction:
                for job in group:
                    # Alone in its group, a function needs no savepoint: its failure rolls the transaction back.
                    if len(group) == 1:
                        outcomes.append(_Outcome(job, job.function(connection), None))
                        continue
                    try:
                        with connection.begin_nested():
                            result = job.function(connection)
                        outcomes.append(_Outcome(job, result, None))
                    except Exception as error:
                        outcomes.append(_Outcome(job, None, error))
                self._file.check()
                self._pace.commit(transaction)
        except Exception as error:
            outcomes = [_Outcome(job, None, error) for job in group]
        _tell(outcomes)
        return connection.get_transaction() is None


def _sqlite_engine(url: URL, *, begin: str, pool: int, bytes: ByteStore) -> Engine:
    engine = sa.create_engine(
        url,
        execution_options={BYTES_OPTION: bytes},
        poolclass=sa.pool.QueuePool,
        pool_size=pool,
        max_overflow=0,
        # The driver's own transaction control begins late and not at all before DDL, so we say BEGIN ourselves.
        connect_args={
            "isolation_level": None,
            "check_same_thread": False,
            "timeout": BUSY_SECONDS,
            "cached_statements": 512,
        },
    )

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        _switch_to_wal(connection)
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        # FULL syncs at every commit: a 200 must survive a power cut.
        for pragma in (
            "synchronous=FULL",
            "foreign_keys=ON",
            "cache_size=-32768",
            f"wal_autocheckpoint={WAL_BYTES // page_bytes}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # By the driver: a fifth of what `exec_driver_sql` costs, and a chunk of one frame pays it too.
        try:
            connection.connection.cursor().execute(begin)
        except sqlite3.Error as error:
            raise sa.exc.DBAPIError.instance(begin, None, error, sqlite3.Error, hide_parameters=True) from error

    return engine


def _switch_to_wal(connection: Any) -> None:
    """Put the file into WAL mode; the one lock for which SQLite does not wait by itself, so we do."""
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > give_up:
                raise
        time.sleep(0.01)
