"""The peers of `benchmarks/ingest.py`: each takes the same numbers and says how many a CPU-second of all its processes.

- narrow rows: (run, step, layer, stat, value), a commit a chunk, by executemany into SQLite (durable), by COPY into
  PostgreSQL. No HTTP, no detectors, which flatters them.
- Prometheus and VictoriaMetrics: the remote-write receiver, 64 samples a series and request. The request is laid out by
  NumPy and its snappy holds literals only, which costs next to nothing; no client that anybody uses is as cheap. No
  detectors. VictoriaMetrics also by its import of JSON lines, which a client in Python can make.
- MLflow: its tracking server on SQLite, its own client, `log_batch` with 1,000 metrics a call.
"""

import asyncio
import json
import os
import socket
import sqlite3
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import numpy as np

from lossguard.wire.frame import Frames

Result = dict[str, float]
REMOTE_WRITE = {
    "content-type": "application/x-protobuf", "content-encoding": "snappy",
    "x-prometheus-remote-write-version": "0.1.0",
}  # fmt: skip


def cpu(pid: int) -> float:
    """CPU seconds of a process and all below it, to the microsecond: by the clock of each process."""
    total = 0.0
    pids = [pid]
    while pids:
        one = pids.pop()
        try:
            # Linux' number of another process's CPU clock, as `clock_getcpuclockid` makes it.
            total += time.clock_gettime(~one << 3 | 2)
            for task in Path(f"/proc/{one}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
        except OSError:  # it has ended
            continue
    return total


def rows(block: Frames) -> Iterator[tuple[int, int, int, int, float]]:
    """The block as narrow rows."""
    for t, step in enumerate(block.steps.tolist()):
        for n, layer in enumerate(block.stats[t].tolist()):
            for k, value in enumerate(layer):
                yield 1, step, n, k, value


def narrow_sqlite(block: Frames, size: int, folder: Path) -> dict[str, float]:
    """Narrow rows in SQLite, a commit a chunk."""
    connection = sqlite3.connect(folder / f"narrow-{os.urandom(4).hex()}.db", isolation_level=None)
    connection.executescript(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE points (run INTEGER, layer INTEGER,"
        " stat INTEGER, step INTEGER, value REAL, PRIMARY KEY (run, layer, stat, step)) WITHOUT ROWID;"
    )
    before = time.process_time()
    for start in range(0, len(block), size):
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO points (run, step, layer, stat, value) VALUES (?, ?, ?, ?, ?)",
            rows(block[start : start + size]),
        )
        connection.execute("COMMIT")
    used = time.process_time() - before
    connection.close()
    return {"points_per_cpu_second": block.stats.size / used}


def narrow_postgres(block: Frames, size: int, url: str, others: Callable[[], float]) -> dict[str, float]:
    """Narrow rows in PostgreSQL by COPY, a commit a chunk."""
    import asyncpg

    async def go() -> float:
        connection = await asyncpg.connect(url)
        await connection.execute("DROP TABLE IF EXISTS points")
        await connection.execute(
            "CREATE TABLE points (run int, step int, layer int, stat int, value float4,"
            " PRIMARY KEY (run, layer, stat, step))"
        )
        before = time.process_time() + others()
        for start in range(0, len(block), size):
            await connection.copy_records_to_table("points", records=rows(block[start : start + size]))
        used = time.process_time() + others() - before
        await connection.close()
        return used

    return {"points_per_cpu_second": block.stats.size / asyncio.run(go())}


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, data: bytes) -> bytes:
    """A field of bytes as protobuf writes it."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def write_requests(block: Frames, size: int, run: str, first_ms: int) -> Iterator[bytes]:
    """The block as remote-write requests of `size` samples a series, 100 ms between steps."""
    names = block.schema
    labels = [
        b"".join(
            field(1, field(1, name) + field(2, value.encode()))
            for name, value in ((b"__name__", "lossguard"), (b"layer", layer), (b"run", run), (b"stat", stat))
        )
        for layer in names.layers
        for stat in names.stats
    ]
    for start in range(0, len(block), size):
        part = block[start : start + size]
        times = [varint(first_ms + 100 * (start + t)) for t in range(len(part))]
        # Sample {1: double, 2: int64}: 0x12, its length, 0x09, 8 bytes, 0x10, the varint (6 bytes until the year 2109).
        samples = np.empty((len(labels), len(part), 18), np.uint8)
        samples[:, :, :3], samples[:, :, 11] = (0x12, 16, 0x09), 0x10
        values = part.stats.transpose(1, 2, 0).reshape(len(labels), -1).astype("<f8")
        samples[:, :, 3:11] = values[:, :, None].view(np.uint8)
        samples[:, :, 12:] = np.frombuffer(b"".join(times), np.uint8).reshape(-1, 6)
        head = 18 * len(part)
        yield snappy(
            b"".join(
                b"\x0a" + varint(len(label) + head) + label + row.tobytes()
                for label, row in zip(labels, samples, strict=True)
            )
        )


def import_requests(block: Frames, size: int, run: str, first_ms: int) -> Iterator[bytes]:
    """The block as requests to VictoriaMetrics' import: a line of JSON a series, `size` samples in it."""
    names = block.schema
    labels = [
        json.dumps({"__name__": "lossguard", "run": run, "layer": layer, "stat": stat})
        for layer in names.layers
        for stat in names.stats
    ]
    for start in range(0, len(block), size):
        part = block[start : start + size]
        times = [first_ms + 100 * (start + t) for t in range(len(part))]
        rows = part.stats.transpose(1, 2, 0).reshape(len(labels), -1).tolist()
        pairs = zip(labels, rows, strict=True)
        yield "".join(f'{{"metric":{label},"values":{row},"timestamps":{times}}}\n' for label, row in pairs).encode()


