"""The uploader thread inside the trainer, against a service on loopback."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from service_on_loopback import Answer, LoopbackService

import lossguard
from lossguard.journal.reader import RunLock
from lossguard.recorder import Recorder
from lossguard.sidecar.client import Client
from lossguard.sidecar.dispatcher import Dispatcher
from lossguard.sidecar.uploader import Uploader
from lossguard.wire.frame import Frames, Schema

pytestmark = pytest.mark.usefixtures("no_leaks", "guard_raises")
SCHEMA = Schema(("loss",), ("a", "b"), ("gradient_norm",))


def frames(first: int, count: int) -> Frames:
    steps = np.arange(first, first + count)
    return Frames.of(SCHEMA, steps, steps[:, None] * 0.5, np.ones((count, 2, 1), np.float32))


def steps_of(service: LoopbackService, run: str) -> list[int]:
    (chunks,) = service.chunks(run).values()
    return [int(step) for chunk in chunks for step in chunk.frames.steps]


def wait_until_let_go(folder: Path) -> None:
    """An uploader's thread may be on its last lines, and who ships next would leave the run to it."""
    next_shipper = RunLock(folder)
    while not next_shipper.acquire():
        pass
    next_shipper.release()


def test_everything_recorded_arrives_once_and_in_order(tmp_path: Path, service: LoopbackService) -> None:
    recorder = Recorder(tmp_path, "ads", "r", service=service.url, seal_frames=10, seal_seconds=0.05)
    for first in range(1, 101, 5):
        assert recorder.record(frames(first, 5))
    recorder.close()
    assert steps_of(service, "r") == list(range(1, 101))
    assert [identity[3] for identity in service.arrivals] == list(range(len(service.arrivals)))
    assert recorder.counters["chunks_shipped"] == recorder.counters["chunks_sealed"] == len(service.arrivals)
    assert not list(tmp_path.rglob("*.journal")), "acknowledged and closed, so nothing is left"


def test_a_run_logs_from_any_framework_and_ships(tmp_path: Path, service: LoopbackService) -> None:
    with lossguard.Run("ads", "r", journal=tmp_path, service=service.url, token="secret") as run:
        assert run.log(1, {"loss": 0.7}, {"dense": {"gradient_norm": 1.0}})
        assert run.log(2, {"loss": float("nan")})
        assert run.checkpoint("ckpt-2")
    assert steps_of(service, "r") == [1, 2]
    assert service.authorizations == {"Bearer secret"}


def test_a_dead_service_delays_no_close_and_the_next_attempt_ships_the_rest(
    tmp_path: Path, service: LoopbackService
) -> None:
    recorder = Recorder(tmp_path, "ads", "r", service="http://127.0.0.1:9", seal_seconds=0.05)
    recorder.record(frames(1, 3))
    recorder.close()
    assert recorder.counters["chunks_shipped"] == 0
    wait_until_let_go(tmp_path / "ads" / "r")
    second = Recorder(tmp_path, "ads", "r", service=service.url, start_step=3)
    second.record(frames(4, 2))
    second.close()
    assert [identity[2] for identity in service.arrivals].index(second.attempt) >= 2, "the first attempt comes first"
    chunks = service.chunks("r")
    assert [int(s) for chunk in chunks[recorder.attempt] for s in chunk.frames.steps] == [1, 2, 3]
    assert [int(s) for chunk in chunks[second.attempt] for s in chunk.frames.steps] == [4, 5]


def test_an_uploader_that_was_left_waiting_for_an_answer_lets_the_run_go_when_it_has_it(
    tmp_path: Path, service: LoopbackService
) -> None:
    recorder = Recorder(tmp_path, "ads", "r")
    recorder.record(frames(1, 3))
    recorder.close()
    answers: list[bool] = []

    def when_told(identity: tuple[str, str, str, int]) -> None:
        service.changed.notify_all()
        assert service.changed.wait_for(lambda: answers, 60.0)

    service.always = when_told
    uploader = Uploader(tmp_path / "ads" / "r", service.url)
    uploader.start()
    service.wait_for(lambda: bool(service.arrivals))
    assert not uploader.close(timeout_seconds=0.0)
    next_shipper = RunLock(tmp_path / "ads" / "r")
    assert not next_shipper.acquire(), "the answer may still come"
    with service.changed:
        answers.append(True)
        service.changed.notify_all()
    wait_until_let_go(tmp_path / "ads" / "r")


