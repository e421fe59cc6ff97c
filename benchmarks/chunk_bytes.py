"""Bytes and nanoseconds a point of chunks, on the recorded runs of `../shared/traces`.

`python benchmarks/chunk_bytes.py [--runs 40] [--json FILE]`

A point is one stat of one layer at one step or one scalar at one step; headers, scalars, steps and times are in the
bytes. The recorded stats are cut to 8 mantissa bits, which flatters "lossless" and "10 bits" alike; "full mantissa"
fills the cut bits with noise, which is what a stat's lowest bits are, and is the honest figure.
"""

import argparse
import io
import json
import os
import statistics
import sys
import time
import zlib
from pathlib import Path

import numpy as np

from lossguard.wire.chunk import Chunk, ChunkId, decode, encode
from lossguard.wire.frame import Frames, Schema

ID = ChunkId("bench", "r", "0" * 32, 0)


def recorded(runs: int) -> list[Path]:
    """So many of the recorded runs, spread over them all; ends the program with a sentence where there are none."""
    repository = Path(__file__).resolve().parents[1]
    shared = Path(os.environ.get("LOSSGUARD_SHARED", repository.parent / "shared"))
    paths = sorted((shared / "traces" / "runs").glob("*.npz"))
    if not paths:
        print(f"no recorded runs in {shared}: set LOSSGUARD_SHARED")
        sys.exit(0)
    return paths[:: max(1, len(paths) // runs)][:runs]


def load(path: Path, rng: np.random.Generator, *, full: bool) -> Frames:
    with np.load(path) as trace:
        stats = trace["stats"].astype(np.float32)
        schema = Schema(*(tuple(map(str, trace[f"{kind}_names"])) for kind in ("scalar", "layer", "stat")))
        if full:
            raw = stats.view(np.uint32)
            noise = rng.integers(0, 1 << 15, raw.shape, np.uint32)
            # Counts, fractions, zeros and what is no number have no noise in them.
            exact = ~np.isfinite(stats) | (stats == 0) | (stats == np.round(stats))
            stats = np.where(exact, raw, (raw & np.uint32(0xFFFF8000)) | noise).astype(np.uint32).view(np.float32)
        steps = np.arange(1, len(trace["step"]) + 1)
        times = 1.7e9 + np.cumsum(rng.normal(0.1, 0.01, len(steps)))
        return Frames.of(schema, steps, trace["scalars"], stats, times=times)


def compressed_npz(frames: Frames) -> int:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, steps=frames.steps, scalars=frames.scalars, stats=frames.stats)
    return len(buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    paths = recorded(options.runs)
    table: dict[str, dict[str, float]] = {}
    for full in (False, True):
        rng = np.random.default_rng(0)
        runs = [load(path, rng, full=full) for path in paths]
        for bits in (10, 23):
            for size in (64, 256):
                points = used = 0
                spent = {"encode_ns": [], "decode_ns": []}
                for frames in runs:
                    for first in range(0, len(frames), size):
                        block = frames[first : first + size]
                        count = block.stats.size + block.scalars.size
                        start = time.process_time_ns()
                        data = encode(Chunk(ID, block), mantissa_bits=bits)
                        middle = time.process_time_ns()
                        decode(data)
                        spent["encode_ns"].append((middle - start) / count)
                        spent["decode_ns"].append((time.process_time_ns() - middle) / count)
                        points, used = points + count, used + len(data)
                name = f"{'full mantissa' if full else 'as recorded'}, {bits} bits, {size} frames"
                table[name] = {key: statistics.median(each) for key, each in spent.items()}
                table[name]["bytes_per_point"] = used / points
        points = sum(frames.stats.size + frames.scalars.size for frames in runs)
        kind = "full mantissa" if full else "as recorded"
        table[f"{kind}, npz compressed, whole run"] = {
            "bytes_per_point": sum(map(compressed_npz, runs)) / points,
            "encode_ns": float("nan"),
            "decode_ns": float("nan"),
        }
        table[f"{kind}, float32 step-major, zlib 6, whole run"] = {
            "bytes_per_point": sum(len(zlib.compress(frames.stats.tobytes())) for frames in runs)
            / sum(frames.stats.size for frames in runs),
            "encode_ns": float("nan"),
            "decode_ns": float("nan"),
        }
    print(f"{len(paths)} runs")
    print(f"{'chunks':52} {'bytes':>6} {'encode ns':>10} {'decode ns':>10}")
    for name, row in table.items():
        print(f"{name:52} {row['bytes_per_point']:6.2f} {row['encode_ns']:10.1f} {row['decode_ns']:10.1f}")
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
