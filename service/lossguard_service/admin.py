"""`lossguard token ...` and `lossguard db ...`: what an operator does beside a running service, on its database.

Exit codes: 0 done, 1 there is no such thing, 2 it cannot be done as asked. What is printed for people goes to stderr
where a program may want the rest: `lossguard token create` prints the secret, and only it, on stdout. With `--format
json` every command prints one document on stdout, refusals too.
"""

import argparse
import asyncio
import getpass
import json
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from alembic.runtime.migration import MigrationContext
from pydantic import ValidationError
from sqlalchemy.engine import Connection

from lossguard.wire.names import check_name
from lossguard_service.settings import Settings
from lossguard_service.store import backup, ownership
from lossguard_service.store.bytes import BytesError, ByteStore
from lossguard_service.store.database import Database, DatabaseUrlError, open_database
from lossguard_service.store.migrate import migrate
from lossguard_service.store.objects import open_objects
from lossguard_service.store.tokens import SCOPES, Token, create_token, list_tokens, revoke_token

Command = Callable[[argparse.Namespace, str], Coroutine[Any, Any, int]]
FORMATS: Final = ("table", "json")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    run: Command = options.run
    try:
        return asyncio.run(run(options, options.database or Settings().database))
    except (DatabaseUrlError, backup.BackupError, BytesError, ValueError, ValidationError, OSError) as error:
        return _say(options, str(error), {"error": str(error)}, code=2)


async def create(options: argparse.Namespace, url: str) -> int:
    """`token create`."""
    now = time.time()
    if options.days is not None and not 0 < options.days < 1e5:
        raise ValueError(f"--days: must be more than 0 and less than 100000, got {options.days:g}")
    if options.project is not None:
        check_name("--project", options.project)  # else no run could ever match it
    expires = None if options.days is None else now + 86_400 * options.days

    async def work(database: Database) -> tuple[str, Token]:
        return await create_token(
            database,
            name=options.name,
            scopes=tuple(dict.fromkeys(options.scope)),
            project=options.project,
            now=now,
            actor=_me(),
            expires=expires,
        )

    secret, token = await _on(url, work)
    where = "all projects" if token.project is None else f"project {token.project}"
    words = f"token {token.id} ({', '.join(token.scopes)} on {where}); it is shown this once:"
    code = _say(options, words, {"token": asdict(token), "secret": secret})
    if options.format != "json":
        print(secret)
    return code


async def show(options: argparse.Namespace, url: str) -> int:
    """`token list`."""
    tokens = await _on(url, list_tokens)
    if options.format == "json":
        return _say(options, "", {"tokens": [asdict(token) for token in tokens]})
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("id", "name", "scopes", "project", "created", "counts"):
        table.add_column(column, overflow="fold")
    now = time.time()
    for token in tokens:
        cells = (token.id, token.name, ", ".join(token.scopes), token.project or "all")
        table.add_row(*(Text(cell) for cell in (*cells, _day(token.created), _state(token, now))))
    Console().print(table if tokens else "no token has been made: everybody on this machine may do everything")
    return 0


async def revoke(options: argparse.Namespace, url: str) -> int:
    """`token revoke`."""
    done = await _on(url, lambda database: revoke_token(database, options.id, time.time(), actor=_me()))
    if done:
        return _say(options, f"token {options.id} is revoked", {"revoked": options.id})
    words = f"no valid token has the id {options.id}: `lossguard token list` shows them"
    return _say(options, words, {"error": words}, code=1)


async def upgrade(options: argparse.Namespace, url: str) -> int:
    """`db upgrade`."""

    def revision(connection: Connection) -> str | None:
        return MigrationContext.configure(connection).get_current_revision()

    database = open_database(url, connections=2)
    try:
        before = await database.read(revision)
        await migrate(database)
        after = await database.read(revision)
    finally:
        await database.close()
    if before == after:
        words = f"the database has this version's schema already ({after})"
    else:
        words = f"the database went from schema {before or 'none'} to {after}, this version's"
    return _say(options, words, {"schema": after, "before": before})


async def back_up(options: argparse.Namespace, url: str) -> int:
    """`db backup`."""
    await backup.back_up(url, options.file)
    size = options.file.stat().st_size
    objects = await asyncio.to_thread(backup.elsewhere, options.file)
    words = f"backed up to {options.file} ({size / 1e6:.1f} MB)"
    if objects:
        words += (
            f"; it names {objects} objects in object storage, which it does not contain: copy them, or restore within "
            "bytes_keep_hours"
        )
    return _say(options, words, {"file": str(options.file), "bytes": size, "objects_elsewhere": objects})


