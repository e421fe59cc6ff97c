"""A trainer that steps is told of as long as its service answers, whatever becomes of its chunks."""

import errno
import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
from service_on_loopback import Answer, LoopbackService

from lossguard.journal.files import LocalFiles
from lossguard.journal.reader import AttemptReader
from lossguard.recorder import Recorder
from lossguard.sidecar import dispatcher
from lossguard.sidecar.client import Client
from lossguard.wire.frame import Frames, Schema

pytestmark = pytest.mark.usefixtures("no_leaks", "guard_raises")


def frame(step: int) -> Frames:
    return Frames.of(Schema(("loss",), ("a",), ("gradient_norm",)), [step], [[0.5]], np.ones((1, 1, 1), np.float32))


@pytest.mark.parametrize("answer", [Answer(429, headers={"retry-after": "600"}), Answer(500)], ids=["429", "500"])
def test_a_service_that_takes_no_chunks_hears_of_every_step(
    tmp_path: Path, service: LoopbackService, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    monkeypatch.setattr(dispatcher, "HEARTBEAT_SECONDS", 0.01)
    service.always = lambda identity: answer
    recorder = Recorder(tmp_path, "ads", "r", seal_frames=1)
    client = Client(service.url)
    ships = dispatcher.Dispatcher(
        lambda: [tmp_path / "ads" / "r"], client, workers=1, poll_seconds=0.01, uniform=lambda low, high: 600.0
    )
    ships.start()
    for step in (5, 6):
        recorder.record(frame(step))
        service.wait_for(lambda step=step: any(beat[2]["last_step"] == step for beat in service.heartbeats))  # type: ignore[misc]
    assert len(service.arrivals) == 1, "the chunk itself waits as long as it was asked to"
    recorder.close()
    service.heartbeats.clear()
    ships.stop()
    client.close()


def test_a_trainer_that_begins_after_its_sidecar_lives_though_its_chunks_are_not_taken(
    tmp_path: Path, service: LoopbackService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "HEARTBEAT_SECONDS", 0.01)
    service.always = lambda identity: Answer(500)
    looks, looked_and_found_nothing = itertools.count(), threading.Event()

    def find_runs() -> list[Path]:
        if next(looks) == 2:  # the one worker is back from its first turn
            looked_and_found_nothing.set()
        return [tmp_path / "ads" / "r"]

    client = Client(service.url)
    ships = dispatcher.Dispatcher(find_runs, client, workers=1, poll_seconds=0.01, uniform=lambda low, high: 600.0)
    ships.start()
    assert looked_and_found_nothing.wait(30.0)
    recorder = Recorder(tmp_path, "ads", "r", seal_frames=1)
    recorder.record(frame(5))
    service.wait_for(lambda: any(beat[2]["last_step"] == 5 for beat in service.heartbeats))
    recorder.close()
    ships.stop()
    client.close()


class _Full(LocalFiles):
    full = False

    def append(self, file: int, data: memoryview) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().append(file, data)


def test_a_trainer_on_a_full_disk_lives(tmp_path: Path) -> None:
    files = _Full()
    recorder = Recorder(tmp_path, "ads", "r", queue_bytes=1 << 10, files=files)
    recorder.record(frame(1))
    assert recorder.flush()
    reader = AttemptReader(tmp_path / "ads" / "r" / recorder.attempt)
    assert reader.newest_step() == 1
    files.full = True
    recorder.record(frame(2))
    assert not recorder.flush()
    for step in range(3, 200):
        recorder.record(frame(step))
    assert not recorder.flush()
    assert recorder.counters["dropped_disk_full"] > 0
    assert reader.newest_step() == 199
    (reader.folder / "lock").write_bytes(b"")
    assert reader.newest_step() is None, "a trainer of a version before tells none"
    files.full = False
    recorder.close()
    reader.close()
