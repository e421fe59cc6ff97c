"""`lossguard backtest`: choose how sensitive to be on one's own healthy runs."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lossguard.cli.scalar_names import ScalarNames, columns_of

if TYPE_CHECKING:
    from lossguard.trace.trace import Trace


def backtest(
    healthy: Annotated[Path, typer.Argument(help="A folder with runs that were fine.")],
    budget: Annotated[float, typer.Option(help="False alarms per 10,000 steps that are acceptable.", min=0.0)] = 1.0,
    diverged: Annotated[Path | None, typer.Option(help="A folder with runs that diverged.")] = None,
    form: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
    scalar: ScalarNames = None,
) -> None:
    """Find the most sensitive setting within a budget of false alarms, and what it costs in delay and recall.

    Exit code 0 if one was found, 1 if none is within the budget, 2 for a folder that cannot be read.
    """
    from rich.console import Console
    from rich.table import Table

    from lossguard.trace.backtest import GRID, choose, document, trial

    if form not in ("table", "json"):
        raise typer.BadParameter(f"{form!r}; it is table or json", param_hint="--format")
    given = columns_of(scalar)
    good, bad = _runs(healthy, given), _runs(diverged, given) if diverged else []
    if not good:
        typer.echo(f"{healthy}: no runs in it; a budget of false alarms is measured on runs that were fine", err=True)
        raise typer.Exit(2)
    trials = [trial(caution, good, bad) for caution in GRID]
    chosen = choose(trials, budget)
    if form == "json":
        sys.stdout.write(json.dumps(document(trials, chosen, budget), allow_nan=False) + "\n")
        raise typer.Exit(chosen is None)
    table = Table("caution", "alarms", "per 10,000 steps", "diverged runs found", "flagged after onset, median (worst)")
    for one in trials:
        middle = one.flagged[len(one.flagged) // 2] if one.flagged else None
        delay = "" if middle is None else f"{middle} ({one.flagged[-1]})"
        found = f"{one.found} of {one.diverged}" if one.diverged else ""
        table.add_row(f"{one.caution:g}", str(one.alarms), f"{one.rate:.2f}", found, delay)
    console = Console()
    console.print(table)
    if chosen is None:
        console.print(f"No setting stays within {budget:g} alarms per 10,000 steps: are these runs healthy?")
        raise typer.Exit(1)
    console.print(f"Within {budget:g} per 10,000 steps: --caution {chosen.caution:g}", highlight=False)


def _runs(folder: Path, given: dict[str, str]) -> "list[Trace]":
    from lossguard.trace.read import read
    from lossguard.trace.trace import TraceError

    if not folder.is_dir():
        typer.echo(f"{folder}: no such folder", err=True)
        raise typer.Exit(2)
    traces = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            traces.append(read(path, given))
        except TraceError as error:
            typer.echo(f"passed over: {error}", err=True)
    return traces
