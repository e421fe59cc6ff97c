"""What watching costs on Keras's JAX or PyTorch backend: wall-clock of the training step on an accelerator, CPU time
(user + system, all threads) where there is none.

Rows: the bare model; Lossguard as it comes; every stat in every step; with Clippy.

`loop` is a train step of one's own on JAX: compiled, its state donated, data on the device, steps enqueued without
waiting, and waited for at the end of each block. `fit` is Keras's own loop, which waits for the device in every step
for its progress bar's numbers. All rows of a model train in one process, interleaved block by block in random order;
a ratio is the median block over the bare model's, beside it the quartiles of the rounds' ratios, and what Lossguard
says of itself (`agent_cost`). Memory is what the compiled step needs besides its arguments, and what its state holds.
Operations are those that it calls one after the other (with those of its branches). On a CPU, figures to be quoted come
from one pinned core (`taskset -c 1`).

    KERAS_BACKEND=jax python benchmarks/accelerator.py [--model mlp-1024 ...] [--how loop|fit] [--rounds N] [--steps N]
        [--only NAME,NAME] [--json FILE]
"""

import argparse
import itertools
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import keras
import numpy as np

from lossguard.demo import ranker as demo
from lossguard.demo.features import TASKS
from lossguard.keras import Clippy, Watch
from lossguard.recorder import Recorder
from lossguard.wire.frame import Frames
from workloads import mlp, mlp_data, ranker, ranker_data

MODELS = {
    "mlp-256": (mlp, mlp_data, 256),
    "mlp-1024": (mlp, mlp_data, 1024),
    "mlp-8192": (mlp, mlp_data, 8192),
    "ranker-4096": (lambda: ranker(sparse=False), ranker_data, 4096),
    "ranker-16384": (lambda: ranker(sparse=False), ranker_data, 16384),
}
ROWS: dict[str, dict[str, Any] | None] = {
    "bare": None,
    "Lossguard": {},
    "Lossguard every stat every step": {"full_every": 1},
    "Lossguard with Clippy": {"treatment": Clippy()},
}
CALLED = r" = [^\n]*? (?:fusion|dot|convolution|custom-call|copy|sort|scatter|reduce-window)\("
RATE = 1e-6
"""So small that no gradient jumps and sets a burst of full steps off, as the first steps of a training do."""


class Noted(Recorder):
    """A recorder that keeps what the agent says it costs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.costs: list[float] = []

    def record(self, frames: Frames) -> bool:
        if "agent_cost" in frames.schema.scalars:
            column = frames.schema.scalars.index("agent_cost")
            self.costs += frames.scalars[frames.scalars_present[:, column], column].tolist()
        return super().record(frames)


def cost_of(watch: Watch | None) -> float:
    """What it said it costs, the median; without the block that waited for the compiler."""
    recorder = watch and watch._attempts.current and watch._attempts.current.sink
    costs = getattr(recorder, "costs", [])[1:]
    return statistics.median(costs) if costs else float("nan")


def on_device(structure: Any) -> Any:
    return keras.tree.map_structure(keras.ops.convert_to_tensor, structure)


class Loop:
    """A train step of one's own on JAX, and its state."""

    def __init__(self, model: keras.Model, name: str, options: dict[str, Any] | None, folder: Path) -> None:
        import jax

        losses: dict[str, Any] = demo.losses() if name.startswith("ranker") else {"output": "mse"}
        compiled = {task: keras.losses.get(loss) for task, loss in losses.items()}
        kinds = TASKS if name.startswith("ranker") else {"output": "regression"}
        optimizer = keras.optimizers.Adagrad(RATE)
        self.watch: Watch | None = None
        if options is not None:
            logits = [task for task, kind in kinds.items() if kind == "binary"]
            self.watch = Watch(
                "bench", "run", journal=folder, tasks=kinds, logits=logits, open_recorder=Noted, **options
            )
            self.watch.wrap(optimizer)
        optimizer.build(model.trainable_variables)

        def loss_of(trainable: Any, rest: Any, x: Any, y: Any) -> Any:
            outputs, rest = model.stateless_call(trainable, rest, x, training=True)
            y, outputs = (one if isinstance(one, dict) else {"output": one} for one in (y, outputs))
            values = {task: keras.ops.mean(loss(y[task], outputs[task])) for task, loss in compiled.items()}
            total = sum(values.values())
            if self.watch is not None:
                self.watch.observe(total, y, outputs, task_losses=values)
            return total, rest

        def step(state: Any, x: Any, y: Any) -> Any:
            trainable, rest, slots = state
            (_, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable, rest, x, y)
            trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
            return trainable, rest, slots

        self._block_until_ready = jax.block_until_ready
        self._step = jax.jit(step, donate_argnums=0)
        variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
        self._state = tuple([keras.ops.copy(one.value) for one in part] for part in variables)
        self.bytes = sum(one.nbytes for part in self._state for one in part)
        if self.watch is not None:
            self.watch.__enter__()

    def block(self, batches: list[Any], steps: int) -> None:
        for x, y in itertools.islice(itertools.cycle(batches), steps):
            self._state = self._step(self._state, x, y)
            if self.watch is not None:
                self.watch.after_step(self._state[2])
        self._block_until_ready(self._state)

    def program(self, batch: Any) -> tuple[float, int, int]:
        """MiB of the compiled step's temporaries and of its state; operations that it calls, and with its branches'."""
        compiled = self._step.lower(self._state, *batch).compile()
        needs = compiled.memory_analysis()
        text = str(compiled.as_text())
        entry = text[text.index("\nENTRY") :]
        own, whole = (len(re.findall(CALLED, part)) for part in (entry[: entry.index("\n}")], text))
        return (self.bytes + (0 if needs is None else needs.temp_size_in_bytes)) / 2**20, own, whole


