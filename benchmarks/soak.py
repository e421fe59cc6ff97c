"""A thousand active runs at full speed: the memory of the service over the chunks that it has taken.

    python benchmarks/soak.py [--runs 1000] [--rounds 120] [--steps 16] [--layers 200] [--stats 12] [--limit 570]

In a round each run sends one chunk, as a sidecar does about every minute: 60 rounds are an hour of a fleet. They come
as fast as one service process over SQLite takes them. `--long` runs send more and longer chunks, one after the other,
so that all the time some run has a segment to compact, which is what needs most memory at once. At each line a scrape
of `/metrics`, a heat map and a series are asked for. The table shows the service's memory over the chunks: resident,
and what of it is its own (anonymous: without the database's file and the libraries). Whether it is flat: the medians of
the quarters, and the median of all slopes within the second half. Ends by itself after `--limit` seconds with what it
has.
"""

import argparse
import os
import sqlite3
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ingest import frames
from ingest_peers import cpu
from lossguard.sidecar.client import Accepted, Client
from lossguard.wire.chunk import AttemptStart, Chunk, ChunkId, encode
from lossguard.wire.frame import Frames
from lossguard_service.store.compact import SEGMENT_FRAMES
from processes import memory, service

SENDERS = 2
LONG_STEPS = 64
LONG_TURNS = 4
"""Chunks that a long run sends in a round: a segment of each of them every 16 rounds."""
HOUR = 60
"""Rounds."""


