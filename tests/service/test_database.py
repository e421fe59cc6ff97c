"""A database file that cannot be opened is an error for the caller, never a wait without end."""

import asyncio
import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from services import run
from sqlalchemy.engine import Connection

from lossguard_service.store.database import open_database
from lossguard_service.store.migrate import migrate, pending


def _one(connection: Connection) -> int:
    return int(connection.execute(sa.text("SELECT 1")).scalar_one())


def test_a_write_to_a_file_that_cannot_be_opened_fails_and_the_next_one_tries_again(tmp_path: Path) -> None:
    in_the_way = tmp_path / "lossguard.db"
    in_the_way.mkdir()

    async def story() -> int:
        database = open_database(f"sqlite:///{in_the_way}")
        try:
            for _ in range(2):
                with pytest.raises(sa.exc.OperationalError, match="unable to open database file"):
                    await asyncio.wait_for(database.write(_one), 30)
            in_the_way.rmdir()
            return await asyncio.wait_for(database.write(_one), 30)
        finally:
            await database.close()

    assert run(story()) == 1


def test_a_file_that_had_no_room_is_written_again_when_there_is_some(sqlite_url: str) -> None:
    """SQLite rolls back by itself then, and the connection was of no use any more: every later write failed."""

    def fill(connection: Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS filled (data BLOB)")
        connection.exec_driver_sql("INSERT INTO filled VALUES (zeroblob(4000000))")

    async def story() -> int:
        database = open_database(sqlite_url)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            await database.write(_one)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
            for _ in range(2):
                with pytest.raises(sa.exc.OperationalError, match="disk"):
                    await database.write(fill)
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            await database.write(fill)
            return await database.write(_one)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            await database.close()

    assert run(story()) == 1


def test_a_fresh_file_opened_by_many_at_once_makes_none_of_them_wait_for_ever(tmp_path: Path) -> None:
    """SQLite does not wait for the lock of the switch to WAL by itself; one in thirty starts met it."""

    async def story(url: str) -> None:
        replicas = [open_database(url, connections=2) for _ in range(4)]
        try:
            await asyncio.wait_for(asyncio.gather(*(migrate(replica) for replica in replicas)), 60)
            assert not any([await pending(replica) for replica in replicas])
        finally:
            for replica in replicas:
                await replica.close()

    for turn in range(10):
        run(story(f"sqlite:///{tmp_path / str(turn)}.db"))


@pytest.mark.parametrize("page_bytes", [None, 4096, 32_768])
def test_a_file_keeps_its_page_size_and_its_journal_is_copied_at_the_same_size(
    tmp_path: Path, page_bytes: int | None
) -> None:
    path = tmp_path / "lossguard.db"
    if page_bytes is not None:
        with closing(sqlite3.connect(path)) as old:
            old.execute(f"PRAGMA page_size={page_bytes}")
            old.execute("CREATE TABLE before (x INT)")

    def pragmas(connection: Connection) -> list[int]:
        names = ("page_size", "wal_autocheckpoint")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names]

    async def story() -> list[int]:
        database = open_database(f"sqlite:///{path}")
        try:
            return await database.write(pragmas)
        finally:
            await database.close()

    size, pages = run(story())
    assert size == (page_bytes or 8192)
    assert size * pages == 8 << 20
