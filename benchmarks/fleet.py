"""Two thousand runs against two replicas over one PostgreSQL: how many runs a core takes, how long they wait, memory.

    python benchmarks/fleet.py [--runs 2000] [--seconds 10] [--bytes database folder s3] [--json FILE]

A quarter of the runs each has 50 or 200 layers (x 12 stats) and sends 64 or 256 steps a chunk; all of them are known to
the replicas before anything is measured. Then each quarter in turn sends for `--seconds` at the pace of all runs at one
step a second (2,000 runs of 64 steps a chunk: 31 chunks a second), from chunks that are encoded beforehand, so that
the wait is the service's. A run stays with one replica, as a sidecar's connection does; the last row moves each chunk
to the other one. CPU by process: both replicas, PostgreSQL, the client (encoding apart). Runs a core is the chunk's
steps over the CPU seconds that replicas and PostgreSQL spend on it, detectors on. Ends by itself; some five minutes.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ingest import frames
from ingest_peers import cpu
from lossguard.sidecar.client import Accepted, Client
from lossguard.wire.chunk import ChunkId, encode
from processes import below, memory, postgres, service
from soak import chunk_of

SENDERS = 8
CLASSES = ((50, 64), (200, 64), (50, 256), (200, 256))
STATS = 12
HEADS = (
    "layers", "steps a chunk", "chunks", "pace a second", "service ms", "PostgreSQL ms", "client ms", "encoding ms",
    "p50 ms", "p95 ms", "p99 ms", "runs a core", "M points a CPU-second", "replica MB", "PostgreSQL MB",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is up.

    Attributes:
        urls, pids: of the replicas.
        postgres: pid of PostgreSQL.
    """

    urls: Sequence[str]
    pids: Sequence[int]
    postgres: int

    def used(self) -> tuple[float, float, float]:
        """CPU seconds of the replicas, of PostgreSQL and of this process."""
        return sum(map(cpu, self.pids)), cpu(self.postgres), sum(os.times()[:2])


@contextmanager
def fleet(database: str, pid: int, bytes_url: str | None) -> Iterator[Fleet]:
    """Two replicas."""
    options = [] if bytes_url is None else ["--bytes-url", bytes_url]
    with ExitStack() as stack:
        found = [stack.enter_context(service(database, "--connections", "8", *options)) for _ in range(2)]
        yield Fleet([url for url, _ in found], [one for _, one in found], pid)


