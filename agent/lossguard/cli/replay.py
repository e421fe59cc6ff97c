"""`lossguard replay`: the detectors over runs that were recorded already. No integration needed."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lossguard.cli.scalar_names import ScalarNames, columns_of

if TYPE_CHECKING:
    from lossguard.detect.rules import Rule
    from lossguard.trace.batches import Batch
from lossguard.wire.incident import Incident, RunReport


def replay(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Traces (.npz), CSV, trainer_state.json or event files; or a service's runs: the address of a run's "
            "page, or PROJECT/RUN with --service."
        ),
    ],
    form: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
    plot: Annotated[Path | None, typer.Option(help="Write a page with the losses and incidents here.")] = None,
    scalar: ScalarNames = None,
    caution: Annotated[float, typer.Option(help="Factor on the losses' scales, see backtest.", min=0.01)] = 1.0,
    rule: Annotated[list[str] | None, typer.Option(help="package.module:object, a detector of your own.")] = None,
    service: Annotated[str | None, typer.Option(help="The service's address, for PROJECT/RUN.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="LOSSGUARD_TOKEN", show_default=False, help="With the scope read.")
    ] = None,
) -> None:
    """Run the detectors over saved runs and say what they find.

    Exit code 0 whatever they find, 2 for a file or a run that cannot be read, or a rule that fails.
    """
    from lossguard.detect.rules import RuleError
    from lossguard.trace.batches import of_trace
    from lossguard.trace.read import read
    from lossguard.trace.replay import replay as run_detectors
    from lossguard.trace.service import address
    from lossguard.trace.service import read as read_run
    from lossguard.trace.trace import TraceError

    if form not in ("table", "json"):
        raise typer.BadParameter(f"{form!r}; it is table or json", param_hint="--format")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {plot.parent}", param_hint="--plot")
    given = columns_of(scalar)
    rules = [_rule(item) for item in rule or []]
    traces, reports, batches = [], [], []
    try:
        for name in files:
            url = None if Path(name).exists() else address(name, service)
            trace = read(Path(name), given) if url is None else read_run(url, token)
            report = run_detectors(trace, caution, rules)
            reports.append(report)
            batches.append([of_trace(trace, incident) for incident in report.incidents])
            if plot is not None:
                traces.append(trace)
    except (TraceError, RuleError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    if form == "json":
        documents = [_document(report, named) for report, named in zip(reports, batches, strict=True)]
        document = documents[0] if len(documents) == 1 else {"runs": documents}
        sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
    else:
        _table(reports, batches)
    if plot is not None:
        from lossguard.trace.plot import page

        plot.write_text(page(traces, reports), encoding="utf-8")
        typer.echo(f"wrote {plot}", err=True)


def _rule(item: str) -> "Rule":
    """The detector that an option names."""
    import importlib

    module, colon, name = item.partition(":")
    try:
        found: Rule = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise typer.BadParameter(f"{item!r}: {error}; write package.module:object", param_hint="--rule") from None
    if not colon or not callable(getattr(found, "update", None)) or not callable(getattr(found, "init", None)):
        raise typer.BadParameter(f"{item!r} has no init and update", param_hint="--rule")
    return found


def _document(report: RunReport, batches: "list[tuple[Batch, ...]]") -> dict[str, Any]:
    """The report, with the batches of its incidents where the run recorded any."""
    document = report.to_json()
    for incident, found in zip(document["incidents"], batches, strict=True):
        if found:
            incident["batches"] = [asdict(one) for one in found]
    return document


def _table(reports: list[RunReport], batches: "list[list[tuple[Batch, ...]]]") -> None:
    from rich.console import Console
    from rich.table import Table

    from lossguard.trace.batches import sentence

    console = Console()
    for report, named in zip(reports, batches, strict=True):
        steps = f"steps {report.steps[0]} to {report.steps[1]}" if report.steps else "no steps"
        console.print(f"[bold]{report.run}[/bold]: {report.status}, {steps}", highlight=False)
        if not report.incidents:
            continue
        table = Table("kind", "onset", "flagged", "full", "end", "what happened", "what to do")
        for incident in report.incidents:
            table.add_row(*_cells(incident))
        console.print(table)
        for incident, found in zip(report.incidents, named, strict=True):
            if found:
                kind = incident.kind.replace("_", " ")
                console.print(
                    f"batches of the {kind} of step {incident.onset_step}: {sentence(found)}", highlight=False
                )


def _cells(incident: Incident) -> list[str]:
    steps = (incident.onset_step, incident.detected_step, incident.declared_full_step, incident.end_step)
    texts = ["" if step is None else str(step) for step in steps]
    return [incident.kind.replace("_", " "), *texts, incident.explanation, incident.advice]
