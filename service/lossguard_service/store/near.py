"""The event loop's own connection to a SQLite file: what is done on it is done before anything else goes on.

Guarantees. It never waits for another connection's lock: what would have to wait is not done, and the caller goes the
way through a thread. What it writes together is one transaction, durable when `write` returns. It copies nothing of the
WAL into the database, which takes long: that is left to the writer thread. Why: docs/decisions/
0414-alone-on-the-loop.md, 0417-fewer-turns-for-a-chunk.md.
"""

import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from lossguard_service.store.hot import Guarded, Hot
from lossguard_service.store.opened_file import OpenedFile

QUICK_SECONDS: Final = 0.0005
"""A commit that waits no longer for its disk may hold up the event loop: the way to a thread and back costs as much."""
COMMIT_PAGES: Final = 8
"""A commit writes the pages that it touched as a whole: at least so many beside those that its bytes fill."""
_RATE: Final = 1 / 8


class Pace:
    """Whether commits are quick: most of the last ones waited for their disk no longer than `QUICK_SECONDS`.

    Single ones that the machine holds up do not count for more than one. To be asked and told from any thread.
    """

    def __init__(self) -> None:
        self._share = 0.0

    @property
    def is_quick(self) -> bool:
        """Whether most were quick."""
        return self._share > 0.5

    def commit(self, connection: Any) -> None:
        """Commit on a connection of the driver's, or of SQLAlchemy's, and see how long that waits."""
        clock, own = time.perf_counter(), time.thread_time()
        connection.commit()
        waited = time.perf_counter() - clock - (time.thread_time() - own)
        self._share += _RATE * ((waited <= QUICK_SECONDS) - self._share)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody wants to have done.

    Attributes:
        guarded: the statements.
        values: theirs.
        size: of the bytes among the values.
    """

    guarded: Guarded
    values: Mapping[str, Any]
    size: int


class Near:
    """The connection; opened in a thread, and from then on used by the event loop alone.

    Args:
        engine: what opens it.
        pace: what is told of commits.
        wal_bytes: after so many the writer thread's turn has come.
        file: what the engine opens.
    """

    def __init__(self, engine: Engine, pace: Pace, wal_bytes: int, file: OpenedFile) -> None:
        self._engine = engine
        self._pace = pace
        self._wal_bytes = wal_bytes
        self._file = file
        self._least = 0
        self._written = 0
        self._connection: Connection | None = None
        self._opening = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._connection is not None

    def open(self) -> None:
        """Open it, if it is not."""
        with self._opening:
            if self._connection is None:
                connection = self._engine.connect()
                for pragma in ("busy_timeout=0", "wal_autocheckpoint=0", "cache_size=-8192"):
                    connection.exec_driver_sql(f"PRAGMA {pragma}")
                self._least = COMMIT_PAGES * connection.exec_driver_sql("PRAGMA page_size").scalar_one()
                connection.commit()
                self._connection = connection

    def rows(self, select: Hot, values: Mapping[str, Any]) -> list[tuple[Any, ...]] | None:
        """The rows of one SELECT; None if it would have to wait."""
        if self._connection is not None:
            with suppress(sa.exc.DBAPIError):
                return select.run(self._connection, values)
        return None

    def write(self, wanted: Sequence[Wanted]) -> list[bool]:
        """Do all of it in one transaction.

        Returns:
            For each, True if it is done, durably; False if nothing of it was done: the guard found no row, or it is not
            to be done here and now.
        """
        size = sum(one.size + self._least for one in wanted)
        if self._connection is None or not self._pace.is_quick or self._written + size > self._wal_bytes:
            self._written = 0
            return [False] * len(wanted)
        done = []
        driver: Any = self._connection.connection.dbapi_connection
        try:
            driver.execute("BEGIN IMMEDIATE")
            for one in wanted:
                (guard, first), *others = one.guarded.several.parts(self._connection.dialect, one.values)
                done.append(driver.execute(guard, first).rowcount == 1)
                for text, bound in others if done[-1] else ():
                    driver.execute(text, bound)
            if any(done):
                self._file.check()
                self._pace.commit(driver)
            else:
                driver.rollback()
        except BaseException as error:
            driver.rollback()
            if isinstance(error, sqlite3.Error):
                return [False] * len(wanted)  # the writer thread finds the words for it, if it meets it too
            raise
        self._written += size
        return done

    def close(self) -> None:
        """Close it; it can be opened again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._engine.dispose()
