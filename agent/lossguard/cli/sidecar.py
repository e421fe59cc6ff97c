"""`lossguard sidecar`: ships the journals of a pod's runs to the service, in a process of its own.

Exit codes: 0 everything sealed was shipped (after --once, SIGTERM or Ctrl-C), 2 wrong use, or a folder that at the end
is not there or cannot be read, 4 the service could not be reached, or another process has a run that is not shipped,
with --once or in the time that SIGTERM leaves. Words and the log go to standard error; with `--format json` one
document about every run goes to standard output at the end, also of an end that is a refusal.
"""

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from lossguard.wire.verdict import EXIT_UNREACHABLE, EXIT_USAGE

if TYPE_CHECKING:
    from lossguard.sidecar.dispatcher import Drained, RunStatus
    from lossguard.sidecar.folders import JournalFolders

LOOPBACK = "127.0.0.1"
ONCE_TRIES = 5
ONCE_SECONDS = 3600.0


def sidecar(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Journal folders, as given to the trainers.")
    ],
    service: Annotated[str, typer.Option(help="URL of the service.", envvar="LOSSGUARD_SERVICE")],
    token: Annotated[
        str | None, typer.Option(help="Token with the scope ingest.", envvar="LOSSGUARD_TOKEN", show_default=False)
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Ship what is there, then exit.")] = False,
    ca: Annotated[Path | None, typer.Option("--ca", metavar="FILE", help="PEM file of the authority to trust.")] = None,
    status_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve /metrics and /healthz there; 0 takes a free port.")
    ] = None,
    status_host: Annotated[str, typer.Option(help="Address of /metrics and /healthz.")] = LOOPBACK,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Runs that are shipped at the same time.")] = 4,
    poll_seconds: Annotated[float, typer.Option(min=0.01, help="How often the folders are looked at.")] = 1.0,
    drain_seconds: Annotated[
        float, typer.Option(min=0.0, help="Time to finish after SIGTERM; a second one ends it.")
    ] = 25.0,
    format: Annotated[str, typer.Option("--format", help="What it prints at its end: table or json.")] = "table",
) -> None:
    """Ship journals to the service, in order, until they are acknowledged; delete nothing before that.

    It runs until it is told to end (SIGTERM, Ctrl-C), or with --once until nothing is left to ship. A folder that is
    not there yet is waited for: in a pod the sidecar may start before its trainer.

    Example: lossguard sidecar .lossguard/journal --service http://127.0.0.1:8080
    Example: lossguard sidecar .lossguard/journal --once --format json
    """
    if format not in ("table", "json"):
        _usage(f"--format: must be table or json, got {format!r}")
    # Imported here, so that `lossguard --help` need not load the HTTP client.
    from lossguard.sidecar.client import Client
    from lossguard.sidecar.dispatcher import Dispatcher
    from lossguard.sidecar.folders import JournalFolders, journal_below
    from lossguard.sidecar.status import StatusServer

    for directory in directories:
        if directory.exists() and not directory.is_dir():
            _usage(f"DIR: {directory} is no folder: name the journal folder of the trainer", format)
        if once and not directory.exists():
            _usage(f"DIR: there is no folder {directory}: name the journal folder of the trainer", format)
    if status_port is None and status_host != LOOPBACK:
        _usage("--status-host: says where --status-port listens, and none is given: add --status-port", format)
    _configure_log()
    log = logging.getLogger("lossguard.sidecar")
    try:
        client = Client(service, token=token, ca_file=None if ca is None else os.fspath(ca))
    except ValueError as error:
        _usage(str(error), format)
    folders = JournalFolders(directories)
    for directory in directories:
        if (below := journal_below(directory)) is not None:
            log.warning(
                "%s is a journal of its own, below %s: its runs are not shipped unless you name it", below, directory
            )
    dispatcher = Dispatcher(folders, client, workers=workers, poll_seconds=poll_seconds)
    try:
        status = None if status_port is None else StatusServer(dispatcher, folders, status_host, status_port)
    except OSError as error:
        _usage(
            f"--status-port: cannot listen on {status_host}:{status_port}: {error.strerror}: choose another port, or "
            "for --status-host an address of this machine",
            format,
        )
    if status is not None:
        log.info(
            "status on http://%s:%d/metrics", f"[{status_host}]" if ":" in status_host else status_host, status.port
        )
    ended, hurried = threading.Event(), threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        # Whoever says it twice does not want to wait for a service that does not answer.
        (hurried if ended.is_set() else ended).set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        dispatcher.start()
        if once:
            drained = dispatcher.drain(ONCE_SECONDS, tries=ONCE_TRIES, insist=False, stop=ended.is_set)
        else:
            log.info("shipping %s to %s", ", ".join(map(str, directories)), client.service)
            ended.wait()
            log.info("told to end: shipping what is sealed, for %.0f s at most", drain_seconds)
            # Every try counts: the disk may go with the pod.
            drained = dispatcher.drain(drain_seconds, tries=sys.maxsize, stop=hurried.is_set)
        runs = dispatcher.status()
        typer.echo(_summary(runs), err=True)
        if format == "json":
            typer.echo(json.dumps(_document(runs, drained, folders, client.service), indent=2))
        code = _report(drained, folders, client.service)
        dispatcher.stop()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if status is not None:
            status.close()
        client.close()
    raise typer.Exit(code)


