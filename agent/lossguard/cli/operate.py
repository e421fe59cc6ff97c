"""`lossguard token` and `lossguard db`: operate a service's database, beside the running service.

The service is another package, which may not be installed here and which nothing of ours imports: each command hands
its arguments to the service's own program (`lossguard_service.admin`), whose exit codes are 0 done, 1 there is no such
thing, 2 it cannot be done as asked.
"""

from pathlib import Path
from typing import Annotated

import typer

from lossguard.cli.serve import hand_over

_Database = Annotated[
    str | None,
    typer.Option(
        help="The service's database: sqlite:///path or postgresql://...; its own default otherwise.",
        envvar="LOSSGUARD_DATABASE",
        show_default=False,
    ),
]
_Format = Annotated[str, typer.Option("--format", help="table (words for people) or json (one document).")]

token = typer.Typer(
    name="token",
    help="Make, list and revoke the tokens of a service, on the machine of its database.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
database = typer.Typer(
    name="db",
    help="Migrate, back up and restore a service's database.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@token.command()
def create(
    name: Annotated[str, typer.Option(help="What people call it.")],
    scope: Annotated[
        list[str],
        typer.Option(
            metavar="SCOPE",
            help="May be given several times: ingest (trainers and sidecars), read (people, Prometheus, Grafana), "
            "gate (release pipelines), admin (everything).",
            autocompletion=lambda: ["ingest", "read", "gate", "admin"],
        ),
    ],
    project: Annotated[str | None, typer.Option(help="The one project it is for; all projects by default.")] = None,
    days: Annotated[float | None, typer.Option(help="It expires after so many days; never by default.")] = None,
    database: _Database = None,
    format: _Format = "table",
) -> None:
    """Make a token. Its secret is printed once, on standard output, and nothing else is.

    The first token closes the service: from then on every request needs one.

    Example: export LOSSGUARD_TOKEN=$(lossguard token create --name trainer --scope ingest --project video)
    """
    arguments = [f"--name={name}", *(f"--scope={one}" for one in scope)]
    if project is not None:
        arguments.append(f"--project={project}")
    if days is not None:
        arguments.append(f"--days={days}")
    _admin("token", "create", arguments, database, format)


@token.command("list")
def show(database: _Database = None, format: _Format = "table") -> None:
    """List all tokens, those that no longer count too; the secrets are not known to anybody.

    Example: lossguard token list --format json
    """
    _admin("token", "list", [], database, format)


@token.command()
def revoke(
    id: Annotated[str, typer.Argument(metavar="ID", help="The token's id, as `lossguard token list` shows it.")],
    database: _Database = None,
    format: _Format = "table",
) -> None:
    """Revoke a token for ever; every replica refuses it within five seconds.

    Example: lossguard token revoke 0f3a9c51be77d042
    """
    _admin("token", "revoke", ["--", id], database, format)


@database.command()
def upgrade(database: _Database = None, format: _Format = "table") -> None:
    """Bring the database to this version's schema. The service does the same when it starts.

    Example: lossguard db upgrade --database postgresql://lossguard@db/lossguard
    """
    _admin("db", "upgrade", [], database, format)


@database.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The copy; must not exist.")],
    database: _Database = None,
    format: _Format = "table",
) -> None:
    """Copy a SQLite database while the service writes to it, and check the copy. PostgreSQL has pg_dump.

    Example: lossguard db backup lossguard-2026-11-21.db
    """
    _admin("db", "backup", ["--", str(file)], database, format)


@database.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")],
    database: _Database = None,
    format: _Format = "table",
) -> None:
    """Put a backup where the service will find it, if nothing is there; nothing is ever overwritten.

    Example: lossguard db restore lossguard-2026-11-21.db
    """
    _admin("db", "restore", ["--", str(file)], database, format)


@database.command("own-objects")
def own_objects(
    bytes_url: Annotated[
        str | None, typer.Option(help="The object store.", envvar="LOSSGUARD_BYTES_URL", show_default=False)
    ] = None,
    database: _Database = None,
    format: _Format = "table",
) -> None:
    """Say that the objects in the store are this database's: after a dispute, a restore, or a move of the objects.

    Example: lossguard db own-objects --bytes-url s3://bucket/folder
    """
    _admin("db", "own-objects", [] if bytes_url is None else [f"--bytes-url={bytes_url}"], database, format)


@database.command("disown-objects")
def disown_objects(database: _Database = None, format: _Format = "table") -> None:
    """Say that this database is a copy, whose original the objects belong to: it deletes none.

    Example: lossguard db disown-objects --database postgresql://lossguard@db/staging
    """
    _admin("db", "disown-objects", [], database, format)


def _admin(area: str, command: str, arguments: list[str], database: str | None, format: str) -> None:
    options = [f"--format={format}"] + ([] if database is None else [f"--database={database}"])
    hand_over("lossguard_service.admin", ["lossguard", area, command, *options, *arguments])
