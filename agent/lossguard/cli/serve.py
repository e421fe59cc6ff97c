"""`lossguard serve`: runs the service, which is another package and may not be installed beside a trainer."""

import importlib.util
import runpy
import sys

import typer


def serve(context: typer.Context) -> None:
    """Run the service: SQLite in .lossguard/ on http://127.0.0.1:8080 by default; --help lists the settings."""
    needed = (
        "lossguard_service",
        "fastapi",
        "uvicorn",
        "sqlalchemy",
        "alembic",
        "pydantic_settings",
        "prometheus_client",
    )
    if any(importlib.util.find_spec(name) is None for name in needed):
        typer.echo('The service is not installed here: pip install "lossguard[service]"', err=True)
        raise typer.Exit(2)
    sys.argv = ["lossguard serve", *context.args]
    runpy.run_module("lossguard_service", run_name="__main__", alter_sys=False)