async def restore(options: argparse.Namespace, url: str) -> int:
    """`db restore`; the database it goes to must not exist, so that nothing is ever overwritten."""
    target = await asyncio.to_thread(backup.restore, options.file, url)
    return _say(options, f"restored to {target}", {"database": str(target)})


async def own_objects(options: argparse.Namespace, url: str) -> int:
    """`db own-objects`; only an operator knows whose they are when two databases say so, or when they were moved."""
    where = options.bytes_url or Settings().bytes_url
    if where is None:
        raise ValueError("--bytes-url: name the object store, here or as LOSSGUARD_BYTES_URL")
    now = time.time()
    database = open_database(url, connections=2, bytes=ByteStore(open_objects(where)))
    try:
        await migrate(database)
        await ownership.identify(database, now=now)
        await ownership.claim(database, now=now)
    finally:
        await database.close()
    folder = database.bytes.folder
    return _say(options, f"the objects in folder {folder} are this database's", {"folder": folder})


async def disown_objects(options: argparse.Namespace, url: str) -> int:
    """`db disown-objects`; for a copy, before it is served for the first time."""

    async def give_up(database: Database) -> None:
        await ownership.identify(database, now=time.time())
        await ownership.disown(database)

    await _on(url, give_up)
    return _say(options, "this database deletes no objects until `lossguard db own-objects`", {"owns_objects": False})


async def _on(url: str, work: Callable[[Database], Coroutine[Any, Any, Any]]) -> Any:
    database = open_database(url, connections=2)
    try:
        await migrate(database)
        return await work(database)
    finally:
        await database.close()


def _say(options: argparse.Namespace, words: str, document: dict[str, Any], *, code: int = 0) -> int:
    if options.format == "json":
        print(json.dumps(document, indent=2))
    else:
        print(words, file=sys.stderr)
    return code


def _me() -> str:
    """What the audit log calls whoever runs this command."""
    try:
        return f"{getpass.getuser()} (command line)"
    except (OSError, KeyError):
        # A container's user often has no name.
        return "command line"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _state(token: Token, now: float) -> str:
    if token.revoked is not None:
        return f"revoked {_day(token.revoked)}"
    if token.expires is None:
        return "yes"
    return f"until {_day(token.expires)}" if now < token.expires else f"expired {_day(token.expires)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lossguard", description="Operate a Lossguard database.")
    areas = parser.add_subparsers(required=True)
    token = areas.add_parser("token", help="make, list and revoke tokens").add_subparsers(required=True)
    command = _command(token, "create", create, "make a token; the secret is printed once")
    command.add_argument("--name", required=True, help="what people call it")
    command.add_argument("--scope", required=True, action="append", choices=SCOPES, help="may be given several times")
    command.add_argument("--project", help="the one project it is for; all projects by default")
    command.add_argument("--days", type=float, help="it expires after so many days; never by default")
    _command(token, "list", show, "list tokens; the secrets are not known")
    command = _command(token, "revoke", revoke, "revoke a token for ever")
    command.add_argument("id", help="the token's id")
    area = areas.add_parser("db", help="migrate, back up and restore the database").add_subparsers(required=True)
    _command(area, "upgrade", upgrade, "bring the database to this version's schema")
    command = _command(area, "backup", back_up, "copy a SQLite database while the service runs")
    command.add_argument("file", type=Path, help="the copy; must not exist")
    command = _command(area, "restore", restore, "put a backup where the service will find it")
    command.add_argument("file", type=Path, help="the backup")
    command = _command(area, "own-objects", own_objects, "say that the objects in the store are this database's")
    command.add_argument("--bytes-url", help="the object store; LOSSGUARD_BYTES_URL otherwise")
    about = "say that this database is a copy, whose original the objects belong to: it deletes none"
    _command(area, "disown-objects", disown_objects, about)
    return parser


def _command(area: Any, name: str, run: Command, about: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = area.add_parser(name, help=about, description=about)
    command.add_argument("--database", help="the service's database; LOSSGUARD_DATABASE or its default otherwise")
    command.add_argument("--format", choices=FORMATS, default="table", help="words for people, or one JSON document")
    command.set_defaults(run=run)
    return command


if __name__ == "__main__":
    sys.exit(main())
