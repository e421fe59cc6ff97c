"""The gate's speed: a first decision, a repeated question, the scan of an artifact; and its verdicts on recorded runs.

`python benchmarks/gate.py` prints the table; `--recorded` judges the recorded runs in ../shared instead.
"""

import argparse
import asyncio
import csv
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from rich.console import Console
from rich.table import Table
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "gate"))

from gate_runs import DIGEST, LAYERS, SCALARS, TASKS, facts_of_trace, frames_of, incident  # noqa: E402

from gate_scan import scanning  # noqa: E402
from lossguard.wire.chunk import Chunk, ChunkId, encode  # noqa: E402
from lossguard.wire.stats import STAT_NAMES  # noqa: E402
from lossguard.wire.verdict import outcome_of  # noqa: E402
from lossguard_service.__main__ import settle  # noqa: E402
from lossguard_service.app import create_app  # noqa: E402
from lossguard_service.gate.decide import decide  # noqa: E402
from lossguard_service.gate.policy import BUILT_IN  # noqa: E402
from lossguard_service.settings import Settings  # noqa: E402
from lossguard_service.store import chunks, record, schema  # noqa: E402
from lossguard_service.store import incidents as incident_store  # noqa: E402
from lossguard_service.store.compact import SEGMENT_FRAMES  # noqa: E402
from lossguard_service.store.database import open_database  # noqa: E402
from lossguard_service.store.migrate import migrate  # noqa: E402

STEPS, FRAMES, INCIDENTS = 1_000_000, 64, 50
OTHERS, TRIALS, OTHER_STEPS = 30, 5, 128
"""Runs that the project holds besides, and how many of them trained the same configuration."""
BODY = {
    "project": "default", "run": "long", "step": STEPS, "artifact_digest": DIGEST, "policy": "tolerant",
    "scan": {"kind": "savedmodel", "tensors": 12, "values": 1000, "nonfinite": {}, "complete": True},
}  # fmt: skip


