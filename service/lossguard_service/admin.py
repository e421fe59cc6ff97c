"""`lossguard token ...` and `lossguard db ...`: what an operator does beside a running service, on its database.

Exit codes: 0 done, 1 there is no such thing, 2 it cannot be done as asked. What is printed for people goes to stderr
where a program may want the rest: `lossguard token create` prints the secret, and only it, on stdout.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lossguard_service.settings import Settings
from lossguard_service.store import backup
from lossguard_service.store.database import Database, DatabaseUrlError, open_database
from lossguard_service.store.migrate import migrate
from lossguard_service.store.tokens import SCOPES, create_token, list_tokens, revoke_token

Command = Callable[[Database, argparse.Namespace], Coroutine[Any, Any, int]]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        url = options.database or Settings().database
        if options.run is None:
            return restore(url, options.file)
        return asyncio.run(_with_database(url, options))
    except (DatabaseUrlError, backup.BackupError, ValueError, ValidationError) as error:
        print(error, file=sys.stderr)
        return 2


async def _with_database(url: str, options: argparse.Namespace) -> int:
    database = open_database(url, connections=2)
    try:
        await migrate(database)
        run: Command = options.run
        return await run(database, options)
    finally:
        await database.close()


async def create(database: Database, options: argparse.Namespace) -> int:
    """`token create`."""
    now = time.time()
    expires = None if options.days is None else now + 86_400 * options.days
    secret, token = await create_token(
        database, name=options.name, scopes=tuple(options.scope), project=options.project, now=now, expires=expires
    )
    where = "all projects" if token.project is None else f"project {token.project}"
    print(f"token {token.id} ({', '.join(token.scopes)} on {where}); it is shown this once:", file=sys.stderr)
    print(secret)
    return 0


async def show(database: Database, _options: argparse.Namespace) -> int:
    """`token list`."""
    print(json.dumps({"tokens": [asdict(token) for token in await list_tokens(database)]}, indent=2))
    return 0


async def revoke(database: Database, options: argparse.Namespace) -> int:
    """`token revoke`."""
    if await revoke_token(database, options.id, time.time()):
        print(f"token {options.id} is revoked", file=sys.stderr)
        return 0
    print(f"no valid token has the id {options.id}: `lossguard token list` shows them", file=sys.stderr)
    return 1


async def upgrade(_database: Database, _options: argparse.Namespace) -> int:
    """`db upgrade`: opening it has migrated it."""
    print("the database has this version's schema", file=sys.stderr)
    return 0


async def back_up(database: Database, options: argparse.Namespace) -> int:
    """`db backup`."""
    await backup.back_up(database, options.file)
    print(f"backed up to {options.file}", file=sys.stderr)
    return 0


def restore(url: str, file: Path) -> int:
    """`db restore`; the database it goes to must not exist, so that nothing is ever overwritten."""
    target = backup.restore(file, url)
    print(f"restored to {target}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lossguard", description="Operate a Lossguard database.")
    areas = parser.add_subparsers(required=True)
    token = areas.add_parser("token", help="make, list and revoke tokens").add_subparsers(required=True)
    command = _command(token, "create", create, "make a token; the secret is printed once")
    command.add_argument("--name", required=True, help="what people call it")
    command.add_argument("--scope", required=True, action="append", choices=SCOPES, help="may be given several times")
    command.add_argument("--project", help="the one project it is for; all projects by default")
    command.add_argument("--days", type=float, help="it expires after so many days; never by default")
    _command(token, "list", show, "list tokens as JSON; the secrets are not known")
    command = _command(token, "revoke", revoke, "revoke a token for ever")
    command.add_argument("id", help="the token's id")
    area = areas.add_parser("db", help="migrate, back up and restore the database").add_subparsers(required=True)
    _command(area, "upgrade", upgrade, "bring the database to this version's schema")
    command = _command(area, "backup", back_up, "copy a SQLite database while the service runs")
    command.add_argument("file", type=Path, help="the copy; must not exist")
    command = _command(area, "restore", None, "put a backup where the service will find it")
    command.add_argument("file", type=Path, help="the backup")
    return parser


def _command(area: Any, name: str, run: Command | None, about: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = area.add_parser(name, help=about, description=about)
    command.add_argument("--database", help="the service's database; LOSSGUARD_DATABASE or its default otherwise")
    command.set_defaults(run=run)
    return command


if __name__ == "__main__":
    sys.exit(main())
