"""What the detectors cost: microseconds of CPU for a frame of 200 layers and 12 stats, in blocks of 1 to 256.

    python benchmarks/detector_cost.py [--layers 200] [--frames 4096] [--rounds 5] [--json FILE]

The frames are those of a healthy run with two binary tasks, eight scalars and the stats that the recorder writes.
Beside the detectors stand the floors: a copy of the frame, an exponential average with deviations in place, and the
rolling median that a robust detector would need if it kept one per series. CPU time of this process, the best of the
rounds; the rounds of all rows are interleaved, so that a busy machine is unfair to all of them alike.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lossguard.detect import monitor
from lossguard.wire.frame import Frames, Schema

STATS = (
    "weight_norm", "gradient_norm", "update_norm", "clippy_ratio", "clipping_factor", "gradient_zero_fraction",
    "nonfinite_count", "gradient_max", "update_max", "weight_max", "gradient_mean", "slot_norm",
)  # fmt: skip
SCALARS = (
    "loss", "learning_rate", "loss/click", "loss/like", "batch_auc/click", "batch_auc/like", "label_mean/click",
    "label_mean/like",
)  # fmt: skip
BLOCKS = (1, 16, 64, 256)
WINDOW = 64
"""Frames in the rolling median."""


def healthy(frames: int, layers: int, seed: int = 0) -> Frames:
    """A run that trains well: noise of a tenth on every stat, losses that fall, AUCs that rise."""
    rng = np.random.default_rng(seed)
    t = np.arange(frames)
    falling = np.exp(-t / 300)
    click = 0.62 + 0.06 * falling + 0.01 * rng.standard_normal(frames)
    like = 0.05 + 0.02 * falling + 0.002 * rng.standard_normal(frames)
    auc = [0.67 - 0.15 * falling + 0.02 * rng.standard_normal(frames) for _ in range(2)]
    rate, means = np.full(frames, 0.1), (np.full(frames, 0.44), np.full(frames, 0.012))
    stats = np.exp(0.1 * rng.standard_normal((frames, layers, len(STATS)), np.float32))
    stats[:, :, STATS.index("nonfinite_count")] = 0
    stats[:, :, STATS.index("gradient_zero_fraction")] *= np.float32(0.1)
    names = tuple(f"block_{i}/kernel" for i in range(layers))
    scalars = np.stack([click + like, rate, click, like, *auc, *means], axis=1)
    return Frames.of(Schema(SCALARS, names, STATS), t + 1, scalars, stats)


def settle(frames: Frames) -> tuple[monitor.MonitorState, Frames]:
    """The state after the first half, and the second half, which is what gets measured."""
    half = len(frames) // 2
    return monitor.update(monitor.init(), frames[:half]), frames[half:]


def watch(frames: Frames, block: int) -> Callable[[], int]:
    """The detectors over frames in blocks, from a state that has settled."""
    settled, rest = settle(frames)

    def run() -> int:
        state = settled
        for start in range(0, len(rest), block):
            state = monitor.update(state, rest[start : start + block])
        return len(rest)

    return run


def in_turn(frames: Frames, runs: int, block: int) -> Callable[[], int]:
    """So many runs side by side, their blocks in turn: what a service does, with none of them in the cache."""
    settled, rest = settle(frames)
    rest = rest[: 4 * block]

    def run() -> int:
        states = [settled] * runs
        for start in range(0, len(rest), block):
            part = rest[start : start + block]
            states = [monitor.update(state, part) for state in states]
        return runs * len(rest)

    return run


def copy(frames: Frames) -> Callable[[], int]:
    """The floor: one frame's stats copied."""
    target = np.empty_like(frames.stats[0])

    def run() -> int:
        for row in frames.stats:
            np.copyto(target, row)
        return len(frames)

    return run


def average(frames: Frames) -> Callable[[], int]:
    """Exponential mean and variance of every series, and the deviation from it, in place; no logarithm, no clipping."""
    mean, variance = frames.stats[0].copy(), np.ones_like(frames.stats[0])
    off, square = np.empty_like(mean), np.empty_like(mean)

    def run() -> int:
        for row in frames.stats:
            np.subtract(row, mean, out=off)
            np.multiply(off, off, out=square)
            np.subtract(square, variance, out=square)
            np.multiply(square, np.float32(0.01), out=square)
            np.add(variance, square, out=variance)
            np.multiply(off, np.float32(0.01), out=square)
            np.add(mean, square, out=mean)
            np.sqrt(variance, out=square)
            np.divide(off, square, out=off)
        return len(frames)

    return run


def rolling(frames: Frames) -> Callable[[], int]:
    """The median and the median deviation of the last 64 values of every series, at every frame."""

    def run() -> int:
        for t in range(WINDOW, WINDOW + 8):
            window = frames.stats[t - WINDOW : t]
            middle = np.median(window, axis=0)
            np.median(np.abs(window - middle), axis=0)
        return 8

    return run


def measure(rows: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Microseconds of CPU a frame, the best of the rounds."""
    best = dict.fromkeys(rows, math.inf)
    for _ in range(rounds):
        for name, run in rows.items():
            before = time.process_time()
            count = run()
            best[name] = min(best[name], (time.process_time() - before) / count * 1e6)
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--frames", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    frames = healthy(arguments.frames, arguments.layers)
    rows = {f"lossguard, blocks of {block}": watch(frames, block) for block in BLOCKS}
    rows["lossguard, 32 runs in turn, blocks of 64"] = in_turn(frames, 32, 64)
    rows["floor: copy of a frame"] = copy(frames)
    rows["floor: EMA and z in place"] = average(frames)
    rows["rolling 64 median and MAD"] = rolling(frames)
    found = measure(rows, arguments.rounds)
    print(f"{arguments.layers} layers x {len(STATS)} stats, us of CPU a frame, best of {arguments.rounds}")
    for name, value in found.items():
        print(f"  {name:42} {value:10.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
