"""What watching costs on an accelerator: wall-clock of the training step on Keras's JAX or PyTorch backend.

Rows: the bare model; Lossguard as it comes; every stat in every step; with Clippy.

`loop` is a train step of one's own on JAX: compiled, its state donated, data on the device, steps enqueued without
waiting, and waited for at the end of each block. `fit` is Keras's own loop, which waits for the device in every step
for its progress bar's numbers. All rows of a model train in one process, interleaved block by block in random order;
a ratio is the median block over the bare model's, beside it the quartiles of the rounds' ratios. Memory is what the
compiled step needs besides its arguments, and what its state holds.

    KERAS_BACKEND=jax python benchmarks/accelerator.py [--model mlp-1024 ...] [--how loop|fit] [--rounds N] [--steps N]
        [--only NAME,NAME] [--json FILE]
"""

import argparse
import itertools
import json
import os
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
from workloads import mlp, mlp_data, ranker, ranker_data

MODELS = {
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
RATE = 1e-6
"""So small that no gradient jumps and sets a burst of full steps off, as the first steps of a training do."""


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
            self.watch = Watch("bench", "run", journal=folder, tasks=kinds, logits=logits, **options)
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

    def memory(self, batch: Any) -> float:
        """MiB of the compiled step's temporaries and of its state."""
        needs = self._step.lower(self._state, *batch).compile().memory_analysis()
        return (self.bytes + (0 if needs is None else needs.temp_size_in_bytes)) / 2**20


class Fit:
    """Keras's own loop."""

    def __init__(self, model: keras.Model, name: str, options: dict[str, Any] | None, folder: Path) -> None:
        self._model = model
        model.compile(keras.optimizers.Adagrad(RATE), loss=demo.losses() if name.startswith("ranker") else "mse")
        self.watch = None if options is None else Watch("bench", "run", journal=folder, **options)
        if self.watch is not None:
            self.watch.__enter__()

    def block(self, batches: list[Any], steps: int) -> None:
        callbacks = [] if self.watch is None else [self.watch]
        data = (one for one in itertools.islice(itertools.cycle(batches), steps))
        self._model.fit(data, steps_per_epoch=steps, verbose=0, callbacks=callbacks)

    def memory(self, batch: Any) -> float:
        return float("nan")


def measure(name: str, how: Callable[..., Any], rounds: int, steps: int, only: str | None) -> dict[str, Any]:
    """Milliseconds per step of each row, one value per round, and MiB."""
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
                begin = time.perf_counter()
                made[str(row)].block(batches, steps)
                taken[str(row)].append(1e3 * (time.perf_counter() - begin) / steps)
        memory = {row: one.memory(batches[0]) for row, one in made.items()}
        for one in made.values():
            if one.watch is not None:
                one.watch.close()
    return {"ms": taken, "MiB": memory}


def table(name: str, how: str, steps: int, found: dict[str, Any]) -> None:
    taken, memory = found["ms"], found["MiB"]
    print(f"{name}, {how}, {len(taken['bare'])} rounds of {steps} steps")
    print(f"{'':36} {'ms/step':>9} {'ratio':>7} {'quartiles':>15} {'MiB over bare':>14}")
    for row, values in taken.items():
        ratios = [mine / bare for mine, bare in zip(values, taken["bare"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        ratio = statistics.median(values) / statistics.median(taken["bare"])
        more = memory[row] - memory["bare"]
        print(f"{row:36} {statistics.median(values):9.3f} {ratio:7.3f} {low:7.3f}-{high:.3f} {more:14.1f}")
    print(flush=True)


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
