"""`lossguard doctor`: what keeps a trainer and the service apart, and what to do about it.

It only looks: nothing is sent, written (but for an empty file in the journal, deleted at once) or changed. Exit codes:
0 all is well, 1 something must be fixed, 2 wrong use, 4 the service cannot be reached.
"""

import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lossguard.wire.verdict import EXIT_UNREACHABLE, EXIT_USAGE

if TYPE_CHECKING:
    import httpx

SKEW_SECONDS = 30.0
"""Silence is judged in minutes and checkpoints are ordered by step: seconds of skew do no harm."""
JOURNAL_BYTES = 1 << 30
"""What the recorder keeps at most by default."""
_EXIT_SICK = 1


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        state: `ok`, `warning` (works, but look), `error` (does not work).
        seen: what was found.
        advice: what to do; empty if nothing.
    """

    name: str
    state: Literal["ok", "warning", "error"]
    seen: str
    advice: str = ""


def doctor(
    service: Annotated[str | None, typer.Option(help="URL of the service.", envvar="LOSSGUARD_SERVICE")] = None,
    token: Annotated[
        str | None, typer.Option(help="The token that is used.", envvar="LOSSGUARD_TOKEN", show_default=False)
    ] = None,
    journal: Annotated[Path | None, typer.Option(metavar="DIR", help="Journal folder of the trainer.")] = None,
    project: Annotated[str | None, typer.Option(help="The project that the token is for.")] = None,
    output: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
) -> None:
    """Look at versions, service, token, clock and journal, and say what to fix.

    Example: lossguard doctor --service http://127.0.0.1:8080 --journal .lossguard/journal
    """
    if output not in ("table", "json"):
        typer.echo(f"--format: must be table or json, got {output!r}", err=True)
        raise typer.Exit(EXIT_USAGE)
    if service is not None and not service.startswith(("http://", "https://")):
        typer.echo(f"--service: must begin with http:// or https://, got {service!r}", err=True)
        raise typer.Exit(EXIT_USAGE)
    findings = list(versions())
    reached = True
    if service is None:
        findings.append(Finding("service", "warning", "not asked", "name it with --service or LOSSGUARD_SERVICE"))
    else:
        about = list(of_service(service, token, project, time.time))
        reached = about[0].state != "error"
        findings += about
    if journal is not None:
        findings += of_journal(journal)
    if output == "json":
        typer.echo(json.dumps({"findings": [asdict(one) for one in findings]}, indent=2))
    else:
        _show(findings)
    if not reached:
        raise typer.Exit(EXIT_UNREACHABLE)
    raise typer.Exit(_EXIT_SICK if any(one.state == "error" for one in findings) else 0)


def versions() -> Iterator[Finding]:
    """Python, Lossguard, and what a watched trainer needs."""
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding("python", "ok" if fits else "error", here, "" if fits else "use Python 3.11, 3.12 or 3.13")
    yield Finding("lossguard", "ok", version("lossguard"))
    if importlib.util.find_spec("keras") is None:
        yield Finding("keras", "warning", "not installed", 'a Keras trainer needs: pip install "lossguard[tensorflow]"')
        return
    try:
        keras = version("keras")
    except PackageNotFoundError:
        keras = "unknown"
    old = keras.startswith(("1.", "2.", "3.0.", "3.1.", "3.2.", "3.3."))
    yield Finding("keras", "error" if old else "ok", keras, "Keras 3.12 or later is needed" if old else "")


def of_service(service: str, token: str | None, project: str | None, clock: Callable[[], float]) -> Iterator[Finding]:
    """Whether the service answers, is ready, takes the token, and tells the same time."""
    import httpx

    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    with httpx.Client(base_url=service.rstrip("/"), headers=headers, timeout=5.0) as client:
        try:
            answer = client.get("/healthz")
        except httpx.HTTPError as error:
            yield Finding(
                "service",
                "error",
                f"{service} does not answer ({type(error).__name__}: {error})",
                "start it with `lossguard serve`, or correct --service; until then journals keep everything",
            )
            return
        if answer.status_code != 200 or answer.text.strip() != "ok":
            yield Finding(
                "service", "error", f"{service} answers {answer.status_code}, but is not Lossguard", "correct --service"
            )
            return
        yield Finding("service", "ok", f"{service} answers")
        yield _clock(answer, clock())
        ready = client.get("/readyz")
        yield (
            Finding("database", "ok", "ready")
            if ready.status_code == 200
            else Finding("database", "error", f"not ready ({ready.status_code})", "the service's log says why")
        )
        if ready.status_code == 200:
            yield _bytes(client)
        yield _token(client, token, project)


def of_journal(folder: Path) -> Iterator[Finding]:
    """Whether the journal can be written, and how much waits in it."""
    if not folder.is_dir():
        yield Finding(
            "journal", "error", f"there is no folder {folder}", "create it, or name the trainer's with --journal"
        )
        return
    probe = folder / f".doctor-{os.getpid()}"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        yield Finding("journal", "error", f"cannot be written: {error.strerror}", f"let this user write to {folder}")
        return
    sizes = [one.stat().st_size for one in folder.rglob("*") if one.is_file()]
    refused = sum(one.is_file() for one in folder.rglob("rejected/*"))
    free = shutil.disk_usage(folder).free
    yield Finding("journal", "ok", f"{folder} can be written, {sum(sizes) / 1e6:.1f} MB wait in it")
    if free < JOURNAL_BYTES:
        yield Finding(
            "disk",
            "warning",
            f"{free / 1e6:.0f} MB are free",
            "a journal may need 1 GB: make room or set journal_bytes",
        )
    if refused:
        yield Finding(
            "refused chunks",
            "error",
            f"{refused} files in rejected/",
            "the service would not have them: the reason lies beside each",
        )


def _clock(answer: "httpx.Response", now: float) -> Finding:
    try:
        skew = now - parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return Finding(
            "clock", "warning", "the service does not tell the time", "a proxy may have removed its Date header"
        )
    if abs(skew) <= SKEW_SECONDS:
        return Finding("clock", "ok", "as the service's")
    word = "ahead of" if skew > 0 else "behind"
    return Finding("clock", "warning", f"{abs(skew):.0f} s {word} the service's", "synchronize the clocks (NTP)")


def _bytes(client: "httpx.Client") -> Finding:
    import httpx

    try:
        answer = client.get("/readyz", params={"bytes": "true"}, timeout=90.0)
    except httpx.HTTPError as error:
        return Finding("bytes", "error", f"no answer ({type(error).__name__})", "the service's log says why")
    if answer.status_code == 200:
        return Finding("bytes", "ok", answer.text.strip().rpartition(": ")[2])
    advice = "chunks wait in the journals until it answers: look at LOSSGUARD_BYTES_URL, credentials and endpoint"
    return Finding("bytes", "error", "the service cannot reach its object store; its log says why", advice)


def _token(client: "httpx.Client", token: str | None, project: str | None) -> Finding:
    parameters = {"limit": "1"} | ({} if project is None else {"project": project})
    status = client.get("/v1/runs", params=parameters).status_code
    where = "all projects" if project is None else f"project {project}"
    if status == 200:
        return Finding("token", "ok", "none is needed" if token is None else f"may read {where}")
    if status == 401 and token is None:
        return Finding(
            "token", "error", "the service wants one", "set LOSSGUARD_TOKEN; `lossguard token create` makes one"
        )
    if status == 401:
        return Finding("token", "error", "unknown, expired or revoked", "make a new one with `lossguard token create`")
    if status == 403:
        hint = "it may be for one project only: name that with --project; an ingest token need not read"
        return Finding("token", "warning", f"valid, but may not read {where}", hint)
    return Finding("token", "error", f"/v1/runs answers {status}", "the service's log says why")


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    signs = {"ok": "[green]ok[/]     ", "warning": "[yellow]look[/]   ", "error": "[red]FIX[/]    "}
    for one in findings:
        console.print(f"{signs[one.state]}{one.name:<15}{escape(one.seen)}")
        if one.advice:
            console.print(f"       {'':<15}→ {escape(one.advice)}")
