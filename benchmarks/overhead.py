"""What watching costs the trainer, with its peers beside it.

Rows: the bare model, and once more, which shows the noise; Lossguard as it comes; the same with its budget off, so that
all stats come every 16 steps whatever that costs; every stat in every step; with Clippy; a naive callback that copies
all weights every step; TensorBoard's callback with histograms every epoch (its finest setting); per-layer `tf.summary`
in a custom train step.

All variants of a model train in one process, interleaved block of steps by block in random order, so that they share
the machine's moods, on one thread of one core, so that no thread's waiting for another counts as work. A pair is the
CPU time (user + system, all threads) of one cadence, 16 steps, so that each has one full step, over the bare model's of
the same round. Each block is a `fit` of its own, which ends with a fetch: with the ranker's steps one a second, as in a
long training, with the small MLP's two. Reported is the median of the pairs with its 95 % interval (order statistics;
with fewer than 6 pairs all of them), beside it what Lossguard says of itself (`agent_cost`). Where a model's tensors
lie in memory is drawn once a process and stays, so figures to be quoted come from several: `--processes 4`. The two
slowest peers run in one round. A target is met if the interval lies below it, not met if above, and not decided else.

Memory, of five rows, is of processes of their own, three for each in turns: the largest resident size, the one at the
end, and the most that TensorFlow's tensors held in a block of steps.

Models: an MLP of 4 x 1024 at batch 256 and 1024; the demo's ranker (large, with DCN) at batch 4096, whose embedding has
a dense gradient; and the same with Keras's sparse one.

    python benchmarks/overhead.py [--model mlp-256 ...] [--rounds N] [--processes N] [--steps 16] [--jit]
        [--only NAME,NAME] [--no-memory] [--json FILE]
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "--part" in sys.argv and hasattr(os, "sched_setaffinity"):
    # Before TensorFlow makes its threads.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import keras
import numpy as np
import tensorflow as tf

from lossguard.demo import ranker as demo
from lossguard.keras import Clippy, Watch
from lossguard.recorder import Recorder
from lossguard.wire.frame import Frames
from workloads import mlp, mlp_data, ranker, ranker_data

BATCH = {"mlp-256": 256, "mlp-1024": 1024, "ranker": 4096, "ranker-sparse": 4096}
ROUNDS = {"mlp-256": 12, "mlp-1024": 6, "ranker": 6, "ranker-sparse": 6}
SLOW_ROWS, SLOW_ROUNDS = ("TensorBoard callback, histograms", "tf.summary per layer in train_step"), 1
CADENCE = 16
ENOUGH = 6
"""Fewer pairs have no interval."""
TARGETS = {"mlp-256": 1.06, "mlp-1024": 1.03, "ranker": 1.02}
AGAIN = "bare once more"
RATE = 1e-6
"""So small that no gradient jumps and sets a burst of full steps off, as the first steps of a training do."""
MEMORY_OF = "mlp-1024"
MEMORY_ROWS = (
    "bare",
    "Lossguard",
    "Lossguard every stat every step",
    "Lossguard with Clippy",
    "callback with get_weights",
)
MEMORY_TURNS = 3
SPARSE_ROWS = ("bare", AGAIN, "Lossguard", "Lossguard without a budget", "Lossguard every stat every step")

warnings.filterwarnings("ignore", message=".*shuffle=True.*")


class GetWeights(keras.callbacks.Callback):
    """What people write first: copy everything, take norms on the host."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.before = self.model.get_weights()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        after = self.model.get_weights()
        self.norms = [(np.linalg.norm(b), np.linalg.norm(a - b)) for a, b in zip(after, self.before, strict=True)]
        self.before = after


def summarized(folder: str) -> type[keras.Model]:
    """A custom train step that writes each layer's norms with tf.summary."""
    writer = tf.summary.create_file_writer(folder)

    class Summarized(keras.Model):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            step = tf.cast(self.optimizer.iterations, tf.int64)
            with writer.as_default(step=step):
                for variable, gradient in zip(self.trainable_variables, gradients, strict=True):
                    dense = tf.convert_to_tensor(gradient)
                    tf.summary.scalar(f"{variable.path}/gradient", tf.norm(dense))
                    tf.summary.scalar(f"{variable.path}/weight", tf.norm(variable.value))
                    tf.summary.histogram(f"{variable.path}/gradients", dense)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    return Summarized


