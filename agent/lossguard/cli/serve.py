"""Commands of the service, which is another package and may not be installed beside a trainer.

`lossguard serve` runs it; `lossguard token` and `lossguard db` operate its database. They hand their arguments over as
they are; the service's own parser knows them.
"""

import importlib.util
import runpy
import sys

import typer

NEEDED = ("lossguard_service", "fastapi", "uvicorn", "sqlalchemy", "alembic", "pydantic_settings", "prometheus_client")


def serve(context: typer.Context) -> None:
    """Run the service: SQLite in .lossguard/ on http://127.0.0.1:8080 by default; --help lists the settings."""
    _hand_over("lossguard_service", ["lossguard serve", *context.args])


def token(context: typer.Context) -> None:
    """Make, list and revoke the tokens of a service."""
    _hand_over("lossguard_service.admin", ["lossguard", "token", *context.args])


def database(context: typer.Context) -> None:
    """Migrate, back up and restore a service's database."""
    _hand_over("lossguard_service.admin", ["lossguard", "db", *context.args])


def _hand_over(module: str, arguments: list[str]) -> None:
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        typer.echo('The service is not installed here: pip install "lossguard[service]"', err=True)
        raise typer.Exit(2)
    sys.argv = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=False)
