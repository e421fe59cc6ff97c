"""An hour of a thousand runs at full speed: the memory of the service over time.

    python benchmarks/soak.py [--runs 1000] [--chunks 56] [--steps 16] [--layers 200] [--stats 12] [--limit 300]

An hour is 56 uploads of each run, as a sidecar sends one about every minute; they come as fast as one service process
over SQLite takes them. Some runs are `--long`: they send chunks of 64 steps until segments are compacted out of them,
which is what needs most memory at once. A scrape of `/metrics` and a heat map are asked for in between. The table shows
the resident memory of the service over the hour; growth is a line through its second half. Ends by itself after
`--limit` seconds with what it has.
"""

import argparse
import os
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ingest import frames
from ingest_peers import cpu
from lossguard.sidecar.client import Accepted, Client
from lossguard.wire.chunk import AttemptStart, Chunk, ChunkId, encode
from lossguard.wire.frame import Frames
from processes import memory, service

SENDERS = 2


@dataclass(slots=True)
class Soak:
    """What has been sent, and what the memory was."""

    sent: int = 0
    failed: int = 0
    samples: list[tuple[float, int, float]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def chunk_of(block: Frames, number: int, index: int, size: int) -> Chunk:
    """A run's chunk: the block over and over, its steps going on."""
    start = index * size % (len(block) - size + 1)
    part = block[start : start + size]
    steps = np.arange(index * size + 1, (index + 1) * size + 1)
    events = (AttemptStart(0, 1.7e9, {"tasks": {"click": "binary"}}),) if index == 0 else ()
    moved = Frames.of(block.schema, steps, part.scalars, part.stats, times=1.7e9 + 1.0 * steps)
    return Chunk(ChunkId("soak", f"run-{number}", f"{number:032x}", index), moved, events=events)


def sender(url: str, block: Frames, mine: range, options: argparse.Namespace, soak: Soak, until: float) -> None:
    """Send the hour of these runs, round by round."""
    client = Client(url)
    try:
        for index in range(options.chunks):
            for number in mine:
                if time.monotonic() > until:
                    return
                size = 64 if number < options.long else options.steps
                # What is long sends more often, so that it is compacted within the hour.
                again = 1 if number >= options.long else max(1, 4800 // (64 * options.chunks) + 1)
                for turn in range(again):
                    chunk = chunk_of(block, number, index * again + turn, size)
                    ok = isinstance(client.put_chunk(chunk.id, encode(chunk)), Accepted)
                    with soak.lock:
                        soak.sent += 1
                        soak.failed += not ok
    finally:
        client.close()


def main() -> None:
    """Read the arguments, send, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("runs", 1000), ("chunks", 56), ("steps", 16), ("layers", 200), ("stats", 12), ("long", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--limit", type=float, default=300.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two lines")
    options = parser.parse_args()
    block = frames(512, options.layers, options.stats)
    soak, start = Soak(), time.monotonic()
    print(f"{options.runs} runs, {options.layers} layers x {options.stats} stats, load {os.getloadavg()[0]:.1f}\n")
    print("| seconds | of the hour | chunks | memory MB | database MB |\n|---|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory() as folder,
        service(f"sqlite:///{folder}/soak.db", "--compact-seconds", "5") as (url, pid),
    ):
        threads = [
            threading.Thread(
                target=sender,
                args=(url, block, range(n, options.runs, SENDERS), options, soak, start + options.limit),
            )
            for n in range(SENDERS)
        ]
        empty = memory(pid)
        for thread in threads:
            thread.start()
        total = (options.runs - options.long) * options.chunks
        total += options.long * options.chunks * max(1, 4800 // (64 * options.chunks) + 1)
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(options.every / SENDERS)
            heat = f"{url}/v1/projects/soak/runs/run-0/heatmap?stat=gradient_norm"
            for path in (f"{url}/metrics", heat):
                with urllib.request.urlopen(path, timeout=60) as answer:
                    answer.read()
            size = sum(one.stat().st_size for one in Path(folder).glob("soak.db*")) / 1e6
            soak.samples.append((time.monotonic() - start, soak.sent, memory(pid)))
            seconds, sent, now = soak.samples[-1]
            print(f"| {seconds:.0f} | {60 * sent / total:.1f} min | {sent} | {now:.0f} | {size:.0f} |", flush=True)
        used = cpu(pid)
    half = soak.samples[len(soak.samples) // 2 :]
    slope = float(np.polyfit([60 * one[1] / total for one in half], [one[2] for one in half], 1)[0])
    most = max(one[2] for one in soak.samples)
    print(
        f"\nempty {empty:.0f} MB, most {most:.0f} MB (target 500), growth over the second half {60 * slope:.1f} MB an "
        f"hour; {soak.sent} of {total} chunks, {soak.failed} not taken, "
        f"{1e3 * used / max(1, soak.sent):.1f} ms of the service's CPU each"
    )


if __name__ == "__main__":
    main()
