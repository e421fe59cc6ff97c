"""The recorder in real processes that end in every way a trainer can end."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lossguard.journal.layout import attempt_folders
from lossguard.journal.reader import AttemptReader, RunLock
from lossguard.wire.chunk import AttemptStop, Chunk, decode

PRELUDE = """
import os, signal, sys, threading
import numpy as np
from lossguard import recorder as recorder_module
from lossguard.recorder import Recorder
from lossguard.wire.frame import Frames, Schema
recorder_module.EXIT_SECONDS = 60.0  # a slow disk at the exit is no matter of these tests
schema = Schema(("loss",), tuple(f"layer{i}" for i in range(20)), ("g", "w"))
def frames(first, count):
    steps = np.arange(first, first + count)
    return Frames.of(schema, steps, np.zeros((count, 1)), np.ones((count, 20, 2), np.float32))
recorder = Recorder(sys.argv[1], "p", "r", seal_frames=10, seal_seconds=3600.0, service=(sys.argv + [None])[2])
"""


def trainer(script: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), str(folder), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sealed(folder: Path) -> tuple[list[Chunk], AttemptReader]:
    (attempt,) = attempt_folders(folder / "p" / "r")
    reader = AttemptReader(attempt)
    chunks = []
    while (record := reader.next()) is not None:
        chunks.append(decode(record.chunk))
        reader.acknowledge(record)
    reader.close()
    return chunks, reader


def steps_in(chunks: list[Chunk]) -> list[int]:
    return [int(step) for chunk in chunks for step in chunk.frames.steps]


def stop_reason(chunks: list[Chunk]) -> str | None:
    last = chunks[-1].events[-1:] if chunks else ()
    return last[0].reason if last and isinstance(last[0], AttemptStop) else None


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        ("recorder.record(frames(1, 7)); recorder.close()", 0, "finished"),
        ("recorder.record(frames(1, 7))", 0, "finished"),
        ("recorder.record(frames(1, 7)); sys.exit(3)", 3, "finished"),
        ("recorder.record(frames(1, 7)); raise RuntimeError('training broke')", 1, "failed"),
        ("recorder.record(frames(1, 7)); os.kill(os.getpid(), signal.SIGINT); signal.pause()", -2, "interrupted"),
    ],
    ids=["close", "no close", "exit", "exception", "ctrl-c"],
)
def test_every_orderly_end_seals_all_frames(tmp_path: Path, script: str, code: int, reason: str) -> None:
    process = trainer(script, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (code, 130 if code == -2 else code), errors
    chunks, reader = sealed(tmp_path)
    assert steps_in(chunks) == list(range(1, 8))
    assert stop_reason(chunks) == reason
    assert reader.remove_if_done()


def test_exit_does_not_wait_for_a_dead_service(tmp_path: Path) -> None:
    process = trainer("recorder.record(frames(1, 7))", tmp_path, "http://127.0.0.1:9")
    process.communicate(timeout=60)
    assert process.returncode == 0
    chunks, _ = sealed(tmp_path)
    assert stop_reason(chunks) == "finished"


def test_a_forked_child_records_nothing_and_takes_nothing_with_it(tmp_path: Path) -> None:
    script = """
    recorder.record(frames(1, 7))
    child = os.fork()
    if child == 0:
        assert recorder.record(frames(8, 1)) is False
        assert recorder.flush(0.1) is False
        recorder.close()
        sys.exit(0)  # runs the child's exit handlers
    assert os.waitpid(child, 0)[1] == 0
    assert recorder.record(frames(8, 1))
    """
    process = trainer(script, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    chunks, _ = sealed(tmp_path)
    assert steps_in(chunks) == list(range(1, 9))


def test_a_child_that_outlives_its_parent_keeps_neither_the_attempt_nor_the_run(tmp_path: Path) -> None:
    script = """
    assert recorder.flush()
    while recorder.counters["upload_retries"] == 0:
        pass
    if os.fork() == 0:
        print("child", flush=True)
        sys.stdin.read()
        os._exit(0)
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    """
    process = trainer(script, tmp_path, "http://127.0.0.1:9")
    assert process.stdout is not None
    assert process.stdout.readline() == "child\n"
    process.wait(60)
    (attempt,) = attempt_folders(tmp_path / "p" / "r")
    reader = AttemptReader(attempt)
    assert not reader.alive()
    reader.close()
    lock = RunLock(tmp_path / "p" / "r")
    assert lock.acquire()
    lock.release()
    process.communicate()


def test_a_living_trainer_keeps_its_attempt(tmp_path: Path) -> None:
    process = trainer("recorder.flush(); print('ready', flush=True); sys.stdin.read()", tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    (attempt,) = attempt_folders(tmp_path / "p" / "r")
    reader = AttemptReader(attempt)
    assert reader.alive()
    assert not reader.remove_if_done()
    process.communicate("", timeout=60)
    assert not reader.alive()
    reader.close()


@pytest.mark.parametrize("seed", range(8))
def test_what_was_sealed_survives_kill_9(tmp_path: Path, seed: int) -> None:
    script = """
    step = 1
    while True:
        if recorder.record(frames(step, 3)):
            step += 3
        if recorder.counters["frames_sealed"] > 0:
            print(recorder.counters["frames_sealed"], flush=True)
    """
    process = trainer(script, tmp_path)
    assert process.stdout is not None
    seen = 0
    for _ in range(1 + 37 * seed):
        seen = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    rest = process.communicate()[0].split()
    # The last line may be cut by the kill.
    seen = max([seen, *map(int, rest[:-1])])
    chunks, reader = sealed(tmp_path)
    steps = steps_in(chunks)
    assert len(steps) >= seen, "the trainer was told that these were sealed"
    assert steps == list(range(1, len(steps) + 1))
    assert [chunk.id.index for chunk in chunks] == list(range(len(chunks)))
    assert reader.cut.tails <= 1
    assert stop_reason(chunks) is None
    assert reader.remove_if_done()


def test_importing_lossguard_loads_nothing_heavy() -> None:
    heavy = {"numpy", "httpx", "keras", "tensorflow", "zstandard"}
    script = f"import sys, lossguard; print(sorted(set({sorted(heavy)}) & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


def test_recording_without_a_service_loads_no_http_client(tmp_path: Path) -> None:
    script = "assert not {'lossguard.sidecar', 'typer', 'keras', 'tensorflow'} & set(sys.modules); recorder.close()"
    process = trainer(script, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def test_the_environment_is_left_alone(tmp_path: Path) -> None:
    script = "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL; assert threading.active_count() == 2"
    process = trainer(script, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert os.listdir(tmp_path) == ["p"]


def test_what_was_to_be_sealed_needs_neither_a_full_chunk_nor_its_time(tmp_path: Path) -> None:
    script = """
    recorder.record(frames(1, 3))
    recorder.seal()
    with recorder._flushed:
        assert recorder._flushed.wait_for(lambda: recorder.counters["frames_sealed"] == 3, 60.0)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    assert trainer(script, tmp_path).wait(120) == -signal.SIGKILL
    assert steps_in(sealed(tmp_path)[0]) == [1, 2, 3]
