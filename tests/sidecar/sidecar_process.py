"""`lossguard sidecar` as its own process, and journals for it."""

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from service_on_loopback import LoopbackService

from lossguard.recorder import Recorder
from lossguard.wire.frame import Frames, Schema

SCHEMA = Schema(("loss",), ("a", "b"), ("gradient_norm",))


def frames(first: int, count: int) -> Frames:
    steps = np.arange(first, first + count)
    return Frames.of(SCHEMA, steps, steps[:, None] * 0.5, np.ones((count, 2, 1), np.float32))


def record(root: Path, run: str, first: int, count: int, *, close: bool = True, **options: int) -> Recorder:
    recorder = Recorder(root, "ads", run, start_step=first - 1, seal_frames=5, seal_seconds=3600.0, **options)  # type: ignore[arg-type]
    for step in range(first, first + count):
        assert recorder.record(frames(step, 1))
    assert recorder.flush()
    if close:
        recorder.close()
    return recorder


def sidecar(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from lossguard.cli.main import main; main()", "sidecar", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def once(*arguments: object) -> tuple[int, str]:
    process = sidecar(*arguments, "--once")
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def steps_of(service: LoopbackService, run: str) -> list[int]:
    return [int(s) for chunks in service.chunks(run).values() for chunk in chunks for s in chunk.frames.steps]


def read(url: str, host: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={} if host is None else {"host": host})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