class Noted(Recorder):
    """A recorder that keeps what the agent says it costs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.costs: list[float] = []

    def record(self, frames: Frames) -> bool:
        column = frames.schema.scalars.index("agent_cost")
        self.costs += frames.scalars[frames.scalars_present[:, column], column].tolist()
        return super().record(frames)


def variants(model: str, folder: Path, jit: bool, only: str | None) -> dict[str, Any]:
    """From a row's name to what makes its model and callbacks."""
    losses: Any = demo.losses() if model.startswith("ranker") else "mse"

    def built() -> keras.Model:
        return ranker(model == "ranker-sparse") if model.startswith("ranker") else mlp()

    def compiled(made: keras.Model, **options: Any) -> keras.Model:
        made.compile(keras.optimizers.Adagrad(RATE), loss=losses, **{"jit_compile": jit, **options})
        return made

    def watched(**options: Any) -> Any:
        def make() -> Any:
            run = f"run-{len(list(folder.iterdir()))}"
            return compiled(built()), [Watch("bench", run, journal=folder / run, open_recorder=Noted, **options)]

        return make

    def summaries() -> Any:
        kind, net = summarized(str(folder / "summary")), built()
        return compiled(kind(net.input, net.output), jit_compile=False), []

    def board() -> list[Any]:
        return [keras.callbacks.TensorBoard(str(folder / "board"), histogram_freq=1, update_freq=1)]

    made = {
        "bare": lambda: (compiled(built()), []),
        AGAIN: lambda: (compiled(built()), []),
        "Lossguard": watched(),
        "Lossguard without a budget": watched(budget=0.99),
        "Lossguard every stat every step": watched(full_every=1),
        "Lossguard with Clippy": watched(treatment=Clippy()),
        "callback with get_weights": lambda: (compiled(built()), [GetWeights()]),
        "TensorBoard callback, histograms": lambda: (compiled(built()), board()),
        "tf.summary per layer in train_step": summaries,
    }
    if model == "ranker-sparse":
        made = {name: made[name] for name in SPARSE_ROWS}
    if only is not None:
        chosen = {"bare", AGAIN, *only.split(",")}
        made = {name: one for name, one in made.items() if name in chosen}
    return made


def dataset(model: str, steps: int) -> Any:
    batch = BATCH[model]
    x, y = (ranker_data if model.startswith("ranker") else mlp_data)(batch * steps)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)


def measure(
    model: str, rounds: int, steps: int, jit: bool, only: str | None
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """CPU seconds per step of each variant, one value per round; and the agent's own word."""
    data = dataset(model, steps)
    random = np.random.default_rng()
    with tempfile.TemporaryDirectory() as folder:
        made = {name: make() for name, make in variants(model, Path(folder), jit, only).items()}
        watches = {name: one for name, (_, given) in made.items() for one in given if isinstance(one, Watch)}
        for watch in watches.values():
            watch.__enter__()

        def block(name: str) -> float:
            net, callbacks = made[name]
            begin = time.process_time()
            net.fit(data, verbose=0, callbacks=callbacks)
            return (time.process_time() - begin) / steps

        for name in made:
            block(name)  # compile
        seconds: dict[str, list[float]] = {name: [] for name in made}
        for turn in range(rounds):
            for name in random.permutation(list(made)):
                if turn < SLOW_ROUNDS or name not in SLOW_ROWS:
                    seconds[str(name)].append(block(str(name)))
        said = {}
        for name, watch in watches.items():
            recorder = watch._attempts.current and watch._attempts.current.sink
            watch.close()
            # The first block waited for the compiler.
            costs = getattr(recorder, "costs", [])[1:]
            said[name] = statistics.median(costs) if costs else float("nan")
    return seconds, said


def apart(model: str, chosen: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, float]]:
    """The same from a process of its own."""
    given = ["--part", "--model", model, "--steps", str(chosen.steps)]
    given += ["--rounds", str(chosen.rounds or ROUNDS[model]), *(["--jit"] if chosen.jit else [])]
    given += [] if chosen.only is None else ["--only", chosen.only]
    done = subprocess.run([sys.executable, __file__, *given], stdout=subprocess.PIPE, text=True, check=True)
    seconds, said = json.loads(done.stdout.splitlines()[-1])
    return seconds, said


