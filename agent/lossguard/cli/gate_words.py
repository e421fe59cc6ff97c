"""How the gate's answers look on a terminal: a table of checks, the reasons, and what comes next."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lossguard.wire.verdict import Check, Verdict

_COLOURS = {"pass": "green", "block": "red", "insufficient_data": "yellow"}
_TIMES = ("created", "expires", "retired", "revoked")
_WORDS = {"pass": "pass", "block": "BLOCK", "insufficient_data": "unknown"}


def show_verdict(console: Console, verdict: Verdict, *, every_check: bool = True, service: str = "") -> None:
    """Print a verdict: a table of its checks, then the reasons in words, and where on `service` their evidence is."""
    colour = _COLOURS[verdict.outcome]
    export = escape(f"{verdict.project}/{verdict.run}")
    table = Table(
        title=f"[bold {colour}]{verdict.outcome}[/]  {export} step {verdict.step}"
        f"  policy {escape(verdict.policy)} {verdict.policy_version}",
        title_justify="left",
    )
    for column in ("check", "status", "observed", "limit"):
        table.add_column(column, overflow="fold")
    for check in verdict.checks:
        if every_check or check.status != "pass":
            table.add_row(
                escape(check.name),
                f"[{_COLOURS[check.status]}]{_WORDS[check.status]}[/]",
                escape(_value(check.observed)),
                escape(_value(check.limit)),
            )
    console.print(table)
    for check in sorted(verdict.checks, key=_order):
        if check.status != "pass":
            console.print(f"[{_COLOURS[check.status]}]{escape(check.name)}[/]: {escape(check.explanation)}")
            if check.evidence:
                where = service.rstrip("/") + check.evidence
                console.print(f"  evidence: {where}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"verdict {verdict.id} about {verdict.artifact_digest}", highlight=False, soft_wrap=True)


def show_entries(console: Console, entries: Iterable[Mapping[str, Any]]) -> None:
    """Print the audit log: when, what, whose, by whom, and the particulars."""
    table = Table()
    for column in ("time (UTC)", "what", "project", "by", "particulars"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        told = ", ".join(
            f"{key} {_when(value) if key in _TIMES else _value(value)}"
            for key, value in entry["document"].items()
            if value is not None
        )
        table.add_row(
            _when(entry["time"]),
            escape(entry["kind"]),
            escape(entry["project"] or "all"),
            escape(entry["actor"]),
            escape(told),
        )
    console.print(table)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _order(check: Check) -> int:
    return ["block", "insufficient_data", "pass"].index(check.status)


def _value(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.4g}"
        case list():
            shown = ", ".join(_value(item) for item in value[:3])
            return f"{shown}, ..." if len(value) > 3 else shown or "none"
        case dict():
            return ", ".join(f"{key} {_value(item)}" for key, item in list(value.items())[:3]) or "none"
        case _:
            text = str(value)
            return text if len(text) <= 60 else text[:59] + "…"
