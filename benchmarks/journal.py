"""What a frame costs the training thread: the recorder beside what people use today.

`python benchmarks/journal.py [--frames 2000] [--layers 200] [--stats 9] [--rounds 3] [--json FILE]`

Every way of logging gets the same frames between the same short training steps (a matrix product), interleaved over
the rounds. "thread us" is CPU of the training thread per frame, "all us" of the whole process, p99 and max are wall
times of one call, "slow" counts calls above 50 ms. The budget is 50 us on the training thread at 200 layers by 9 stats.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy is loaded: its threads' waiting would be in "all us"

import numpy as np

from lossguard.journal.files import Files, LocalFiles
from lossguard.recorder import Recorder
from lossguard.wire.frame import Frames, Schema

Log = Callable[[int, np.ndarray, float], None]


class World:
    """Frames as a trainer would make them: names, and one [L, K] array a step from a log-normal random walk."""

    def __init__(self, count: int, layers: int, stats: int) -> None:
        rng = np.random.default_rng(0)
        self.schema = Schema(
            ("loss", "learning_rate"),
            tuple(f"tower/dense_{i}/kernel" for i in range(layers)),
            tuple(f"stat_{k}" for k in range(stats)),
        )
        level = rng.normal(size=(layers, stats))
        self.rows = []
        for _ in range(count):
            level = 0.97 * level + 0.24 * rng.normal(size=(layers, stats))
            self.rows.append(np.exp(level).astype(np.float32))
        self.points = count * layers * stats


@contextmanager
def lossguard_recorder(
    world: World, folder: Path, mantissa_bits: int = 10, files: Files | None = None
) -> Iterator[Log]:
    recorder = Recorder(folder, "bench", "r", mantissa_bits=mantissa_bits, files=files)
    present = np.ones((1, 2), np.bool_), np.ones((1, len(world.schema.stats)), np.bool_)

    def log(step: int, row: np.ndarray, loss: float) -> None:
        recorder.record(
            Frames(
                schema=world.schema,
                steps=np.array([step]),
                times=np.array([time.time()]),
                scalars=np.array([[loss, 0.1]]),
                stats=row[None],
                scalars_present=present[0],
                stats_present=present[1],
            )
        )

    yield log
    recorder.close()
    dropped = {name: count for name, count in recorder.counters.items() if name.startswith("dropped")}
    assert not dropped, dropped


@contextmanager
def lossless_recorder(world: World, folder: Path) -> Iterator[Log]:
    with lossguard_recorder(world, folder, 23) as log:
        yield log


class Unsynced(LocalFiles):
    """What the journal would be without fdatasync (docs/decisions/0302-sync-every-chunk.md)."""

    def sync(self, file: int) -> None:
        pass


@contextmanager
def unsynced_recorder(world: World, folder: Path) -> Iterator[Log]:
    with lossguard_recorder(world, folder, files=Unsynced()) as log:
        yield log


@contextmanager
def lossguard_run(world: World, folder: Path) -> Iterator[Log]:
    import lossguard

    layers, stats = world.schema.layers, world.schema.stats
    with lossguard.Run("bench", "r", journal=folder) as run:

        def log(step: int, row: np.ndarray, loss: float) -> None:
            values = {
                layer: dict(zip(stats, numbers, strict=True))
                for layer, numbers in zip(layers, row.tolist(), strict=True)
            }
            run.log(step, {"loss": loss}, values)

        yield log


@contextmanager
def json_lines(world: World, folder: Path) -> Iterator[Log]:
    with (folder / "log.jsonl").open("w") as file:

        def log(step: int, row: np.ndarray, loss: float) -> None:
            names, stats = world.schema.layers, world.schema.stats
            layers = {n: dict(zip(stats, r, strict=True)) for n, r in zip(names, row.tolist(), strict=True)}
            file.write(json.dumps({"step": step, "loss": loss, "layers": layers}) + "\n")
            file.flush()

        yield log


@contextmanager
def npz_per_step(world: World, folder: Path) -> Iterator[Log]:
    def log(step: int, row: np.ndarray, loss: float) -> None:
        np.savez(folder / f"{step}.npz", stats=row, loss=loss)

    yield log


@contextmanager
def raw_append(world: World, folder: Path) -> Iterator[Log]:
    file = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def log(step: int, row: np.ndarray, loss: float) -> None:
        os.write(file, row.tobytes())

    yield log
    os.close(file)


@contextmanager
def tensorboard_events(world: World, folder: Path) -> Iterator[Log]:
    """TensorBoard's own writer with its thread, one event with all values a step."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    tags = [f"{layer}/{stat}" for layer in world.schema.layers for stat in world.schema.stats]

    def log(step: int, row: np.ndarray, loss: float) -> None:
        values = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in zip([*tags, "loss"], [*row.ravel().tolist(), loss], strict=True)
        ]
        writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=values)))

    yield log
    writer.close()


WAYS: dict[str, Callable[[World, Path], object]] = {
    "lossguard Recorder, 10 bits": lossguard_recorder,
    "lossguard Recorder, lossless": lossless_recorder,
    "lossguard Recorder, 10 bits, no sync": unsynced_recorder,
    "lossguard.Run.log (dictionaries)": lossguard_run,
    "raw float32 append (no names, no sync)": raw_append,
    "JSON lines": json_lines,
    "npz per step": npz_per_step,
    "TensorBoard EventFileWriter": tensorboard_events,
}


def measure(way: Callable[[World, Path], object], world: World) -> dict[str, float]:
    weights = np.ones((192, 192), np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calls, thread = [], 0.0
        idle = 0.0
        process = time.process_time()
        with way(world, folder) as log:  # type: ignore[attr-defined]
            for step, row in enumerate(world.rows, 1):
                before = time.thread_time()
                weights @ weights
                idle += time.thread_time() - before
                wall, cpu = time.perf_counter(), time.thread_time()
                log(step, row, 0.5)
                thread += time.thread_time() - cpu
                calls.append(time.perf_counter() - wall)
        total = time.process_time() - process - idle
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    calls.sort()
    count = len(calls)
    return {
        "thread_us": thread / count * 1e6,
        "all_us": total / count * 1e6,
        "p99_us": calls[int(count * 0.99)] * 1e6,
        "max_us": calls[-1] * 1e6,
        "slow": sum(call > 0.05 for call in calls),
        "bytes_per_point": size / world.points,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--stats", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    world = World(options.frames, options.layers, options.stats)
    ways = dict(WAYS)
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        del ways["TensorBoard EventFileWriter"]
        print("TensorBoard is not installed: its row is left out")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            found[name].append(measure(way, world))
    print(f"{options.frames} frames of {options.layers} layers by {options.stats} stats, medians of {options.rounds}")
    print(f"{'way':40} {'thread us':>10} {'all us':>10} {'p99 us':>9} {'max us':>9} {'slow':>5} {'B/point':>8}")
    table = {}
    for name, rounds in found.items():
        row = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        table[name] = row
        print(
            f"{name:40} {row['thread_us']:10.1f} {row['all_us']:10.1f} {row['p99_us']:9.0f} {row['max_us']:9.0f} "
            f"{row['slow']:5.0f} {row['bytes_per_point']:8.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
