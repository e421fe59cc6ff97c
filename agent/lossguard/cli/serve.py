"""`lossguard serve`: the service, which is another package and may not be installed beside a trainer.

The arguments are handed over as they are; the service's own parser knows them.
"""

import importlib.util
import runpy
import sys

import typer

NEEDED = ("lossguard_service", "fastapi", "uvicorn", "sqlalchemy", "alembic", "pydantic_settings", "prometheus_client")


def serve(context: typer.Context) -> None:
    """Run the service: SQLite in .lossguard/ on http://127.0.0.1:8080 by default; --help lists the settings.

    Example: lossguard serve --port 8080
    """
    hand_over("lossguard_service", ["lossguard serve", *context.args])


def hand_over(module: str, arguments: list[str]) -> None:
    """Become the service's program `module`, with these arguments; does not come back.

    Args:
        module: which of its modules to run.
        arguments: `sys.argv`, the program's name first.
    """
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        typer.echo('The service is not installed here: pip install "lossguard[service]"', err=True)
        raise typer.Exit(2)
    sys.argv = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=False)