def snappy(data: bytes) -> bytes:
    """A snappy block of literals: nothing is sought, so nothing is made shorter."""
    parts = [varint(len(data))]
    for start in range(0, len(data), 65_536):
        piece = data[start : start + 65_536]
        parts += [b"\xf4", struct.pack("<H", len(piece) - 1), piece]
    return b"".join(parts)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def started(command: list[str], port: int, path: str, folder: Path) -> Iterator[int]:
    """A server that answers 200 at `path`; its pid."""
    with (folder / "peer.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        until = time.monotonic() + 180
        while True:
            try:
                connection = HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    break
            except OSError:
                pass
            finally:
                connection.close()
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{command[0]} does not start: {(folder / 'peer.log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


def prometheus(block: Frames, size: int, folder: Path, program: str) -> Result:
    """Remote-write into a Prometheus of its own."""
    port = free_port()
    (folder / "prometheus.yml").write_text("global: {}\n")
    command = [
        program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/prom-{os.urandom(4).hex()}",
        f"--web.listen-address=127.0.0.1:{port}", "--web.enable-remote-write-receiver", "--log.level=error",
    ]  # fmt: skip
    with started(command, port, "/-/ready", folder) as pid:
        bodies = write_requests(block, size, "run", int(1000 * time.time()) - 100 * len(block))
        return send(bodies, block[size:].stats.size, port, pid)


def victoria_metrics(block: Frames, size: int, folder: Path, program: str, *, lines: bool = False) -> Result:
    """Remote-write, or lines of JSON to its import, into a single-node VictoriaMetrics of its own."""
    port = free_port()
    command = [
        program, f"-storageDataPath={folder}/victoria-{os.urandom(4).hex()}", f"-httpListenAddr=127.0.0.1:{port}",
        "-retentionPeriod=10y", "-loggerLevel=ERROR",
    ]  # fmt: skip
    first = int(1000 * time.time()) - 100 * len(block)
    with started(command, port, "/health", folder) as pid:
        if lines:
            return send(
                import_requests(block, size, "run", first), block[size:].stats.size, port, pid, "/api/v1/import"
            )
        return send(write_requests(block, size, "run", first), block[size:].stats.size, port, pid)


def send(bodies: Iterator[bytes], points: int, port: int, pid: int, path: str = "/api/v1/write") -> Result:
    """Send all; the first request, which makes all series, is not counted, as our run's first chunks are not."""
    headers = {} if path.endswith("import") else REMOTE_WRITE
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    before = 0.0
    for place, body in enumerate(bodies):
        if place == 1:
            before = cpu(pid) + time.process_time()
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        said = answer.read()
        if answer.status not in (200, 204):
            raise RuntimeError(f"the receiver answers {answer.status}: {said[:500]!r}")
    used = cpu(pid) + time.process_time() - before
    connection.close()
    return {"points_per_cpu_second": points / used}


def settle(pid: int, most_seconds: float = 60.0) -> None:
    """Until the server idles: MLflow answers long before its helper processes have started, 15 CPU-seconds of them."""
    until, last = time.monotonic() + most_seconds, cpu(pid)
    while time.monotonic() < until:
        time.sleep(1.0)
        now = cpu(pid)
        if now - last < 0.03:
            return
        last = now


MLFLOW_CLIENT = """
import os, sys, time
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric
client = MlflowClient(sys.argv[1])
values = np.load(sys.argv[2])
run = client.create_run(client.create_experiment("e" + os.urandom(4).hex())).info.run_id
client.log_metric(run, "warm", 1.0)
before = time.process_time()
for step, row in enumerate(values.tolist(), 1):
    named = [(f"layer{n}/stat{k}", value) for n, layer in enumerate(row) for k, value in enumerate(layer)]
    metrics = [Metric(name, value, 1700000000000 + step, step) for name, value in named]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run, metrics[start : start + 1000])
print(time.process_time() - before)
"""


def mlflow(block: Frames, folder: Path, python: str) -> Result:
    """`log_batch` into a tracking server of its own; `python` is one that has MLflow."""
    port = free_port()
    store = f"sqlite:///{folder}/mlflow-{os.urandom(4).hex()}.db"
    command = [
        python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", store, "--default-artifact-root", str(folder),
    ]  # fmt: skip
    values = folder / "mlflow.npy"
    np.save(values, block.stats)
    with started(command, port, "/health", folder) as pid:
        settle(pid)
        before = cpu(pid)
        arguments = [python, "-c", MLFLOW_CLIENT, f"http://127.0.0.1:{port}", str(values)]
        client = float(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split()[-1])
        used = cpu(pid) - before + client
    return {"points_per_cpu_second": block.stats.size / used}
