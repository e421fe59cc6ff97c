"""The real sidecar against the real service: what one sends is what the other stores."""

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lossguard
from lossguard.journal.reader import RunLock
from lossguard.journal.segment import RECORD_MAGIC
from lossguard.recorder import Recorder
from lossguard.wire.frame import Frames, Schema

pytest.importorskip("fastapi", reason="needs the extra [service]")
SCHEMA = Schema(("loss",), ("a", "b"), ("gradient_norm",))


class Service:
    """`python -m lossguard_service` on SQLite in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._address = folder / "address"
        self.start()

    def start(self) -> None:
        self._address.unlink(missing_ok=True)
        options = ["--database", f"sqlite:///{self._folder / 'lossguard.db'}", "--log-level", "warning"]
        options += ["--address-file", str(self._address)]
        port = getattr(self, "port", "0")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lossguard_service", "--port", port, *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        while not (self._address.exists() and self._address.read_text().strip()):
            assert self._process.poll() is None, self._process.communicate()[1]
        self.url = self._address.read_text().strip()
        self.port = self.url.rsplit(":", 1)[1].strip("/")

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url.rstrip("/") + path, timeout=30) as answer:
            return json.load(answer)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    folder = tmp_path / "service"
    folder.mkdir()
    started = Service(folder)
    yield started
    started.kill()


def frames(first: int, count: int) -> Frames:
    steps = np.arange(first, first + count)
    return Frames.of(SCHEMA, steps, steps[:, None] / 1000, np.ones((count, 2, 1), np.float32))


def ship(journal: Path, service: Service) -> tuple[int, str]:
    main = "from lossguard.cli.main import main; main()"
    command = [sys.executable, "-c", main, "sidecar", str(journal), "--service", service.url, "--once"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr


def record(journal: Path, run: str, start: int, count: int, end: Callable[[Recorder], None] = Recorder.close) -> str:
    recorder = Recorder(
        journal, "ads", run, start_step=start, seal_frames=16, seal_seconds=3600.0, config={"tasks": {}}
    )
    for step in range(start + 1, start + count + 1):
        assert recorder.record(frames(step, 1))
    end(recorder)
    return recorder.attempt


def test_a_run_with_a_restart_arrives_as_two_attempts(tmp_path: Path, service: Service) -> None:
    keys = [record(tmp_path / "j", "ranker 7, lr=0.1", 0, 100), record(tmp_path / "j", "ranker 7, lr=0.1", 60, 100)]
    assert ship(tmp_path / "j", service)[0] == 0
    found = service.get("/v1/projects/ads/runs/ranker%207,%20lr=0.1")
    attempts = found["attempts"]
    assert [attempt["key"] for attempt in attempts] == keys
    assert [attempt["start_step"] for attempt in attempts] == [0, 60]
    assert [attempt["last_step"] for attempt in attempts] == [100, 160]
    assert [attempt["stop_reason"] for attempt in attempts] == ["finished", "finished"]
    assert found["last_step"] == found["judged_step"] == 160
    series = service.get("/v1/projects/ads/runs/ranker%207,%20lr=0.1/series?name=loss&points=2000")
    assert not list((tmp_path / "j").rglob("*.journal"))
    assert json.dumps(series)


def test_drops_reach_the_service(tmp_path: Path, service: Service) -> None:
    def end(recorder: Recorder) -> None:
        assert not recorder.record(frames(3, 2))
        recorder.close()

    record(tmp_path / "j", "r", 0, 10, end)
    assert ship(tmp_path / "j", service)[0] == 0
    assert service.get("/v1/projects/ads/runs/r")["dropped_frames"] == 2


def test_sending_everything_again_changes_nothing(tmp_path: Path, service: Service) -> None:
    record(tmp_path / "j", "r", 0, 50, Recorder.flush)
    assert ship(tmp_path / "j", service)[0] == 0
    before = service.get("/v1/projects/ads/runs/r")
    for cursor in (tmp_path / "j").rglob("shipped.json"):
        cursor.unlink()
    assert ship(tmp_path / "j", service)[0] == 0
    after = service.get("/v1/projects/ads/runs/r")
    for document in (before, after):
        document.pop("last_seen", None)
    assert after == before


def test_a_chunk_that_rotted_is_a_gap_and_what_comes_after_is_judged(tmp_path: Path, service: Service) -> None:
    attempt = record(tmp_path / "j", "r", 0, 80)
    (segment,) = (tmp_path / "j" / "ads" / "r" / attempt).glob("*.journal")
    data = bytearray(segment.read_bytes())
    third = [place for place in range(len(data)) if data.startswith(RECORD_MAGIC, place)][2]
    data[third + 60] ^= 1
    segment.write_bytes(data)
    code, errors = ship(tmp_path / "j", service)
    assert code == 0, errors
    found = service.get("/v1/projects/ads/runs/r")
    assert (found["judged_step"], found["waiting_chunks"], found["frames"]) == (80, 0, 64)
    (gap,) = found["gaps"]
    assert (gap["kind"], gap["first_step"], gap["last_step"]) == ("dropped", 17, 32)


def test_a_killed_service_loses_nothing(tmp_path: Path, service: Service) -> None:
    with lossguard.Run(
        "ads", "r", journal=tmp_path / "j", service=service.url, seal_frames=10, seal_seconds=0.05
    ) as run:
        for step in range(1, 51):
            assert run.log(step, {"loss": 0.5})
        service.kill()
        for step in range(51, 101):
            assert run.log(step, {"loss": 0.5})
        service.start()
    uploader = RunLock(tmp_path / "j" / "ads" / "r")
    while not uploader.acquire():
        pass  # its thread may be on its last lines
    uploader.release()
    ship(tmp_path / "j", service)
    found = service.get("/v1/projects/ads/runs/r")
    assert found["last_step"] == 100
    assert found["frames"] == 100
