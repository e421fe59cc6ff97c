"""The service as a process: it starts with nothing set, says where it listens, and refuses with a sentence."""

import gc
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from chunk_trainer import chunks, frames
from services import Uvicorn

from lossguard.wire.chunk import peek
from lossguard_service.__main__ import settle
from lossguard_service.settings import Settings


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LOSSGUARD_")}
    return subprocess.Popen(
        [sys.executable, "-c", "from lossguard.cli.main import main; main()", "serve", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def address(process: subprocess.Popen[str]) -> str:
    """Where it listens, from its own words."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Lossguard listens on "):
            return line.split()[-1]
    raise AssertionError(f"it ended with {process.wait()}")


def test_it_starts_with_nothing_set_and_keeps_what_it_got_over_a_restart(tmp_path: Path) -> None:
    data = chunks(frames(1, 64))
    for chunk in data:
        told = tmp_path / "address"
        told.unlink(missing_ok=True)
        process = start(tmp_path, "--port", "0", "--address-file", str(told))
        try:
            url = address(process)
            assert told.read_text() == url + "\n"
            identity = peek(chunk)
            answer = httpx.put(
                f"{url}/v1/projects/video/runs/ranker/attempts/{identity.attempt}/chunks/{identity.index}",
                content=chunk,
                timeout=60,
            )
            assert answer.status_code == 200
            assert answer.json()["next_index"] == identity.index + 1
            assert httpx.get(f"{url}/readyz", timeout=60).text == "ready\n"
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
            assert process.stdout is not None
            process.stdout.close()
    assert (tmp_path / ".lossguard" / "lossguard.db").is_file()


def refusal(tmp_path: Path, *arguments: str) -> str:
    process = start(tmp_path, *arguments)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert "Traceback" not in output
    return output


def test_a_taken_port_is_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        output = refusal(tmp_path, "--port", str(taken.getsockname()[1]))
    assert "choose another with --port" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0", "--port", "0"], "no token is set"),
        (["--database", "mysql://somewhere/x"], "mysql is not supported"),
        (["--database", "nonsense"], "is no database URL"),
        (["--port", "70000"], "port:"),
        (["--database", "sqlite://"], "name a file"),
    ],
)
def test_what_cannot_start_says_what_to_change(tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in refusal(tmp_path, *arguments)


@pytest.fixture
def warm_loop() -> None:
    """libuv, where uvicorn finds it, makes one pipe for signals that lives as long as the process."""
    with suppress(ImportError):
        from uvloop import new_event_loop

        new_event_loop().close()


def test_a_hundred_frames_cross_a_real_socket_and_nothing_is_left_behind(
    sqlite_url: str, warm_loop: None, no_leaks: None
) -> None:
    with (
        Uvicorn(Settings(database=sqlite_url, port=0, log_level="warning")) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        for chunk in chunks(frames(1, 100)):
            identity = peek(chunk)
            path = f"/v1/projects/video/runs/ranker/attempts/{identity.attempt}/chunks/{identity.index}"
            assert client.put(path, content=chunk).status_code == 200
        assert client.get("/v1/projects/video/runs/ranker").json()["last_step"] == 100


def test_what_starting_has_made_is_left_out_of_later_collections() -> None:
    settle()
    try:
        assert gc.get_freeze_count() > 50_000
    finally:
        gc.unfreeze()