def pairs(values: list[float], bare: list[float], steps: int) -> list[float]:
    """The ratio of each cadence."""
    rounds = max(1, CADENCE // steps)
    starts = range(0, max(1, len(values) - rounds + 1), rounds)
    return [sum(values[at : at + rounds]) / sum(bare[at : at + rounds][: len(values)]) for at in starts]


def interval(ratios: list[float]) -> tuple[float, float]:
    """The 95 % interval of the median; all of them if they are not `ENOUGH`."""
    ordered, count = sorted(ratios), len(ratios)
    tail, at = 0.5**count, 0
    while tail + math.comb(count, at + 1) * 0.5**count <= 0.025:
        at += 1
        tail += math.comb(count, at) * 0.5**count
    return ordered[at], ordered[-1 - at]


def resident(model: str, name: str, steps: int, jit: bool) -> list[float]:
    """MiB of a process that trains one variant for four blocks: see `say_resident`."""
    arguments = ["--resident", name, "--model", model, "--steps", str(steps), *(["--jit"] if jit else [])]
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return [float(one) for one in done.stdout.splitlines()[-1].split()]


def say_resident(model: str, name: str, steps: int, jit: bool) -> None:
    """Prints the largest resident size, the one at the end, and the most that tensors held in the last two blocks."""
    with tempfile.TemporaryDirectory() as folder:
        net, callbacks = variants(model, Path(folder), jit, None)[name]()
        data = dataset(model, steps)
        with contextlib.ExitStack() as stack:
            for one in callbacks:
                if isinstance(one, Watch):
                    stack.enter_context(one)
            for turn in range(4):
                if turn == 2:
                    tf.config.experimental.reset_memory_stats("CPU:0")
                net.fit(data, verbose=0, callbacks=callbacks)
    # Not `ru_maxrss`, which begins with what the process that started this one had.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    tensors = tf.config.experimental.get_memory_info("CPU:0")["peak"] / 2**20
    print(*(int(status[key].split()[0]) / 1024 for key in ("VmHWM", "VmRSS")), tensors)


def memories(model: str, names: Sequence[str], steps: int, jit: bool) -> dict[str, list[float]]:
    """The median of each figure of each row."""
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(MEMORY_TURNS):
        for name in names:
            found[name].append(resident(model, name, steps, jit))
    return {name: [statistics.median(one) for one in zip(*each, strict=True)] for name, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(BATCH), nargs="+", default=list(BATCH))
    parser.add_argument("--rounds", type=int, help=f"of each model in each process; {ROUNDS} if not said")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=CADENCE)
    parser.add_argument("--jit", action="store_true")
    parser.add_argument("--only", help="rows beside the bare model, by their names")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--resident", help=argparse.SUPPRESS)
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if chosen.resident:
        say_resident(chosen.model[0], chosen.resident, chosen.steps, chosen.jit)
        return
    if chosen.part:
        print(json.dumps(measure(chosen.model[0], chosen.rounds, chosen.steps, chosen.jit, chosen.only)))
        return
    found: dict[str, Any] = {}
    for model in chosen.model:
        parts = [apart(model, chosen) for _ in range(chosen.processes)]
        memory: dict[str, list[float]] = {}
        if model == MEMORY_OF and not chosen.no_memory:
            memory = memories(model, [name for name in MEMORY_ROWS if name in parts[0][0]], chosen.steps, chosen.jit)
        found[model] = table(model, chosen, parts, memory)
    if chosen.json:
        chosen.json.write_text(json.dumps({"jit": chosen.jit, "ratios": found}, indent=1))


def table(
    model: str,
    chosen: argparse.Namespace,
    parts: list[tuple[dict[str, list[float]], dict[str, float]]],
    memory: dict[str, list[float]],
) -> dict[str, list[float]]:
    """Print a model's table; its pairs' ratios."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    rounds = f"{len(parts)} x {len(parts[0][0]['bare'])} rounds of {chosen.steps} steps"
    print(f"{model}, batch {BATCH[model]}, jit {chosen.jit}, {rounds};", end=" ")
    print(f"{load:.1f} processes waiting per core")
    memory_head = "  MiB over bare: peak   end   tensors" if memory else ""
    print(f"{'':36} {'CPU ms/step':>12} {'ratio':>7} {'95 % interval':>15} {'agent_cost':>11}{memory_head}")
    ratios: dict[str, list[float]] = {}
    for name in parts[0][0]:
        ratios[name] = [one for seconds, _ in parts for one in pairs(seconds[name], seconds["bare"], chosen.steps)]
        low, high = interval(ratios[name])
        own = [said[name] for _, said in parts if name in said]
        cost = 1e3 * statistics.mean(value for seconds, _ in parts for value in seconds[name])
        agent = f"{statistics.median(own):11.4f}" if own else f"{'':11}"
        more = "".join(f" {one:+9.1f}" for one in over(memory, name)) if memory else ""
        middle = statistics.median(ratios[name])
        print(f"{name:36} {cost:12.1f} {middle:7.3f} {low:7.3f}-{high:.3f} {agent}{more}")
    if model in TARGETS and "Lossguard" in ratios:
        low, high = interval(ratios["Lossguard"])
        target, enough = TARGETS[model], len(ratios["Lossguard"]) >= ENOUGH
        said = "met" if enough and high <= target else "not met" if enough and low > target else "not decided"
        print(f"target {target}: {said}")
    print(flush=True)
    return ratios


def over(memory: dict[str, list[float]], name: str) -> list[float]:
    """A row's MiB over the bare model's."""
    return [mine - bare for mine, bare in zip(memory.get(name, []), memory["bare"], strict=False)]


if __name__ == "__main__":
    main()