def send(up: Fleet, loads: Sequence[tuple[int, ChunkId, bytes]], pace: float) -> list[float]:
    """Send (replica, identity, bytes) at so many a second; returns how long each waited, in seconds."""
    waits, turn, lock, start = [0.0] * len(loads), iter(range(len(loads))), threading.Lock(), time.monotonic()
    failures: list[str] = []

    def work() -> None:
        clients = [Client(url) for url in up.urls]
        try:
            while True:
                with lock:
                    number = next(turn, None)
                if number is None or failures:
                    return
                due = start + number / pace
                time.sleep(max(0.0, due - time.monotonic()))
                replica, identity, data = loads[number]
                begun = time.monotonic()
                outcome = clients[replica].put_chunk(identity, data)
                waits[number] = time.monotonic() - begun
                if not isinstance(outcome, Accepted):
                    failures.append(str(outcome))
        finally:
            for client in clients:
                client.close()

    threads = [threading.Thread(target=work) for _ in range(SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(failures[0])
    return waits


def measure(up: Fleet, options: argparse.Namespace) -> list[dict[str, float]]:
    """Open all runs, then each quarter by itself."""
    blocks = {layers: frames(512, layers, STATS) for layers in {layers for layers, _ in CLASSES}}
    of = {kind: range(n, options.runs, len(CLASSES)) for n, kind in enumerate(CLASSES)}
    begun = time.monotonic()
    opening = []
    for (layers, _), mine in of.items():
        for number in mine:
            chunk = chunk_of(blocks[layers], number, 0, 4)
            opening.append((number // len(CLASSES) % 2, chunk.id, encode(chunk)))
    send(up, opening, 1e9)
    print(f"{options.runs} runs opened in {time.monotonic() - begun:.0f} s", flush=True)
    print(f"\n| {' | '.join(HEADS)} |\n{'|---' * len(HEADS)}|")
    rows, index = [], dict.fromkeys(range(options.runs), 1)
    for kind, moves in [*((kind, False) for kind in CLASSES), (CLASSES[1], True)]:
        layers, steps = kind
        pace = options.runs / steps
        count = max(1, round(options.seconds * pace))
        before = sum(os.times()[:2])
        loads = []
        for turn in range(count):
            number = of[kind][turn % len(of[kind])]
            chunk = chunk_of(blocks[layers], number, index[number], steps)
            replica = number // len(CLASSES) % 2
            loads.append((index[number] % 2 if moves else replica, chunk.id, encode(chunk)))
            index[number] += 1
        encoding = sum(os.times()[:2]) - before
        start = up.used()
        waits = sorted(send(up, loads, pace))
        took = [1e3 * (b - a) / count for a, b in zip(start, up.used(), strict=True)]
        at = [1e3 * waits[min(count - 1, int(count * q))] for q in (0.5, 0.95, 0.99)]
        cost = (took[0] + took[1]) / 1e3
        values = (
            layers, steps, count, pace, *took, 1e3 * encoding / count, *at, steps / cost,
            steps * layers * STATS / cost / 1e6, statistics.mean(map(memory, up.pids)),
            sum(memory(pid, "Pss") for pid in below(up.postgres)),
        )  # fmt: skip
        rows.append({"moves": float(moves), **dict(zip(HEADS, values, strict=True))})
        cells = [f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}" for value in values]
        print(f"| {cells[0]}{', moving' if moves else ''} | {' | '.join(cells[1:])} |", flush=True)
    return rows


def sizes(url: str, folder: Path | None) -> str:
    """What lies where at the end."""
    import asyncio

    import asyncpg

    async def ask() -> tuple[int, int, list[tuple[str, int]]]:
        connection = await asyncpg.connect(url)
        try:
            size = await connection.fetchval("SELECT pg_database_size(current_database())")
            rows = await connection.fetchval("SELECT count(*) FROM chunks")
            tables = await connection.fetch(
                "SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relkind = 'r' ORDER BY 2 DESC LIMIT 40"
            )
            ours = ("runs", "attempts", "chunks", "chunk_bytes", "schemas", "detector_states", "incidents")
            return int(size), int(rows), [(name, int(size)) for name, size in tables if name in ours]
        finally:
            await connection.close()

    total, rows, tables = asyncio.run(ask())
    text = f"database {total / 1e6:.0f} MB, {rows} chunks; " + ", ".join(f"{n} {b / 1e6:.1f}" for n, b in tables)
    if folder is not None:
        found = [one.stat().st_size for one in folder.rglob("*") if one.is_file()]
        text += f", {len(found)} objects of {sum(found) / 1e6:.0f} MB"
    return text


def main() -> None:
    """Read the arguments; a table for each place of the bytes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--bytes", nargs="+", choices=("database", "folder", "s3"), default=["database", "folder"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {}
    for place in options.bytes:
        with ExitStack() as stack:
            url, pid = stack.enter_context(postgres())
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            bytes_url = None if place == "database" else f"file://{folder}"
            if place == "s3":
                bytes_url = stack.enter_context(s3())
            print(f"\nbytes in {place}, load {os.getloadavg()[0]:.1f}")
            up = stack.enter_context(fleet(url, pid, bytes_url))
            found[place] = measure(up, options)
            print(f"\n{sizes(url, folder if place == 'folder' else None)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


@contextmanager
def s3() -> Iterator[str]:
    """moto's server, in this process: its CPU counts as the client's."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/lossguard", method="PUT"), timeout=30).close()
    try:
        yield "s3://lossguard/fleet"
    finally:
        server.stop()


if __name__ == "__main__":
    main()
