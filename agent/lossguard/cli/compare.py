"""`lossguard compare`: repeated trials of one configuration."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from lossguard.cli.scalar_names import ScalarNames, columns_of


def compare(
    files: Annotated[list[Path], typer.Argument(help="Saved runs of the same configuration.")],
    form: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
    scalar: ScalarNames = None,
) -> None:
    """Say how far trials spread, how often they diverge, and where runs that should be equal part.

    Exit code 0, or 2 for a file that cannot be read.
    """
    from rich.console import Console
    from rich.table import Table

    from lossguard.trace.compare import compare as over_trials
    from lossguard.trace.compare import document
    from lossguard.trace.read import read
    from lossguard.trace.trace import TraceError

    if form not in ("table", "json"):
        raise typer.BadParameter(f"{form!r}; it is table or json", param_hint="--format")
    given = columns_of(scalar)
    try:
        result = over_trials([read(path, given) for path in files])
    except TraceError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    if form == "json":
        sys.stdout.write(json.dumps(document(result), allow_nan=False) + "\n")
        return
    console = Console()
    table = Table("final value", "mean", "95 % interval", "standard deviation", "range", "trials")
    for row in result.spreads:
        several = row.trials > 1
        half = f"± {row.half:.2g}" if several else ""
        deviation = f"{row.deviation:.2g}" if several else ""
        extent = f"{row.low:.5g} to {row.high:.5g}"
        table.add_row(row.name, f"{row.mean:.5g}", half, deviation, extent, str(row.trials))
    console.print(table)
    low, high = result.ratio
    console.print(
        f"diverged: {len(result.diverged)} of {result.trials} (95 % interval {low:.0%} to {high:.0%})"
        + (f": {', '.join(result.diverged)}" if result.diverged else ""),
        highlight=False,
    )
    for name, parted in result.parted.items():
        where = "equal as far as both go" if parted is None else f"parts at step {parted[0]}, first seen in {parted[1]}"
        console.print(f"{name} against {files[0].stem}: {where}", highlight=False)
