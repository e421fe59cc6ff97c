"""A run of a service is replayed by its name or address, attempt by attempt."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lossguard.cli.main import app
from lossguard.trace import npz
from lossguard.trace.service import address
from lossguard.wire.frame import Frames, Schema


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    """A server that answers as the service's export route does, to the bearer of the token `t` alone."""
    loss = 2 + 2 * np.exp(-np.arange(60) / 20)
    frames = Frames.of(Schema(("loss",)), np.arange(1, 61), loss[:, None])
    npz.write(tmp_path / "run.npz", frames, {"name": "r 17", "attempts": [[1, 0, 40], [2, 40, None]]})
    archive = (tmp_path / "run.npz").read_bytes()

    class Export(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers["authorization"] == "Bearer t"
            known = self.path == "/v1/projects/ads/runs/r%2017/export?format=npz"
            body = archive if known and allowed else b'{"detail": "no such run, or not for you"}'
            self.send_response(200 if known and allowed else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Export)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_run_is_replayed_by_name_and_by_the_address_of_its_page(service: str) -> None:
    for arguments in (["ads/r 17", "--service", service], [f"{service}/runs/ads/r%2017"]):
        result = CliRunner().invoke(app, ["replay", *arguments, "--token", "t"])
        assert result.exit_code == 0, result.output
        assert "r 17: healthy, steps 1 to 60" in result.output


def test_a_refusal_is_told_in_the_services_words(service: str) -> None:
    result = CliRunner().invoke(app, ["replay", "ads/other", "--service", service])
    assert result.exit_code == 2
    assert "answers 404: no such run, or not for you" in result.output


def test_attempts_are_cut_where_they_began(service: str) -> None:
    from lossguard.trace.service import read

    url = address("ads/r 17", service)
    assert url is not None
    assert [len(part) for part in read(url, "t").attempts] == [40, 20]


def test_nobody_there_is_a_sentence() -> None:
    result = CliRunner().invoke(app, ["replay", "http://127.0.0.1:1/runs/ads/r17"])
    assert result.exit_code == 2
    assert "is the service running there?" in result.output


def test_what_names_no_run_is_no_address() -> None:
    assert address("run.npz", None) is None
    assert address("run.npz", "http://127.0.0.1:1") is None
    assert address("http://127.0.0.1:1/runs/ads", None) is None
