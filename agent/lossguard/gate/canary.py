"""Lets the exported model answer rows that the user supplies, in a process of its own.

Guarantees. TensorFlow is loaded there and only there. The process has limits on time and memory, cannot write core
files and sees no accelerator; whatever it does, the outcome is a fact for the gate: an answer, or why there is none.
"""

import functools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from lossguard.gate.errors import GateError
from lossguard.wire.numbers import from_json_number

SECONDS: Final = 300.0
MEMORY_BYTES: Final = 32 << 30
"""Private memory, which the system counts when it is mapped: TensorFlow alone maps some gigabytes before it answers."""
_BAD_ROWS: Final = 2


class NoCanary(GateError):
    """The rows are not rows, or TensorFlow is not installed here; nothing is known about the model."""


def run_canary(
    artifact: str | Path, rows: str | Path, *, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES
) -> dict[str, Any]:
    """What the model answers, as the service wants it.

    Args:
        artifact: the exported folder or file.
        rows: an `.npz` or JSON file with values for each of the model's inputs.
        seconds: how long loading and answering may take.
        memory_bytes: how much memory it may have (RLIMIT_DATA); a model that needs more blocks.

    Raises:
        NoCanary: see there.
    """
    command = [sys.executable, "-m", "lossguard.keras.canary", os.fspath(artifact), os.fspath(rows)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    if not Path(rows).is_file():
        raise NoCanary(f"--canary: {rows} is not a file: write the rows there, one list of values for each input")
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            preexec_fn=functools.partial(_limit, memory_bytes),
        )
    except subprocess.TimeoutExpired:
        return _failed(f"it did not answer within {seconds:g} seconds")
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
    if "No module named" in last:
        raise NoCanary(f'--canary needs TensorFlow here ({last}): pip install "lossguard[tensorflow]"')
    if done.returncode == _BAD_ROWS:
        raise NoCanary(f"--canary: {last}")
    if done.returncode != 0:
        return _failed(last[:500] or f"its process ended with code {done.returncode}")
    try:
        document = json.loads(done.stdout.splitlines()[-1])
        answered = {"rows": int(document["rows"]), "nonfinite": int(document["nonfinite"])}
        return answered | {"spread": from_json_number(document["spread"])}
    except (ValueError, KeyError, IndexError, TypeError):
        return _failed("its process gave no answer that can be read")


def _failed(reason: str) -> dict[str, Any]:
    return {"rows": 0, "nonfinite": 0, "spread": 0.0, "error": reason}


def _limit(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Not the address space: what is mapped from files, libraries among it, does not fill the host.
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most == resource.RLIM_INFINITY or memory_bytes < most:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