def fill(connection: sa.Connection) -> None:
    """A finished run of a million steps: every chunk's row, the segments' rows, and the bytes of the last chunks."""
    now = time.time()
    run = record.lock_or_open_run(connection, "default", "long", now)
    record.open_attempt(connection, run.id, 1, "a" * 32)
    count = -(-STEPS // FRAMES)
    values = {"start_step": 0, "next_index": count, "last_step": STEPS, "stop_reason": "finished"}
    connection.execute(sa.update(schema.attempts).where(schema.attempts.c.run_id == run.id).values(**values))
    # What `Watch` says of a training; an optimizer makes the run one of a group of trials, which is looked up too.
    config = {"tasks": TASKS, "parameters_watched": 1.0, "optimizer": {"class": "Adagrad"}, "seed": 1}
    values = {"config": config, "attempt": 1, "last_step": STEPS, "judged_step": STEPS, "stop_reason": "finished"}
    record.update_run(connection, run.id, values)
    rows = []
    for index in range(count):
        first, last = index * FRAMES + 1, min((index + 1) * FRAMES, STEPS)
        rows.append(
            {"run_id": run.id, "attempt": 1, "index": index, "first_step": first, "last_step": last,
             "frames": last - first + 1, "schema": 1, "missing": [], "drops": {}, "sha256": "0" * 64, "received": now}
        )  # fmt: skip
        if index >= count - 4:
            data = encode(Chunk(ChunkId("default", "long", "a" * 32, index), frames_of(first, last)))
            values = {"run_id": run.id, "attempt": 1, "index": index, "data": data}
            connection.execute(sa.insert(schema.chunk_bytes).values(**values))
    connection.execute(sa.insert(schema.chunks), rows)
    # As compaction leaves it: 4,096 frames each, and the rest of the attempt still in chunks.
    size = SEGMENT_FRAMES // FRAMES
    segments = [
        {"run_id": run.id, "attempt": 1, "first_index": first, "next_index": first + size,
         "first_step": first * FRAMES + 1, "last_step": (first + size) * FRAMES, "frames": SEGMENT_FRAMES, "schema": 1,
         "is_full": True, "created": now}
        for first in range(0, count - size, size)
    ]  # fmt: skip
    connection.execute(sa.insert(schema.segments), segments)
    chunks.add_schema(connection, run.id, 1, frames_of(1, 2).schema)
    connection.execute(sa.update(schema.attempts).where(schema.attempts.c.run_id == run.id).values(config=config))
    for number in range(OTHERS):
        add_other(connection, number, config | ({} if number < TRIALS else {"note": number}), now)
    found = [incident("micro_divergence", 1000 * (n + 1), end=1000 * (n + 1) + 30, number=n) for n in range(INCIDENTS)]
    incident_store.insert(connection, run.id, found, now)


def add_other(connection: sa.Connection, number: int, config: dict[str, Any], now: float) -> None:
    """A short run that ended: one of those that the project has besides."""
    run = record.lock_or_open_run(connection, "default", f"other-{number}", now)
    key = f"{number:032x}"
    record.open_attempt(connection, run.id, 1, key)
    frames = frames_of(1, OTHER_STEPS)
    values = {"start_step": 0, "next_index": 1, "last_step": OTHER_STEPS, "stop_reason": "finished", "config": config}
    connection.execute(sa.update(schema.attempts).where(schema.attempts.c.run_id == run.id).values(**values))
    values = {"config": config, "attempt": 1, "last_step": OTHER_STEPS, "judged_step": OTHER_STEPS}
    record.update_run(connection, run.id, values | {"stop_reason": "finished"})
    row = {"run_id": run.id, "attempt": 1, "index": 0, "first_step": 1, "last_step": OTHER_STEPS, "missing": []}
    row |= {"frames": OTHER_STEPS, "schema": 1, "drops": {}, "sha256": "0" * 64, "received": now}
    connection.execute(sa.insert(schema.chunks), [row])
    data = encode(Chunk(ChunkId("default", f"other-{number}", key, 0), frames))
    connection.execute(sa.insert(schema.chunk_bytes).values(run_id=run.id, attempt=1, index=0, data=data))
    chunks.add_schema(connection, run.id, 1, frames.schema)


async def decisions(url: str) -> list[tuple[str, float, str]]:
    """Milliseconds of the first decision, and CPU of the repeated question beside a bare endpoint's."""
    database = open_database(url)
    await migrate(database)
    await database.write(fill)
    await database.close()
    app = create_app(Settings(database=url))
    firsts = []
    async with app.router.lifespan_context(app):
        rules = {"name": "tolerant", "recovered_budget": INCIDENTS}
        await request(app, "/v1/policies", json.dumps({"author": "benchmark", "rules": rules}).encode())
        settle()
        for n in range(40):
            body = json.dumps(BODY | {"artifact_digest": f"sha256:{n:064x}"}).encode()  # what nobody has asked
            start, used = time.perf_counter(), time.process_time()
            document = json.loads(await request(app, "/v1/verdicts", body))
            firsts.append((time.perf_counter() - start, time.process_time() - used))
            assert document["outcome"] == "pass", document["reasons"]

        async def bare(_: Request) -> JSONResponse:
            return JSONResponse(document)

        peer = Starlette(routes=[Route("/verdict", bare)])
        path = f"/v1/verdicts/{document['id']}"
        bare_cpu, ours, asked = await cpu((peer, "/verdict", b""), (app, path, b""), (app, "/v1/verdicts", body))
    wall, used = zip(*firsts[5:], strict=True)  # the first ones compile statements
    return [
        ("first decision, median of 35", statistics.median(wall) * 1e3, "ms"),
        ("first decision, median of 35", statistics.median(used) * 1e3, "ms of CPU (budget 10)"),
        ("first decision, best of 35", min(used) * 1e3, "ms of CPU"),
        ("first decision, worst of 35", max(used) * 1e3, "ms of CPU"),
        ("the very first one of a replica", firsts[0][1] * 1e3, "ms of CPU"),
        ("bare Starlette JSON endpoint", bare_cpu * 1e6, "us of CPU"),
        ("repeated question, GET /v1/verdicts/{id}", ours * 1e6, "us of CPU"),
        ("ratio", ours / bare_cpu, "x (budget 1.5)"),
        ("repeated question, POST /v1/verdicts", asked * 1e6, "us of CPU"),
        ("ratio", asked / bare_cpu, "x (checked against the database)"),
    ]


async def cpu(*cases: tuple[object, str, bytes]) -> list[float]:
    """CPU seconds of the process a request, best of 7 rounds, the cases in turns."""
    best = [float("inf")] * len(cases)
    for _ in range(7):
        for place, (app, path, body) in enumerate(cases):
            start = time.process_time()
            for _ in range(300):
                await request(app, path, body)
            best[place] = min(best[place], (time.process_time() - start) / 300)
    return best


async def request(app: object, path: str, body: bytes) -> bytes:
    """One request through ASGI alone, without a client's own cost; its answer's body."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "path": path,
        "method": "POST" if body else "GET",
        "raw_path": path.encode(), "query_string": b"", "scheme": "http",
        "headers": [(b"host", b"gate"), (b"content-type", b"application/json")],
        "server": ("gate", 80), "client": ("127.0.0.1", 1), "root_path": "",
    }  # fmt: skip
    answer = b""

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal answer
        assert message.get("status", 200) == 200
        answer += message.get("body", b"")

    await app(scope, receive, send)  # type: ignore[operator]
    return answer


def recorded(root: Path, console: Console, *, incidents: bool) -> None:
    """The recorded runs as the gate judges them at their last step, by label."""
    labels = {row["name"]: row["status"] for row in csv.DictReader((root / "labels.csv").open())}
    counts: dict[str, dict[str, Counter[str]]] = {name: defaultdict(Counter) for name in BUILT_IN}
    for path in sorted((root / "runs").glob("*.npz")):
        facts = facts_of_trace(path, incidents)
        for name, policy in BUILT_IN.items():
            policy = dataclasses.replace(policy, metrics_required=False)
            counts[name][labels[path.stem]][outcome_of(decide(policy, facts))] += 1
    for name, by_label in counts.items():
        table = Table(title=f"policy {name}, {'all checks' if incidents else 'without incidents'}, at the last step")
        for column in ("label", "pass", "block", "insufficient_data"):
            table.add_column(column)
        for label, found in sorted(by_label.items()):
            table.add_row(label, *(str(found[outcome]) for outcome in ("pass", "block", "insufficient_data")))
        console.print(table)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recorded", action="store_true", help="judge the recorded runs in ../shared instead")
    parser.add_argument("--megabytes", type=int, default=256, help="size of each artifact; 0 to scan none")
    parser.add_argument("--turns", type=int, default=5, help="turns of a scan of which the best counts")
    parser.add_argument("--database", metavar="URL", help="an empty one, in place of a SQLite file")
    arguments = parser.parse_args()
    console = Console(width=110)
    if arguments.recorded:
        shared = Path(os.environ.get("LOSSGUARD_SHARED", REPOSITORY.parent / "shared"))
        if not (shared / "traces" / "labels.csv").is_file():
            sys.exit(f"no recorded runs in {shared}: set LOSSGUARD_SHARED to the folder that holds traces/")
        for incidents in (True, False):
            recorded(shared / "traces", console, incidents=incidents)
        return
    size = f"{len(SCALARS)} scalars, {len(LAYERS)} layers, {len(STAT_NAMES)} stats"
    title = f"gate: {STEPS:,} steps, {INCIDENTS} incidents, {size}"
    table = Table(title=title)
    for column in ("measure", "value", "unit"):
        table.add_column(column, justify="right" if column == "value" else "left")
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(decisions(arguments.database or f"sqlite:///{folder}/gate.db"))
        if arguments.megabytes:
            rows += scanning(Path(folder), arguments.megabytes, arguments.turns)
    for name, value, unit in rows:
        table.add_row(name, f"{value:.2f}" if value < 100 else f"{value:.0f}", unit)
    console.print(table)


if __name__ == "__main__":
    main()
