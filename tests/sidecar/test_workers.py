"""Workers beside the chief: their signs of life, from their file to the service."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from service_on_loopback import LoopbackService

from lossguard.journal.heartbeat import Heartbeat, HeartbeatFile, heartbeats
from lossguard.sidecar.client import Outcome
from lossguard.sidecar.dispatcher import RunStatus
from lossguard.sidecar.shipper import RunShipper, Shipped
from lossguard.sidecar.status import exposition
from lossguard.wire.chunk import ChunkId
from lossguard.worker import Worker

pytestmark = pytest.mark.usefixtures("no_leaks", "guard_raises")

SCRIPT = """
import sys
from lossguard import worker
worker.BEAT_SECONDS = 0.02
one = worker.Worker(sys.argv[1], "ads", "r", 2)
one.beat(7)
def told():
    from lossguard.journal.heartbeat import heartbeats
    return [beat.last_step for beat in heartbeats(one._folder)] == [7]
while not told():
    pass
print("ready", flush=True)
sys.stdin.readline()
"""


class _Heard:
    """A service that keeps the heartbeats."""

    def __init__(self) -> None:
        self.beats: list[dict[str, object]] = []

    def put_chunk(self, identity: ChunkId, data: bytes) -> Outcome:
        raise AssertionError("a worker beside the chief journals nothing")

    def put_heartbeat(self, project: str, run: str, document: dict[str, object]) -> bool:
        self.beats.append(document)
        return True


@contextmanager
def worker_process(folder: Path) -> Iterator[Any]:
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_a_living_worker_is_told_of_and_a_killed_one_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_folder = tmp_path / "ads" / "r"
    heard = _Heard()
    with worker_process(tmp_path) as process:
        shipper = RunShipper(run_folder, heard)
        shipper.turn()
        shipper.heartbeat(0.0)
        (beat,) = heard.beats
        assert (beat["worker"], beat["last_step"]) == (2, 7)
        status = RunStatus("ads", 'r"', Shipped(), 0, None, shipper.workers)
        line = 'lossguard_sidecar_worker_last_step{project="ads",run="r\\"",worker="2"} 7'
        assert line in exposition([status], None).splitlines()
        process.kill()
        process.wait()
    shipper.heartbeat(0.0)
    assert len(heard.beats) == 1
    assert "worker 2 is gone without a goodbye, its last step was 7" in caplog.text
    assert heartbeats(run_folder) == []
    assert shipper.workers == ()
    shipper.close()


def test_a_worker_that_ends_in_order_leaves_nothing(tmp_path: Path) -> None:
    with worker_process(tmp_path) as process:
        process.communicate("\n")
        assert process.returncode == 0
    assert heartbeats(tmp_path / "ads" / "r") == []
    assert list((tmp_path / "ads" / "r" / "workers").iterdir()) == []


def test_a_worker_tells_the_service_itself_where_no_sidecar_is(tmp_path: Path, service: LoopbackService) -> None:
    worker = Worker(tmp_path, "ads", "r", 1, start_step=40, service=service.url)
    service.wait_for(lambda: bool(service.heartbeats))
    worker.close()
    project, run, document = service.heartbeats[0]
    assert (project, run, document["worker"], document["attempt"]) == ("ads", "r", 1, worker.key)
    assert document["last_step"] == 40
    worker.close()


def test_a_forked_child_is_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossguard.worker.BEAT_SECONDS", 3600.0)  # or it would write into what it let go
    worker = Worker(tmp_path, "ads", "r", 1)
    while worker._file is None or not heartbeats(tmp_path / "ads" / "r"):
        pass
    (there, told), (waits, end) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        # What a child does at its end must not end the parent's sign of life.
        worker.beat(99)
        worker.close()
        os.write(told, b"x")
        os.read(waits, 1)
        os._exit(0)
    try:
        os.read(there, 1)
        (beat,) = heartbeats(tmp_path / "ads" / "r")
        assert (beat.alive, beat.last_step) == (True, 0)
        worker._file.let_go()  # as the kernel does when the parent is killed
        (beat,) = heartbeats(tmp_path / "ads" / "r")
        assert not beat.alive, "the child holds no lock"
    finally:
        os.write(end, b"x")
        _, status = os.waitpid(child, 0)
        for descriptor in (there, told, waits, end):
            os.close(descriptor)
    assert status == 0
    worker._ending.set()
    worker._thread.join()


def test_a_new_worker_of_the_same_rank_takes_the_place(tmp_path: Path) -> None:
    old, new = HeartbeatFile(tmp_path, 3), HeartbeatFile(tmp_path, 3)
    new.write(Heartbeat("b" * 32, 3, 5, 1.0))
    old.write(Heartbeat("a" * 32, 3, 4, 1.0))
    old.close()
    assert [(beat.key, beat.last_step, beat.alive) for beat in heartbeats(tmp_path)] == [("b" * 32, 5, True)]
    (tmp_path / "workers" / "00004.heartbeat").write_bytes(b"{rotten")
    assert [beat.worker for beat in heartbeats(tmp_path)] == [3]
    new.close()


def test_the_rank_of_the_chief_is_no_worker(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank: must be 1 to 99999"):
        Worker(tmp_path, "ads", "r", 0)
