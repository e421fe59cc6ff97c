"""Reads of a long run after compaction: one series in full, and a plot of it over HTTP.

    python benchmarks/reads.py [--steps 1000000] [--layers 4] [--stats 12] [--rounds 5] [--database URL] [--bytes URL]

The run's segments are written as compaction writes them, without the way there through chunks. A read of one series
touches one array of each segment, so that the number of layers makes little difference to it; a plot of all layers'
maximum reads the pyramid of all of them. The stats are lossless, twice the bytes of the agent's default of 10 bits.
Wall and CPU milliseconds of this process. The state: all was written a moment ago, nothing has analyzed the tables (no
ANALYZE, perhaps no autovacuum yet), the file system's cache is warm. "First" is the first read of its kind on a new
connection; the medians are of `--rounds` reads after `SETTLED` others, as PostgreSQL plans each statement anew five
times on a connection and then, mostly, for all values at once: five rounds without these measured the one or the other.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ingest import frames
from lossguard.wire.frame import Frames
from lossguard_service.app import create_app
from lossguard_service.settings import Settings
from lossguard_service.store import chunks, compact, layout, pyramid, record, schema, segments, series
from lossguard_service.store.bytes import run_folder
from lossguard_service.store.database import Database

CHUNK_FRAMES = 64
SETTLED = 7


def moved(block: Frames, by: int) -> Frames:
    """The block some steps later."""
    return Frames.of(block.schema, block.steps + by, block.scalars, block.stats, times=block.times + 0.1 * by)


async def fill(database: Database, block: Frames, steps: int) -> int:
    """Segments until step `steps`; returns the run's id."""
    edges = np.arange(0, len(block), CHUNK_FRAMES)
    per = len(edges)

    def opened(connection: Connection) -> int:
        run = record.lock_or_open_run(connection, "bench", "long", 1.7e9)
        record.open_attempt(connection, run.id, 1, "a" * 32)
        connection.execute(sa.update(schema.attempts).values(start_step=0, next_index=per * (steps // len(block))))
        record.update_run(connection, run.id, {"attempt": 1, "first_step": 1, "last_step": steps})
        chunks.add_schema(connection, run.id, 1, block.schema)
        return run.id

    run_id, folder = await database.write(opened), run_folder("bench", "long")
    for number in range(steps // len(block)):
        part = moved(block, number * len(block))
        key = {"run_id": run_id, "attempt": 1, "first_index": number * per}
        head = key | {
            "next_index": (number + 1) * per,
            "first_step": int(part.steps[0]),
            "last_step": int(part.steps[-1]),
            "frames": len(part),
            "schema": 1,
            "is_full": True,
            "created": 1.7e9,
        }
        parts, levels = layout.build(part), pyramid.build(part, edges)
        kept = [await compact.keep_parts(database, folder, f"{number}", some) for some in (parts, levels)]
        rows, coarser = (segments.rows_for(*one, key) for one in zip(kept, (parts, levels), strict=True))

        def write(connection: Connection, head: Any = head, rows: Any = rows, coarser: Any = coarser) -> None:
            connection.execute(sa.insert(schema.segments), head)
            connection.execute(sa.insert(schema.segment_parts), rows)
            connection.execute(sa.insert(schema.pyramid), coarser)

        await database.write(write)
    return run_id


async def timed(read: Callable[[], Awaitable[object]], rounds: int) -> tuple[float, float, float]:
    """Wall milliseconds of the first read, then median wall and CPU milliseconds."""
    walls, cpus = [], []
    for _ in range(1 + SETTLED + rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        await read()
        walls.append(1e3 * (time.perf_counter() - wall))
        cpus.append(1e3 * (time.process_time() - cpu))
    return walls[0], statistics.median(walls[-rounds:]), statistics.median(cpus[-rounds:])


async def measure(url: str, options: argparse.Namespace) -> None:
    """Fill, read, print."""
    block = frames(compact.SEGMENT_FRAMES, options.layers, options.stats)
    app = create_app(Settings(database=url, bytes_url=options.bytes, log_level="error"))
    async with app.router.lifespan_context(app):
        database: Database = app.state.database
        run_id = await fill(database, block, options.steps)
        layer, stat = block.schema.layers[-1], block.schema.stats[1]
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            path = "/v1/projects/bench/runs/long/series"

            async def plot(**query: str) -> None:
                (await client.get(path, params=query)).raise_for_status()

            steps = options.steps // len(block) * len(block)
            reads: dict[str, Callable[[], Awaitable[object]]] = {
                "one series, every step": lambda: series.stat_series(database, run_id, layer, stat, points=steps),
                "one series, 1,000 points, HTTP": lambda: plot(layer=layer, stat=stat),
                "the loss, 1,000 points, HTTP": lambda: plot(name="loss"),
                "maximum over layers, 1,000 points, HTTP": lambda: plot(stat=stat),
                "2,000 steps of one series, HTTP": lambda: plot(
                    **{"layer": layer, "stat": stat, "from": str(steps // 2), "to": str(steps // 2 + 1999)}
                ),
            }
            where = "" if options.bytes is None else f", bytes in {options.bytes.split(':')[0]}"
            print(f"\n{database.name}{where}, {steps} steps, {options.layers} layers x {options.stats} stats\n")
            print("| read | first, wall ms | wall ms | CPU ms |\n|---|---|---|---|")
            for name, read in reads.items():
                first, wall, cpu = await timed(read, options.rounds)
                print(f"| {name} | {first:.1f} | {wall:.1f} | {cpu:.1f} |", flush=True)
            found = await series.stat_series(database, run_id, layer, stat, points=steps)
            assert int(found.count.sum()) == steps


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--stats", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--database", help="an empty one; a SQLite file by default")
    parser.add_argument("--bytes", help="an object store, as the setting bytes_url; the database by default")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(options.database or f"sqlite:///{folder}/reads.db", options))


if __name__ == "__main__":
    main()
