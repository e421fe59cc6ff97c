"""The OpenAPI document against the running service: schemathesis tries to break every operation (fixed seed)."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from chunk_trainer import chunks, frames
from pydantic import SecretStr
from services import Uvicorn

from lossguard.wire.chunk import peek
from lossguard_service.settings import Settings

TOKEN = "f" * 64
HOOKS = """
import schemathesis

# A chunk is bytes; the document says so, and random ones are refused with 422.
@schemathesis.serializer("application/vnd.lossguard.chunk")
def chunk(ctx, value):
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
"""


def test_schemathesis_finds_nothing(sqlite_url: str, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason='pip install "lossguard[dev]"')
    (tmp_path / "hooks.py").write_text(HOOKS)
    # With a token from the start: the first one that is made would lock out whoever comes without.
    header = {"authorization": f"Bearer {TOKEN}"}
    with Uvicorn(Settings(database=sqlite_url, port=0, log_level="warning", admin_token=SecretStr(TOKEN))) as server:
        for chunk in chunks(frames(1, 64), project="0", run="0"):
            identity = peek(chunk)
            path = f"/v1/projects/0/runs/0/attempts/{identity.attempt}/chunks/{identity.index}"
            assert httpx.put(server.url + path, content=chunk, headers=header, timeout=60).status_code == 200
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
        # Left out: "valid data must be accepted". Rules across fields (name, or layer and stat) are beyond JSON Schema.
        command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "4", "--seed", "1"]
        command += ["--exclude-checks", "positive_data_acceptance", "--no-color"]
        command += ["--header", f"Authorization: Bearer {TOKEN}"]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = process.communicate(timeout=200)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            output, _ = process.communicate()
    assert process.returncode == 0, output
    assert re.search(r"\b(\d+) generated, \1 passed", output), output