def test_a_busy_service_is_asked_again(
    tmp_path: Path, service: LoopbackService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lossguard.sidecar.backoff.FIRST_SECONDS", 0.01)
    service.next_answers.extend(
        [Answer(500), Answer(429, headers={"retry-after": "0"}), Answer(200, b"<html>welcome</html>"), Answer(200)]
    )
    recorder = Recorder(tmp_path, "ads", "r", service=service.url, seal_seconds=0.05)
    recorder.record(frames(1, 3))
    recorder.flush()
    service.wait_for(lambda: len(service.stored) >= 1)
    recorder.close()
    assert steps_of(service, "r") == [1, 2, 3]
    assert recorder.counters["upload_retries"] == 4


def test_a_service_that_is_back_at_the_end_gets_the_rest(
    tmp_path: Path, service: LoopbackService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lossguard.sidecar.backoff.FIRST_SECONDS", 3600.0)
    service.next_answers.append(Answer(503, headers={"retry-after": "600"}))
    recorder = Recorder(tmp_path, "ads", "r", service=service.url, seal_seconds=0.05)
    recorder.record(frames(1, 3))
    recorder.flush()
    service.wait_for(lambda: not service.next_answers)
    recorder.close()
    assert steps_of(service, "r") == [1, 2, 3]


def test_a_service_that_takes_every_other_chunk_is_asked_again_soon(
    tmp_path: Path, service: LoopbackService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lossguard.sidecar.backoff.FIRST_SECONDS", 0.001)
    recorder = Recorder(tmp_path, "ads", "r", seal_frames=1, seal_seconds=0.05)
    for step in range(1, 13):
        recorder.record(frames(step, 1))
    recorder.close()
    asked: set[tuple[str, str, str, int]] = set()

    def every_first_time(identity: tuple[str, str, str, int]) -> Answer | None:
        first = identity not in asked
        asked.add(identity)
        return Answer(500) if first else None

    service.always = every_first_time
    waits: list[float] = []

    def drawn(low: float, high: float) -> float:
        waits.append(high)
        return low

    client = Client(service.url)
    dispatcher = Dispatcher(lambda: [tmp_path / "ads" / "r"], client, workers=1, poll_seconds=0.01, uniform=drawn)
    dispatcher.start()
    service.wait_for(lambda: len(service.stored) >= recorder.counters["chunks_sealed"])
    dispatcher.stop()
    client.close()
    assert steps_of(service, "r") == list(range(1, 13))
    assert set(waits) == {0.001}, "failures in a row begin anew with every chunk that is taken"


def test_a_finished_run_costs_next_to_nothing_and_its_next_attempt_is_found_at_once(
    tmp_path: Path, service: LoopbackService
) -> None:
    folder = tmp_path / "ads" / "r"

    def attempt(first: int) -> int:
        recorder = Recorder(tmp_path, "ads", "r", start_step=first - 1)
        recorder.record(frames(first, 3))
        recorder.close()
        return recorder.counters["chunks_sealed"]

    def wait_until_quiet() -> None:
        service.wait_for(lambda: len(service.stored) == chunks)
        while list(folder.glob("?" * 32)):
            pass
        os.utime(folder, (1e9, 1e9))  # it is quiet for long
        while ships._runs[folder].empty_since != 10**18:
            pass

    chunks = attempt(1)
    client = Client(service.url)
    ships = Dispatcher(lambda: [folder], client, workers=2, poll_seconds=0.01)
    ships.start()
    wait_until_quiet()
    chunks += attempt(4)
    wait_until_quiet()  # or its shipper would be at work in the folder that is deleted
    shutil.rmtree(folder)
    ships._runs[folder].due = 0.0
    assert ships.drain(30.0).complete, "a run that somebody deleted is no failure"
    assert ships.status()[0].failure is None
    ships.stop()
    client.close()
