"""Fuzzes `unpack`, `unpack_stats` and `decode` behind a valid checksum.

`python tests/wire/fuzz_decode.py --seconds 60`.

Every worker is a process of its own, so that a crash of the codec is seen and its input kept. Exit code 1 if a worker
died or ended with an exception that is not a `ChunkError`.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from chunks import with_valid_crc

from lossguard.wire.arrays import ArrayError, pack, unpack
from lossguard.wire.chunk import AttemptStart, Chunk, ChunkError, ChunkId, decode, encode, outline, round_mantissa
from lossguard.wire.frame import Frames, Schema
from lossguard.wire.stats_section import pack_stats, unpack_stats

WORKER_SECONDS = 20.0


def arrays(rng: np.random.Generator) -> list[np.ndarray]:
    n = int(rng.integers(1, 20_000))
    return [
        np.arange(n),
        rng.normal(size=n).astype("f4"),
        rng.normal(size=n),
        round_mantissa(rng.lognormal(size=n).astype("f4"), 10),
        np.full(n, np.nan, "f4"),
    ]


def chunk(rng: np.random.Generator) -> bytes:
    count, layers = int(rng.integers(0, 64)), int(rng.integers(0, 20))
    schema = Schema(("loss", "auc"), tuple(f"layer{i}" for i in range(layers)), ("g", "w"))
    stats = rng.lognormal(size=(count, layers, 2)).astype("f4")
    frames = Frames.of(schema, np.arange(1, count + 1), rng.normal(size=(count, 2)), stats)
    events = (AttemptStart(0, 1.0, {"tasks": {"click": "binary"}}),)
    return encode(Chunk(ChunkId("p", "r", "0" * 32, 0), frames, {"queue_full": 1}, events))


def stats(rng: np.random.Generator, bits: int) -> tuple[bytes, tuple[int, int, int]]:
    """A section of which some stats stand apart."""
    shape = (int(rng.integers(20, 40)), 400, int(rng.integers(9, 12)))
    values = rng.lognormal(size=shape).astype("f4")
    values[:, :, rng.random(shape[2]) < 0.3] = 1.0
    return b"".join(pack_stats(values, bits)), (shape[2], shape[1], shape[0])


def mutated(rng: random.Random, whole: bytes) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 64))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            number = rng.choice([0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, len(data), rng.randrange(1 << 32)])
            data[at : at + 4] = number.to_bytes(4, "little")
        elif kind == 3:
            source = rng.randrange(len(data))
            data[at : at + 8] = data[source : source + 8]
        else:
            data = data[: max(at, 1)] if rng.random() < 0.3 else data + rng.randbytes(rng.randrange(64))
    return bytes(data)


def work(seed: int, case: Path) -> None:
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    sections = [(pack(array), array.dtype, array.shape) for _ in range(6) for array in arrays(numbers)]
    chunks = [chunk(numbers) for _ in range(20)]
    apart = [stats(numbers, bits) for bits in (7, 10, 12, 23)]
    outcomes = Counter[str]()
    until = time.monotonic() + WORKER_SECONDS
    while time.monotonic() < until:
        if rng.random() < 0.2:
            section, shape = rng.choice(apart)
            data = mutated(rng, section)
            case.write_bytes(data)
            try:
                unpack_stats(memoryview(data), shape)
                outcomes["stats decoded"] += 1
            except ArrayError:
                outcomes["stats refused"] += 1
        elif rng.random() < 0.5:
            packed, dtype, shape = rng.choice(sections)
            data = mutated(rng, packed)
            case.write_bytes(data)
            try:
                unpack(data, dtype, shape)
                outcomes["arrays decoded"] += 1
            except ArrayError:
                outcomes["arrays refused"] += 1
        else:
            data = with_valid_crc(mutated(rng, rng.choice(chunks)))
            case.write_bytes(data)
            for read in (decode, outline):
                try:
                    read(data)
                    outcomes[f"{read.__name__}: taken"] += 1
                except ChunkError as error:
                    outcomes[f"{read.__name__}: {type(error).__name__}"] += 1
    print(f"seed {seed}: {dict(outcomes)}", flush=True)
    sys.exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--worker", type=Path)
    options = parser.parse_args()
    if options.worker:
        work(options.seed, options.worker)
    until, failed = time.monotonic() + options.seconds, 0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < until:
            case = Path(folder) / f"case-{options.seed}"
            command = [sys.executable, __file__, "--worker", str(case), "--seed", str(options.seed)]
            code = subprocess.run(command, check=False).returncode
            if code:
                failed += 1
                kept = Path(f"fuzz-{options.seed}.bytes")
                kept.write_bytes(case.read_bytes())
                print(f"seed {options.seed}: ended with {code}, input kept in {kept}")
            options.seed += 1
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
