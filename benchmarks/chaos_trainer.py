"""The trainer of `chaos.py`: records frames that anybody can compute again, and times what that cost its thread."""

import errno
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

LAYERS, STATS = 20, 9
STEP_SECONDS, SEAL_SECONDS = 0.01, 0.3
"""A chunk each so often: more would only be a backlog, for which the sidecar is given time in the end."""
SLOW_SECONDS = 0.05
CLOCK_JUMPS = (-86_400.0, -3.0, 3.0, 86_400.0)


def numbers(step: int) -> np.ndarray:
    """The stats of a step, which anybody can compute again."""
    return ((np.arange(LAYERS * STATS, dtype=np.float32) + step) % 1024).reshape(1, LAYERS, STATS)


def waits_for_a_core() -> float:
    """Seconds that this process's threads have been ready to run and had no core."""
    waited = 0
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError):  # a thread that has ended
            waited += int(Path(f"/proc/self/task/{task}/schedstat").read_text().split()[1])
    return waited / 1e9


class Delays:
    """Calls that took longer than `SLOW_SECONDS`: by the clock, and without the waits for a core."""

    def __init__(self) -> None:
        self.slow = self.ours = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Time what is done inside."""
        waited, before = waits_for_a_core(), time.perf_counter()
        yield
        took = time.perf_counter() - before
        if took > SLOW_SECONDS:
            self.slow += 1
            self.ours += took - (waits_for_a_core() - waited) > SLOW_SECONDS


def train(journal: Path, truth: Path, run: str, start: int, clock_offset: float, disk_full: Path) -> None:
    from lossguard.journal.files import LocalFiles
    from lossguard.recorder import Recorder
    from lossguard.wire.frame import Frames, Schema

    class Disk(LocalFiles):
        def append(self, file: int, data: memoryview) -> int:
            if disk_full.exists():
                raise OSError(errno.ENOSPC, "full")
            return super().append(file, data)

    jump = warp(clock_offset)
    signal.signal(signal.SIGUSR1, lambda *_: jump())
    schema = Schema(("loss",), tuple(f"layer{i}" for i in range(LAYERS)), tuple(f"stat{k}" for k in range(STATS)))
    recorder = Recorder(
        journal,
        "chaos",
        run,
        start_step=start,
        seal_frames=64,
        seal_seconds=SEAL_SECONDS,
        mantissa_bits=23,
        files=Disk(),
    )
    file = os.open(truth, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    truth.with_suffix(".pid").write_text(str(os.getpid()))  # from here on a SIGTERM is an end in good order
    step, told, calls, control = start, -1, Delays(), Delays()

    def write_down() -> None:
        told = [recorder.attempt, start, recorder.counters["last_sealed_step"], step]
        os.write(file, f"{json.dumps([*told, calls.slow, calls.ours, control.slow, control.ours])}\n".encode())

    while not ended.is_set():
        step += 1
        # Making the frame takes longer than handing it over, without us: what the machine itself does to a thread.
        with control.watch():
            frames = Frames.of(schema, [step], [[float(step)]], numbers(step))
        with calls.watch():
            recorder.record(frames)
        sealed = recorder.counters["last_sealed_step"]
        if sealed != told:
            told = sealed
            write_down()
        time.sleep(STEP_SECONDS)
    recorder.close()
    dropped = sum(count for name, count in recorder.counters.items() if name.startswith("dropped"))
    write_down()
    sys.exit(1 if dropped else 0)


def warp(offset: float) -> Callable[[], None]:
    """Set this process's wall clock wrong; returns what makes it jump once more."""
    real, offsets = time.time, [offset]
    time.time = lambda: real() + offsets[0]
    return lambda: offsets.__setitem__(0, random.choice(CLOCK_JUMPS))
