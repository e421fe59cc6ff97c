"""The sidecar's own `/metrics` and `/healthz`: what they say, and to whom."""

import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from service_on_loopback import LoopbackService
from sidecar_process import once, read, record, sidecar

from lossguard.journal.heartbeat import Heartbeat
from lossguard.sidecar.client import Client
from lossguard.sidecar.dispatcher import Dispatcher, RunStatus
from lossguard.sidecar.folders import JournalFolders
from lossguard.sidecar.shipper import Shipped
from lossguard.sidecar.status import StatusServer, exposition

pytestmark = pytest.mark.usefixtures("no_leaks", "guard_raises")


def test_metrics_and_health_are_served(tmp_path: Path, service: LoopbackService) -> None:
    record(tmp_path, "r", 1, 12)
    process = sidecar(tmp_path, "--service", service.url, "--status-port", 0, "--poll-seconds", 0.05)
    assert process.stderr is not None
    address = status_of(process)
    service.wait_for(lambda: len(service.stored) >= 5)
    assert read(address + "/healthz") == (200, "ok\n")
    status, text = read(address + "/metrics")
    while "lossguard_sidecar_chunks_shipped_total 5\n" not in text:
        status, text = read(address + "/metrics")
    assert status == 200
    assert "# TYPE lossguard_sidecar_backlog_bytes gauge" in text
    assert read(address + "/else")[0] == 404
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


def status_of(process: subprocess.Popen[str]) -> str:
    """The address of its pages, once it has told it."""
    assert process.stderr is not None
    while (match := re.search(r"status on (http://\S+)/metrics", process.stderr.readline())) is None:
        pass
    return match[1]


@pytest.mark.parametrize(
    ("listens", "asks", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1", "rebound.example", 421),
        ("localhost", "127.0.0.1", "rebound.example:9464", 421),
        ("::1", "[::1]", "rebound.example", 421),
        ("127.0.0.1", "127.0.0.1", "localhost:9464", 200),
        ("127.0.0.1", "127.0.0.1", "[::1]:9464", 200),
        ("0.0.0.0", "127.0.0.1", "trainer-0.pods.example:9464", 200),
        ("0.0.0.0", "127.0.0.1", "10.1.2.3:9464", 200),
        ("::", "[::1]", "[fd00::7]:9464", 200),
    ],
)
def test_a_status_port_on_loopback_answers_to_no_foreign_name_and_an_opened_one_to_all(
    listens: str, asks: str, host: str, status: int
) -> None:
    try:
        server = StatusServer(Dispatcher(list, Client("http://127.0.0.1:9")), JournalFolders([]), listens, 0)
    except OSError as error:
        if ":" not in listens:
            raise
        pytest.skip(f"no IPv6 here: {error}")
    try:
        for page in ("/metrics", "/healthz"):
            found, text = read(f"http://{asks}:{server.port}{page}", host=host)
            assert found == status
            assert ("--status-host" in text) == (status == 421)
    finally:
        server.close()


def test_a_taken_status_port_is_a_sentence(tmp_path: Path, service: LoopbackService) -> None:
    port = service.url.rsplit(":", 1)[1]
    code, errors = once(tmp_path, "--service", service.url, "--status-port", port)
    assert code == 2
    assert "choose another port" in errors


@pytest.mark.skipif(shutil.which("promtool") is None, reason="asks promtool")
def test_prometheus_reads_the_metrics() -> None:
    worker = Heartbeat("0" * 32, worker=1, last_step=7, seconds=1.7e9)
    run = RunStatus("ads", 'a "quoted" run', Shipped(chunks=3), 17, None, (worker,))
    text = exposition([run], 1.7e9, 1)
    assert 'run="a \\"quoted\\" run",worker="1"} 7\n' in text
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