class Fit:
    """Keras's own loop."""

    def __init__(self, model: keras.Model, name: str, options: dict[str, Any] | None, folder: Path) -> None:
        self._model = model
        model.compile(keras.optimizers.Adagrad(RATE), loss=demo.losses() if name.startswith("ranker") else "mse")
        self.watch = None if options is None else Watch("bench", "run", journal=folder, open_recorder=Noted, **options)
        if self.watch is not None:
            self.watch.__enter__()

    def block(self, batches: list[Any], steps: int) -> None:
        callbacks = [] if self.watch is None else [self.watch]
        data = (one for one in itertools.islice(itertools.cycle(batches), steps))
        self._model.fit(data, steps_per_epoch=steps, verbose=0, callbacks=callbacks)

    def program(self, batch: Any) -> None:
        return None


def measure(name: str, how: Callable[..., Any], rounds: int, steps: int, only: str | None) -> dict[str, Any]:
    """Milliseconds per step of each row, one value per round; what its program is, see `Loop.program`; its own word."""
    clock = time.process_time if on_cpu() else time.perf_counter
    build, data, size = MODELS[name]
    batches = [on_device(data(size)) for _ in range(2)]
    random = np.random.default_rng(1)
    chosen = [row for row in ROWS if row == "bare" or only is None or row in only.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        made = {row: how(build(), name, ROWS[row], Path(folder, str(place))) for place, row in enumerate(chosen)}
        for one in made.values():
            one.block(batches, steps)  # compiles
            one.block(batches, steps)
        taken: dict[str, list[float]] = {row: [] for row in made}
        for _ in range(rounds):
            for row in random.permutation(chosen):
                begin = clock()
                made[str(row)].block(batches, steps)
                taken[str(row)].append(1e3 * (clock() - begin) / steps)
        program = {row: one.program(batches[0]) for row, one in made.items()}
        said = {row: cost_of(one.watch) for row, one in made.items()}
        for one in made.values():
            if one.watch is not None:
                one.watch.close()
    return {"ms": taken, "program": program, "agent_cost": said}


def table(name: str, how: str, steps: int, found: dict[str, Any]) -> None:
    taken, program = found["ms"], found["program"]
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    print(f"{name}, {how}, {len(taken['bare'])} rounds of {steps} steps; {load:.1f} processes waiting per core")
    unit = "CPU ms/step" if on_cpu() else "ms/step"
    head = f"{'':32} {unit:>11} {'ratio':>7} {'quartiles':>15} {'agent_cost':>11}"
    print(head + ("" if program["bare"] is None else "  MiB over bare  operations"))
    for row, values in taken.items():
        ratios = [mine / bare for mine, bare in zip(values, taken["bare"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        ratio, cost = statistics.median(values) / statistics.median(taken["bare"]), found["agent_cost"][row]
        more = ""
        if program["bare"] is not None:
            size, own, whole = program[row]
            more = f" {size - program['bare'][0]:+14.1f} {own:5} ({whole:4})"
        line = f"{row:32} {statistics.median(values):11.3f} {ratio:7.3f} {low:7.3f}-{high:.3f}"
        print(f"{line} {'' if cost != cost else f'{cost:.4f}':>11}{more}")
    print(flush=True)


def on_cpu() -> bool:
    if keras.backend.backend() == "jax":
        import jax

        return bool(jax.default_backend() == "cpu")
    import torch

    return not torch.cuda.is_available()


def device() -> str:
    if keras.backend.backend() == "jax":
        import jax

        return f"JAX {jax.__version__}, {jax.devices()[0].device_kind}"
    import torch

    return f"PyTorch {torch.__version__}, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(MODELS), nargs="+", default=list(MODELS))
    parser.add_argument("--how", choices=("loop", "fit"), default="loop")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--only", help="rows beside the bare model, by their names")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    print(f"Keras {keras.__version__} on {device()}", flush=True)
    found = {}
    for name in chosen.model:
        how = Loop if chosen.how == "loop" else Fit
        found[name] = measure(name, how, chosen.rounds, chosen.steps, chosen.only)
        table(name, chosen.how, chosen.steps, found[name])
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