@dataclass(slots=True)
class Soak:
    """What has been sent, and what the memory was: [chunks, resident MB, anonymous MB]."""

    sent: int = 0
    failed: int = 0
    samples: list[tuple[int, float, float]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def chunk_of(block: Frames, number: int, index: int, size: int) -> Chunk:
    """A run's chunk: the block over and over, its steps going on."""
    start = index * size % (len(block) - size + 1)
    part = block[start : start + size]
    steps = np.arange(index * size + 1, (index + 1) * size + 1)
    events = (AttemptStart(0, 1.7e9, {"tasks": {"click": "binary"}}),) if index == 0 else ()
    moved = Frames.of(block.schema, steps, part.scalars, part.stats, times=1.7e9 + 1.0 * steps)
    return Chunk(ChunkId("soak", f"run-{number}", f"{number:032x}", index), moved, events=events)


def chunks_of(number: int, turn: int, options: argparse.Namespace) -> list[tuple[int, int]]:
    """Index and steps of the chunks that a run sends in a round; long runs begin one after the other."""
    if number >= options.long:
        return [(turn, options.steps)]
    apart = SEGMENT_FRAMES // (LONG_STEPS * LONG_TURNS * options.long)
    since = turn - number * max(1, apart)
    return [(since * LONG_TURNS + place, LONG_STEPS) for place in range(LONG_TURNS)] if since >= 0 else []


def steps_of_long_runs(options: argparse.Namespace) -> list[int]:
    """Steps that each long run sends in all rounds."""
    return [
        sum(size for turn in range(options.rounds) for _, size in chunks_of(number, turn, options))
        for number in range(options.long)
    ]


def sender(
    url: str,
    block: Frames,
    mine: range,
    options: argparse.Namespace,
    soak: Soak,
    until: float,
    measure: Callable[[int], None],
) -> None:
    """Send the chunks of these runs, round by round; whoever sends the last one before a line measures for it."""
    client = Client(url)
    try:
        for turn in range(options.rounds):
            for number in mine:
                for index, size in chunks_of(number, turn, options):
                    if time.monotonic() > until:
                        return
                    chunk = chunk_of(block, number, index, size)
                    ok = isinstance(client.put_chunk(chunk.id, encode(chunk)), Accepted)
                    with soak.lock:
                        soak.sent += 1
                        soak.failed += not ok
                        sent = soak.sent
                    if sent % options.every == 0:
                        measure(sent)
    finally:
        client.close()


def look(url: str) -> None:
    """Ask what a scrape and a page ask."""
    run = f"{url}/v1/projects/soak/runs/run-0"
    for path in (
        f"{url}/metrics",
        f"{run}/heatmap?stat=gradient_norm",
        f"{run}/series?layer=tower/block_0/dense/kernel&stat=gradient_norm",
    ):
        with urllib.request.urlopen(path, timeout=60) as answer:
            answer.read()


def segments(database: Path) -> int:
    """How many there are."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    (found,) = connection.execute("SELECT count(*) FROM segments").fetchone()
    connection.close()
    return int(found)


def verdict(samples: list[tuple[int, float, float]], runs: int) -> str:
    """How flat the samples are: medians, since one that falls into a compaction is higher by what that needs."""
    taken, resident = np.array([one[:2] for one in samples]).T
    quarters = ", ".join(f"{np.median(part):.0f}" for part in np.array_split(resident, 4))
    hours, half = taken / (HOUR * runs), len(samples) // 2
    slopes = [
        (resident[later] - resident[one]) / (hours[later] - hours[one])
        for one in range(half, len(samples))
        for later in range(one + 1, len(samples))
    ]
    slope = f"{np.median(slopes):+.1f} MB an hour of {runs} runs"
    return f"medians of the quarters {quarters} MB; in the second half {slope} (median slope)"


def main() -> None:
    """Read the arguments, send, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("runs", 1000), ("rounds", 120), ("steps", 16), ("layers", 200), ("stats", 12), ("long", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--limit", type=float, default=570.0, help="seconds after which it ends")
    parser.add_argument("--compact-seconds", default="5", help="the service's setting")
    parser.add_argument("--every", type=int, default=3000, help="chunks between two lines")
    options = parser.parse_args()
    block = frames(512, options.layers, options.stats)
    soak, start = Soak(), time.monotonic()
    print(f"{options.runs} runs, {options.layers} layers x {options.stats} stats, load {os.getloadavg()[0]:.1f}\n")
    print("| chunks | hours | seconds | resident MB | anonymous MB | database MB |\n|---|---|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory() as folder,
        service(f"sqlite:///{folder}/soak.db", "--compact-seconds", options.compact_seconds) as (url, pid),
    ):
        until = start + options.limit

        def measure(sent: int) -> None:
            look(url)
            size = sum(one.stat().st_size for one in Path(folder).glob("soak.db*")) / 1e6
            resident, own = memory(pid), memory(pid, "Anonymous")
            hours, seconds = sent / (HOUR * options.runs), time.monotonic() - start
            with soak.lock:
                soak.samples.append((sent, resident, own))
                print(f"| {sent} | {hours:.2f} | {seconds:.0f} | {resident:.0f} | {own:.0f} | {size:.0f} |", flush=True)

        threads = [
            threading.Thread(
                target=sender, args=(url, block, range(n, options.runs, SENDERS), options, soak, until, measure)
            )
            for n in range(SENDERS)
        ]
        empty = memory(pid)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        full = sum(steps // SEGMENT_FRAMES for steps in steps_of_long_runs(options))
        while segments(Path(folder) / "soak.db") < full and time.monotonic() < until:
            time.sleep(0.2)  # the service compacts when its time has come
        used, made = cpu(pid), segments(Path(folder) / "soak.db")
    if len(soak.samples) < 8:
        sys.exit(f"{len(soak.samples)} samples are too few to say anything: more --rounds, or a smaller --every")
    print(
        f"\nempty {empty:.0f} MB, most {max(one[1] for one in soak.samples):.0f} MB (target 500), "
        f"{verdict(soak.samples, options.runs)}; {soak.sent} chunks, {soak.failed} not taken, {made} segments, "
        f"{1e3 * used / max(1, soak.sent):.1f} ms of the service's CPU each"
    )


if __name__ == "__main__":
    main()