def _summary(runs: list["RunStatus"]) -> str:
    chunks, size = sum(run.shipped.chunks for run in runs), sum(run.shipped.bytes for run in runs)
    parts = [f"shipped {chunks} chunks ({size / 1e6:.1f} MB) of {len(runs)} runs"]
    if not runs:
        parts.append("no run has journaled there: compare DIR with the journal of the trainer")
    for count, what in (
        (sum(run.shipped.duplicates for run in runs), "were known to the service already"),
        (sum(run.shipped.refused for run in runs), "were refused and set aside in rejected/ beside their journal"),
        (sum(run.shipped.cut.tails for run in runs), "torn tails of killed trainers were cut"),
        (sum(run.shipped.retries for run in runs), "tries failed"),
    ):
        if count:
            parts.append(f"{count} {what}")
    return "; ".join(parts)


def _document(runs: list["RunStatus"], drained: "Drained", folders: "JournalFolders", service: str) -> dict[str, Any]:
    return {
        "service": service,
        "complete": drained.complete and not folders.trouble,
        "folders_in_trouble": {os.fspath(folder): sentence for folder, sentence in folders.trouble.items()},
        "runs": [
            {
                "project": run.project,
                "run": run.run,
                "chunks": run.shipped.chunks,
                "bytes": run.shipped.bytes,
                "known_already": run.shipped.duplicates,
                "refused": run.shipped.refused,
                "tails_cut": run.shipped.cut.tails,
                "tries_failed": run.shipped.retries,
                "backlog_bytes": run.backlog_bytes,
                "not_shipped": None
                if (found := drained.failures.get(f"{run.project}/{run.run}")) is None
                else found.reason,
            }
            for run in runs
        ],
    }


def _report(drained: "Drained", folders: "JournalFolders", service: str) -> int:
    for sentence in folders.trouble.values():
        typer.echo(sentence, err=True)
    if drained.complete:
        if folders.trouble:
            return EXIT_USAGE
        typer.echo("all that is sealed is shipped", err=True)
        return 0
    for run, failure in drained.failures.items():
        typer.echo(f"{run}: not shipped: {failure.reason}", err=True)
    typer.echo("the chunks stay on disk: run the sidecar again when the cause is gone", err=True)
    refused = [failure.status for failure in drained.failures.values() if failure.status in (401, 403)]
    if refused:
        _usage(f"--token: {service} does not take it: give a token with the scope ingest for these projects")
    return EXIT_UNREACHABLE


def _usage(sentence: str, format: str = "table") -> NoReturn:
    typer.echo(sentence, err=True)
    if format == "json":
        typer.echo(json.dumps({"error": sentence}, indent=2))
    raise typer.Exit(EXIT_USAGE)


def _configure_log() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("lossguard")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
