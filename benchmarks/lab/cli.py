"""The lab's command line."""

import os
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lab import prices
from lab.config import Config
from lab.data import Source
from lab.lab import Experiment, Lab

REPOSITORY = Path(__file__).resolve().parents[2]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def lab(
    data: Annotated[
        Path | None, typer.Option(help="Folder of KuaiRand-Pure, in either form; without it a stream is generated.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run and write these experiments alone, e.g. table2.")] = None,
    quick: Annotated[bool, typer.Option(help="A smoke run on a small generated stream; nothing is believed.")] = False,
    plan: Annotated[bool, typer.Option(help="Print what would run and what it would cost, and end.")] = False,
    render: Annotated[bool, typer.Option(help="Write the page anew from the results file, and end.")] = False,
    export: Annotated[Path | None, typer.Option(help="Copy the traces of the experiments' runs here.")] = None,
    workers: Annotated[int, typer.Option(help="Processes, one thread each.", min=1)] = min(2, os.cpu_count() or 1),
    minutes: Annotated[float | None, typer.Option(help="Begin nothing new after so many minutes.")] = None,
    cache: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path(".lossguard/lab"),
    out: Annotated[Path, typer.Option(help="Where lab.md and lab/ are written.")] = REPOSITORY / "docs",
) -> None:
    """Run the paper's and the practitioner's experiments and write the report.

    What was run is kept: an interrupted lab goes on where it was. Exit code 2 for data or names that are wrong.
    """
    from lab.experiments import ALL
    from lab.pool import PoolError
    from lab.report import page
    from lossguard.demo.tables import DataError

    chosen = [one for one in ALL if not only or one.NAME in only]
    unknown = sorted(set(only or ()) - {one.NAME for one in ALL})
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r}; there are {', '.join(one.NAME for one in ALL)}", param_hint="--only")
    if render:
        page.write(out)
        return
    if quick and data is not None:
        raise typer.BadParameter("a smoke run generates its rows; leave --data out", param_hint="--quick")
    source = Source(days=4, rows_per_day=3000) if quick else Source(None if data is None else str(data))
    began = time.monotonic()
    deadline = None if minutes is None else began + 60 * minutes
    try:
        work = Lab(source, cache, workers=workers, quick=quick, deadline=deadline)
        if plan:
            _print_plan(work)
            return
        with _Progress(work, chosen) as progress:
            work.done = progress.done
            try:
                work.complete(chosen)
            finally:
                work.close()
        call = page.Call(progress.runs, time.monotonic() - began, _cpu_seconds())
        written = page.collect(work, chosen, out, call)
    except (DataError, PoolError) as error:
        print(f"lossguard-lab: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        print("lossguard-lab: interrupted; what was finished is kept, run it again to go on", file=sys.stderr)
        raise typer.Exit(130) from None
    if export is not None:
        _export(work, export)
    for line in written:
        print(line)


def _cpu_seconds() -> float:
    """Of this process and of the workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _cost(configs: list[Config]) -> float:
    steps = {config.compiled: config for config in configs}
    return sum(map(prices.seconds, configs)) + sum(map(prices.compile_seconds, steps.values()))


def _print_plan(work: Lab) -> None:
    from rich.console import Console
    from rich.table import Table

    from lab.experiments import ALL

    work.planning = True
    table = Table("experiment", "runs", "kept", "CPU minutes to go", "what")
    seen: set[Config] = set()
    total = 0.0
    for one in ALL:
        configs = [config for config in dict.fromkeys(one.plan(work)) if config not in seen]
        seen.update(configs)
        missing = [config for config in configs if work.known(config) is None]
        cost = _cost(missing)
        total += cost
        kept = len(configs) - len(missing)
        table.add_row(one.NAME, str(len(configs)), str(kept), f"{cost / 60:.1f}", one.TITLE)
    console = Console()
    console.print(table)
    console.print(
        f"{len(seen)} runs; to go: about {total / 60:.0f} CPU minutes, {total / 60 / work.workers:.0f} minutes on "
        f"{work.workers} cores of their own."
    )


def _export(work: Lab, folder: Path) -> None:
    """Copy the traces, named so that people find them."""
    from lab.worker import name

    folder.mkdir(parents=True, exist_ok=True)
    for config in work.asked:
        if work.known(config) is not None:
            key = work.cache.key(config)
            shutil.copyfile(work.cache.folder / f"{key}.npz", folder / f"{name(config)}-{key[:8]}.npz")


class _Progress:
    """Progress on the terminal: a bar over the planned runs, by their price.

    Attributes:
        runs: that have ended.
    """

    def __init__(self, work: Lab, chosen: Sequence[Experiment]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("{task.fields[runs]} runs"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[name]}"),
            console=Console(stderr=True),
        )
        work.planning = True
        configs = dict.fromkeys(config for one in chosen for config in one.plan(work))
        missing = [config for config in configs if work.known(config) is None]
        work.planning = False
        self._task = self._bar.add_task("", total=max(_cost(missing), 0.1), runs=0, name="")
        self.runs = 0

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def done(self, name: str, seconds: float) -> None:
        """A run has ended."""
        self.runs += 1
        self._bar.update(self._task, advance=seconds, runs=self.runs, name=name)
