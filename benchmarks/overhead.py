"""What watching costs the trainer, with its peers beside it.

Rows: the bare model; Lossguard as it comes; measuring every stat in every step; with Clippy; a naive callback that
copies all weights every step; TensorBoard's callback with histograms every epoch (its finest setting); per-layer
`tf.summary` in a custom train step. All variants train in one process, interleaved block of steps by block in random
order, so that they share the machine's moods; reported is the median over rounds of the CPU time (user + system, all
threads) per step over the bare model's in the same round, with the quartiles.

    python benchmarks/overhead.py [--model mlp-256|mlp-1024|ranker] [--rounds 15] [--steps 32] [--jit]
        [--only NAME,NAME] [--json FILE]
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from lossguard.keras import Clippy, Watch


def mlp(kind: type[keras.Model] = keras.Model) -> keras.Model:
    """4 x 1024, 3.4 million parameters."""
    keras.utils.set_random_seed(1)
    inputs = hidden = keras.Input((256,))
    for _ in range(4):
        hidden = keras.layers.Dense(1024, activation="relu")(hidden)
    return kind(inputs, keras.layers.Dense(1)(hidden))


def ranker(kind: type[keras.Model] = keras.Model) -> keras.Model:
    """The demo's shape: a table of 39,000 rows of 8, two cross layers, LayerNorm, 256 x 4, six heads."""
    keras.utils.set_random_seed(1)
    codes, numbers = keras.Input((28,), dtype="int32"), keras.Input((12,))
    table = keras.layers.Embedding(39_000, 8, name="embedding")(codes)
    first = keras.layers.Concatenate()([keras.layers.Flatten()(table), numbers])
    crossed = first
    for _ in range(2):
        gate = keras.layers.Dense(first.shape[-1])(crossed)
        crossed = keras.layers.Add()([keras.layers.Multiply()([first, gate]), crossed])
    shared = keras.layers.LayerNormalization()(crossed)
    for _ in range(4):
        shared = keras.layers.Dense(256, activation="relu")(shared)
    heads = {name: keras.layers.Dense(1, name=name)(shared) for name in TASKS}
    return kind([codes, numbers], heads)


TASKS = {"click": True, "like": True, "long_view": True, "finish": True, "ratio": False, "play": False}


def ranker_data(count: int) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    labels = {
        name: (random.random((count, 1)) < 0.3 if binary else random.normal(size=(count, 1))).astype("float32")
        for name, binary in TASKS.items()
    }
    codes = random.integers(0, 39_000, (count, 28)).astype("int32")
    return (codes, random.normal(size=(count, 12)).astype("float32")), labels


def mlp_data(count: int) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    return random.normal(size=(count, 256)).astype("float32"), random.normal(size=(count, 1)).astype("float32")


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


def variants(model: str, folder: Path, jit: bool) -> dict[str, tuple[keras.Model, list[Any]]]:
    build = ranker if model == "ranker" else mlp
    loss: Any = "mse"
    if model == "ranker":
        loss = {name: keras.losses.BinaryCrossentropy(from_logits=True) if b else "mse" for name, b in TASKS.items()}

    def compiled(made: keras.Model, **options: Any) -> keras.Model:
        made.compile(keras.optimizers.Adagrad(0.01), loss=loss, **{"jit_compile": jit, **options})
        return made

    def watch(name: str, **options: Any) -> list[Any]:
        return [Watch("bench", name, journal=folder / name, **options).__enter__()]

    board = keras.callbacks.TensorBoard(str(folder / "board"), histogram_freq=1, update_freq=1)
    return {
        "bare": (compiled(build()), []),
        "Lossguard": (compiled(build()), watch("default")),
        "Lossguard, every stat every step": (compiled(build()), watch("full", full_every=1)),
        "Lossguard with Clippy": (compiled(build()), watch("clippy", treatment=Clippy())),
        "callback with get_weights": (compiled(build()), [GetWeights()]),
        "TensorBoard callback, histograms": (compiled(build()), [board]),
        "tf.summary per layer in train_step": (
            compiled(build(summarized(str(folder / "summary"))), jit_compile=False),
            [],
        ),
    }


def measure(model: str, batch: int, rounds: int, steps: int, jit: bool, only: str | None) -> dict[str, list[float]]:
    """CPU seconds per step of each variant, one value per round."""
    x, y = (ranker_data if model == "ranker" else mlp_data)(batch * steps)
    random = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        made = variants(model, Path(folder), jit)
        if only is not None:
            parts = ["bare", *only.split(",")]
            made = {name: one for name, one in made.items() if any(part in name for part in parts)}

        def block(name: str) -> float:
            net, callbacks = made[name]
            data = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)
            begin = time.process_time()
            net.fit(data, verbose=0, callbacks=callbacks)
            return (time.process_time() - begin) / steps

        for name in made:
            block(name)  # compile
            block(name)
        seconds: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(rounds):
            for name in random.permutation(list(made)):
                seconds[str(name)].append(block(str(name)))
        for _, callbacks in made.values():
            for callback in callbacks:
                if isinstance(callback, Watch):
                    callback.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["mlp-256", "mlp-1024", "ranker"], default="mlp-1024")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--jit", action="store_true")
    parser.add_argument("--only", help="rows, by a part of their names, beside the bare model")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    batch = {"mlp-256": 256, "mlp-1024": 1024, "ranker": 4096}[chosen.model]
    seconds = measure(chosen.model, batch, chosen.rounds, chosen.steps, chosen.jit, chosen.only)
    print(f"{chosen.model}, batch {batch}, jit {chosen.jit}, {chosen.rounds} rounds of {chosen.steps} steps")
    print(f"{'':38} {'CPU ms/step':>12} {'ratio':>7} {'quartiles':>15}")
    ratios: dict[str, list[float]] = {}
    for name, values in seconds.items():
        ratios[name] = [mine / bare for mine, bare in zip(values, seconds["bare"], strict=True)]
        low, middle, high = statistics.quantiles(ratios[name], n=4)
        print(f"{name:38} {1e3 * statistics.median(values):12.1f} {middle:7.3f} {low:7.3f}-{high:.3f}")
    if chosen.json:
        chosen.json.write_text(json.dumps({"batch": batch, "jit": chosen.jit, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
