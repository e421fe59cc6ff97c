"""The sidecar's own `/metrics` and `/healthz`, served from the standard library.

`/healthz` answers 200 while the sidecar works, also when the service is down: restarting the sidecar would not help.
Whether chunks arrive is in the metrics (`lossguard_sidecar_failing_runs`, `lossguard_sidecar_last_success_seconds`);
what is wrong with a journal's folder, one that is still to come for example, stands in the answer's next lines.

On a loopback address, the default, it answers to names of this machine and to addresses only: a web page whose own name
was made to point at 127.0.0.1 gets 421 (docs/decisions/0309-whom-the-status-port-answers.md).
"""

import ipaddress
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Final

from lossguard.sidecar.dispatcher import Dispatcher, RunStatus
from lossguard.sidecar.folders import JournalFolders

HELP: Final = {
    "lossguard_sidecar_runs": ("gauge", "runs whose journals are shipped"),
    "lossguard_sidecar_folders_in_trouble": ("gauge", "folders that are not there yet or cannot be read"),
    "lossguard_sidecar_failing_runs": ("gauge", "runs whose last try failed"),
    "lossguard_sidecar_backlog_bytes": ("gauge", "bytes on disk that the service does not have yet"),
    "lossguard_sidecar_last_success_seconds": ("gauge", "Unix time of the last turn without a failure"),
    "lossguard_sidecar_chunks_shipped_total": ("counter", "chunks that the service acknowledged"),
    "lossguard_sidecar_duplicates_total": ("counter", "chunks that the service had already"),
    "lossguard_sidecar_bytes_shipped_total": ("counter", "their bytes"),
    "lossguard_sidecar_chunks_refused_total": ("counter", "chunks that the service refused, set aside on disk"),
    "lossguard_sidecar_retries_total": ("counter", "failed tries"),
    "lossguard_sidecar_torn_tails_total": ("counter", "torn tails of killed trainers that were cut"),
    "lossguard_sidecar_damaged_bytes_total": ("counter", "bytes that were passed over because they are no record"),
    "lossguard_sidecar_worker_last_step": ("gauge", "by project, run and worker: the last step of a worker that lives"),
}

_NOT_OURS: Final = (
    "on a loopback address this answers to localhost and to addresses only: ask http://127.0.0.1, or listen elsewhere "
    "(--status-host) if this name is meant\n"
)


def exposition(runs: list[RunStatus], last_success: float | None, folders_in_trouble: int = 0) -> str:
    """The metrics in Prometheus' text format."""
    shipped = [run.shipped for run in runs]
    values: dict[str, float] = {
        "lossguard_sidecar_runs": len(runs),
        "lossguard_sidecar_folders_in_trouble": folders_in_trouble,
        "lossguard_sidecar_failing_runs": sum(run.failure is not None for run in runs),
        "lossguard_sidecar_backlog_bytes": sum(run.backlog_bytes for run in runs),
        "lossguard_sidecar_last_success_seconds": last_success or 0.0,
        "lossguard_sidecar_chunks_shipped_total": sum(each.chunks for each in shipped),
        "lossguard_sidecar_duplicates_total": sum(each.duplicates for each in shipped),
        "lossguard_sidecar_bytes_shipped_total": sum(each.bytes for each in shipped),
        "lossguard_sidecar_chunks_refused_total": sum(each.refused for each in shipped),
        "lossguard_sidecar_retries_total": sum(each.retries for each in shipped),
        "lossguard_sidecar_torn_tails_total": sum(each.cut.tails for each in shipped),
        "lossguard_sidecar_damaged_bytes_total": sum(each.cut.tail_bytes + each.cut.damage_bytes for each in shipped),
    }
    lines = []
    for name, (kind, text) in HELP.items():
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        lines += [f"{name} {values[name]!r}"] if name in values else _workers(name, runs)
    return "\n".join(lines) + "\n"


def _workers(name: str, runs: list[RunStatus]) -> list[str]:
    """One line per worker beside the chief. Of what the format escapes, a name holds quotes only."""
    lines = []
    for run in runs:
        project, run_name = (text.replace('"', '\\"') for text in (run.project, run.run))
        lines += [
            f'{name}{{project="{project}",run="{run_name}",worker="{worker.worker}"}} {worker.last_step}'
            for worker in run.workers
        ]
    return lines


class StatusServer:
    """Serves `/metrics` and `/healthz` in a daemon thread.

    Args:
        dispatcher: whose status.
        folders: the journals that it ships.
        host, port: where to listen; port 0 takes a free one (`port` says which).

    Raises:
        OSError: the port is taken, or the address is none of this machine.
    """

    def __init__(self, dispatcher: Dispatcher, folders: JournalFolders, host: str, port: int) -> None:
        def metrics() -> str:
            return exposition(dispatcher.status(), dispatcher.last_success_time, len(folders.trouble))

        def health() -> str:
            return "\n".join(["ok", *folders.trouble.values(), ""])

        def may_ask(named: str) -> bool:
            return not is_loopback or _is_ours(named)

        self._server = _Server(host, port, _handler(metrics, health, may_ask))
        self.port: int = self._server.server_address[1]
        address = _address(str(self._server.server_address[0]))
        is_loopback = address is not None and address.is_loopback
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="lossguard-status", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _is_ours(host: str) -> bool:
    """Whether a Host header names this machine or an address; programs that name none are taken at their word.

    >>> [_is_ours(host) for host in ("localhost:9464", "[::1]:9464", "10.1.2.3", "", "rebound.example:9464")]
    [True, True, True, True, False]
    """
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    name = name.lower().removesuffix(".")
    return not name or name == "localhost" or name.endswith(".localhost") or _address(name) is not None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        super().__init__((str(address[0]), port), handler)

    def server_bind(self) -> None:
        """Without the names that `HTTPServer` looks up here, for seconds where no name server answers."""
        TCPServer.server_bind(self)


def _handler(
    metrics: Callable[[], str], health: Callable[[], str], may_ask: Callable[[str], bool]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer one of the two pages."""
            if not may_ask(self.headers.get("host", "")):
                self._answer(421, _NOT_OURS, "text/plain; charset=utf-8")
            elif self.path == "/metrics":
                self._answer(200, metrics(), "text/plain; version=0.0.4; charset=utf-8")
            elif self.path == "/healthz":
                self._answer(200, health(), "text/plain; charset=utf-8")
            else:
                self._answer(404, "here are /metrics and /healthz\n", "text/plain; charset=utf-8")

        def _answer(self, status: int, text: str, kind: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are not news."""

    return Handler
