"""/metrics with a thousand active runs: how large, how long; the targets are 5 MB and 200 ms.

    python benchmarks/scrape.py [--runs 1000] [--rounds 9] [--url postgresql://...] [--json FILE]

A real service process over a real database. Every run is made by chunks over HTTP, with 40 layers; one in ten diverged
and has an open incident. The time is the whole request as a client on loopback sees it, after one that is not counted;
the table shows the median and the slowest, what of it the database took by the page's own word, and the CPU time of the
service's process, which a busy machine does not stretch.
"""

import argparse
import json
import re
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from ingest import service
from ingest_peers import cpu
from lossguard.wire.chunk import AttemptStart, Chunk, ChunkId, encode
from lossguard.wire.frame import Frames, Schema

STEPS, LAYERS = 320, 40
MOST_SECONDS, MOST_BYTES = 0.2, 5_000_000


def body(run: str, diverges: bool) -> bytes:
    """A run as one chunk, so that filling the database stays short."""
    random = np.random.default_rng(len(run))
    steps = np.arange(1, STEPS + 1)
    loss = 0.5 + 0.01 * random.normal(size=STEPS)
    if diverges:
        loss = np.where(steps >= 220, 5.0 + 0.1 * random.normal(size=STEPS), loss)
    scalars = np.stack([loss, loss, np.full(STEPS, 0.3), np.full(STEPS, 0.1)], axis=1)
    stats = np.exp(0.1 * random.normal(size=(STEPS, LAYERS, 2))).astype(np.float32)
    schema = Schema(
        scalars=("loss", "loss/click", "label_mean/click", "learning_rate"),
        layers=tuple(f"tower/block_{n}/dense/kernel" for n in range(LAYERS)),
        stats=("gradient_norm", "clippy_ratio"),
    )
    frames = Frames.of(schema, steps, scalars, stats, times=1.7e9 + 0.1 * steps)
    start = AttemptStart(0, 1.7e9, {"tasks": {"click": "binary"}})
    return encode(Chunk(ChunkId("bench", run, "a" * 32, 0), frames, events=(start,)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--url", help="an empty PostgreSQL database instead of SQLite")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = options.url or f"sqlite:///{folder}/lossguard.db"
        with service(database) as (address, pid), httpx.Client(base_url=address, timeout=60) as client:
            for number in range(options.runs):
                run = f"ranker-{number:05d}"
                path = f"/v1/projects/bench/runs/{run}/attempts/{'a' * 32}/chunks/0"
                client.put(path, content=body(run, number % 10 == 0)).raise_for_status()
            seconds, collecting, used, page = [], [], [], ""
            for _ in range(options.rounds + 1):
                start, before = time.perf_counter(), cpu(pid)
                page = client.get("/metrics", headers={"accept-encoding": "identity"}).raise_for_status().text
                seconds.append(time.perf_counter() - start)
                used.append(cpu(pid) - before)
                found = re.search(r"^lossguard_replica_collect_seconds (\S+)$", page, re.MULTILINE)
                collecting.append(float(found[1]) if found else float("nan"))
    size = len(page.encode())
    result = {
        "runs": options.runs,
        "series": sum(not line.startswith("#") for line in page.splitlines()),
        "bytes": size,
        "median_seconds": statistics.median(seconds[1:]),
        "slowest_seconds": max(seconds[1:]),
        "median_database_seconds": statistics.median(collecting[1:]),
        "mean_cpu_seconds": statistics.mean(used[1:]),
    }
    for name, value in result.items():
        print(f"{name:26} {value:,.3f}" if isinstance(value, float) else f"{name:26} {value:,}")
    ok = result["median_seconds"] <= MOST_SECONDS and size <= MOST_BYTES
    print(f"targets: {MOST_SECONDS} s, {MOST_BYTES:,} bytes: {'met' if ok else 'MISSED'}")
    if options.json is not None:
        options.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
