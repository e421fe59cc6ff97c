"""A copy of a SQLite database while it is written to, and back again.

The copy is SQLite's own online backup: one consistent moment, whatever is committed meanwhile. It is checked before it
gets its name, so a file with that name is a whole backup. PostgreSQL has better tools of its own (`pg_dump`). What is
in object storage is not in it: `elsewhere` counts it.
"""

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import make_url

PAGES_AT_ONCE = 256
"""8 MiB: between two steps writers get their turn."""


class BackupError(Exception):
    """No backup was made or restored, and nothing that existed was touched; the message says why."""


async def back_up(url: str, file: Path) -> None:
    """Copy the SQLite database `url` into `file`; services may write to it meanwhile.

    Raises:
        BackupError: it is not SQLite, or `file` exists, or the copy does not pass SQLite's own check.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        raise BackupError("only SQLite is backed up this way: use pg_dump for PostgreSQL")
    source = Path(parsed.database)
    if not source.is_file():
        raise BackupError(f"there is no database at {source}: name the service's with --database")
    if file.exists():
        raise BackupError(f"{file} exists: name a file that does not")
    await asyncio.to_thread(_copy, source, file)


def elsewhere(file: Path) -> int:
    """How many objects a backup names that are in object storage and not in it."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as copy:
        tables = ("chunk_bytes", "segment_parts", "pyramid")
        query = " UNION ALL ".join(f"SELECT count(object) AS n FROM {table}" for table in tables)
        try:
            return int(copy.execute(f"SELECT sum(n) FROM ({query})").fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # of a version that knew no objects


def restore(file: Path, url: str) -> Path:
    """Put a backup at the place of the SQLite database `url`; returns that place.

    Raises:
        BackupError: there is a database already, or `file` is no whole backup.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        raise BackupError("only SQLite is restored this way: use pg_restore for PostgreSQL")
    target = Path(parsed.database)
    if target.exists():
        raise BackupError(f"{target} exists: stop the service and move it away first")
    if not file.is_file():
        raise BackupError(f"{file} is not a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    _copy(file, target)
    return target


def _copy(source: Path, target: Path) -> None:
    draft = target.with_name(target.name + ".part")
    draft.unlink(missing_ok=True)
    try:
        with (
            closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as old,
            closing(sqlite3.connect(draft)) as new,
        ):
            old.backup(new, pages=PAGES_AT_ONCE, sleep=0.0)
            (verdict,) = new.execute("PRAGMA integrity_check").fetchone()
            if verdict != "ok":
                raise BackupError(f"{source} is damaged: {verdict}")
            if not new.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
                raise BackupError(f"{source} is not a Lossguard database")
    except (sqlite3.Error, OSError) as error:
        draft.unlink(missing_ok=True)
        raise BackupError(f"{source} cannot be copied to {target}: {error}") from None
    except BackupError:
        draft.unlink(missing_ok=True)
        raise
    with draft.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(draft, target)
