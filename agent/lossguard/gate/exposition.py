"""What the guard found, for Prometheus: as a file for node_exporter's textfile collector, or on a port of its own.

One series for each version that has no valid verdict: those in quarantine, and those still in sight. It is made from
the folder alone, so it outlives the guard's restarts and no scrape misses what was moved away between two of them; it
ends when a person has dealt with what lies there. At most `MOST_VERSIONS` are named. A file is replaced in one step.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from lossguard.gate.errors import GateError
from lossguard.gate.guard import QUARANTINE, Finding

METRIC: Final = "lossguard_guard_unjudged_version"
HELP: Final = "1 for each version in a serving folder, or in its quarantine, without a valid verdict."
MOST_VERSIONS: Final = 50
_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def page(folder: Path, findings: Sequence[Finding]) -> str:
    """The folder after a look, in Prometheus' text format."""
    in_sight = [(one.version, "false") for one in findings if not one.good and one.moved_to is None]
    hidden = [name.removeprefix(QUARANTINE) for name in os.listdir(folder) if name.startswith(QUARANTINE)]
    shown = [*in_sight, *((name, "true") for name in sorted(hidden))][:MOST_VERSIONS]
    where = _label(str(folder.resolve()))
    lines = [f'{METRIC}{{folder="{where}",version="{_label(name)}",moved="{moved}"}} 1' for name, moved in shown]
    return "\n".join([f"# HELP {METRIC} {HELP}", f"# TYPE {METRIC} gauge", *lines, ""])


def write_page(path: Path, text: str) -> None:
    """Replace the file that node_exporter reads, in one step."""
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(text, "utf-8")
    # A collector that runs as somebody else must be able to read it.
    draft.chmod(0o644)
    os.replace(draft, path)


@dataclass(slots=True)
class Listener:
    """A page on a port of its own.

    Attributes:
        url: where Prometheus finds it.
        text: what it shows; set it after each look.
    """

    url: str
    text: str = ""


@contextmanager
def listen(host: str, port: int) -> Iterator[Listener]:
    """Show a page at http://host:port/metrics until the block ends; port 0 picks a free one.

    Raises:
        GateError: the address is taken or not ours.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer a scrape."""
            found = self.path.split("?")[0] == "/metrics"
            body = listener.text.encode() if found else b"the page is /metrics\n"
            self.send_response(200 if found else 404)
            self.send_header("content-type", _TYPE)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *_arguments: object) -> None:
            """Scrapes are no news."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise GateError(
            f"cannot listen on {host} port {port} ({error.strerror or error}): name a free port of this machine"
        ) from None
    listener = Listener(f"http://{host}:{server.server_address[1]}/metrics")
    thread = threading.Thread(target=server.serve_forever, name="lossguard-guard-metrics", daemon=True)
    thread.start()
    try:
        yield listener
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _label(text: str) -> str:
    clean = text.encode("utf-8", "backslashreplace").decode()
    return clean.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
