"""`lossguard demo`: trains a ranker twice, sees one diverge, and sees the gate stop it.

Exit codes: 0 the demo ran to its end, whatever the verdicts; 1 it could not; 2 wrong use; 130 ended by Ctrl-C.
"""

import json
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from lossguard.demo import LEARNING_RATE, STEPS

if TYPE_CHECKING:
    from rich.console import Console

    from lossguard.demo.view import RunView

SHOWN_REASONS = 4


def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="Folder of KuaiRand-Pure, CSV or parquet; without it a stream is generated."
        ),
    ] = None,
    leave: Annotated[bool, typer.Option("--exit", help="End after the table instead of staying up.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result there, for programs.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, batches and the generated stream.")] = 0,
    steps: Annotated[int, typer.Option(help="Optimizer updates of each training.")] = STEPS,
    learning_rate: Annotated[float, typer.Option(help="The peak that the ramp leads to.")] = LEARNING_RATE,
    port: Annotated[int, typer.Option(help="The service's port; 0 takes a free one.")] = 0,
    format: Annotated[
        str, typer.Option("--format", help="table, or json: the result on standard output, words on standard error.")
    ] = "table",
    restart_seconds: Annotated[float, typer.Option(hidden=True, min=0.0)] = 1.0,
) -> None:
    """Train a multitask ranker twice, watched: plain Adagrad at a rate that is too large, and the same with Clippy.

    The service, the sidecar, TensorFlow and the gate are real, and so is the divergence. Files go to .lossguard/ and
    serving/ of the folder it runs in.

    Example: lossguard demo --exit --json out.json --data KuaiRand-Pure/data
    """
    from rich.console import Console

    from lossguard.demo import report
    from lossguard.demo.children import ChildError
    from lossguard.demo.run import DemoError, Options, check_installed, stage
    from lossguard.demo.tables import DataError

    if format not in ("table", "json"):
        _fail(f"--format: must be table or json, got {format!r}", 2)
    console = Console(stderr=format == "json")
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        options = Options(data, seed, steps, learning_rate, port, restart_seconds)
        _check_file(json_file)
        check_installed(data)
        _describe_data(console, data, seed)
        with _Bars(console) as bars, stage(options, bars) as (url, outcomes):
            bars.close()
            if format == "json":
                typer.echo(json.dumps(report.document(outcomes, url), indent=1))
            console.print(report.table(outcomes))
            for outcome in outcomes:
                console.print()
                _explain(console, outcome)
            if json_file is not None:
                report.write(json_file, outcomes, url)
            console.print(f"\nThe page: [bold]{url}/[/bold]")
            if not leave:
                console.print("It stays up until Ctrl-C.")
                threading.Event().wait()
    except (DataError, DemoError) as error:
        _fail(str(error), 2)
    except ChildError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Bars:
    """Progress on the terminal: a bar per training, with what the service says about it."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[said]}"),
            console=console,
        )
        self._bars: dict[str, Any] = {}

    def __enter__(self) -> "_Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bars as they are."""
        self._progress.stop()

    def say(self, sentence: str) -> None:
        """A line above the bars."""
        self._console.print(sentence, style="yellow", highlight=False)

    def progress(self, run: str, step: int, steps: int, view: "RunView | None") -> None:
        """Move a run's bar."""
        if run not in self._bars:
            self._bars[run] = self._progress.add_task(run, total=steps, said="")
        self._progress.update(self._bars[run], completed=step, said=_in_words(view))

    def waits(self, run: str) -> None:
        """The bar is full; the gate is next."""
        if run in self._bars:
            self._progress.update(self._bars[run], said="exported; the gate looks at it")


def _in_words(view: "RunView | None") -> str:
    if view is None:
        return "the service has not heard of it yet"
    if view.incident is None:
        return f"{view.status} up to step {view.judged_step}"
    return f"[bold]{view.status}[/bold], since step {view.incident.onset_step}"


def _explain(console: "Console", outcome: Any) -> None:
    if outcome.published is not None:
        console.print(f"[green]{outcome.run} passed[/green] and is published: {outcome.published}/")
    else:
        console.print(f"[red]{outcome.run} is not published[/red] ({outcome.verdict.replace('_', ' ')}), because:")
        for reason in outcome.reasons[:SHOWN_REASONS]:
            console.print(f"  • {reason}", highlight=False)
        if len(outcome.reasons) > SHOWN_REASONS:
            console.print(f"  and {len(outcome.reasons) - SHOWN_REASONS} reasons more, on the page and with --json")
    console.print(f"  {outcome.page}", style="dim")


def _describe_data(console: "Console", data: Path | None, seed: int) -> None:
    """Read the data once before anything is started, so that a wrong folder is answered at once."""
    from lossguard.demo import source

    examples = source.examples(data, seed)
    where = str(data) if data is not None else f"a generated stream, seed {seed}"
    console.print(
        f"{len(examples):,} interactions of {examples.last_day + 1} days ({where}); "
        f"trained in time order, judged on the last day.",
        highlight=False,
    )


def _check_file(path: Path | None) -> None:
    if path is not None and not path.absolute().parent.is_dir():
        _fail(f"--json: there is no folder {path.absolute().parent} to write {path.name} into", 2)


def _fail(sentence: str, code: int) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
