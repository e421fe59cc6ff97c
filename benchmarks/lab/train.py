"""Trains configurations that share a compiled step, watched by the product's own hook.

Guarantees: the same configuration, data and code give the same weights and the same recorded numbers, bit for bit, on
one thread of one machine, whatever ran before in the process. What is recorded of a step is what `lossguard.keras`
records: the frames go to the detectors as a service would see them.
"""

import hashlib
import math
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lab import model as lab_model
from lab import order, treatments
from lab.config import CLICK, Config
from lab.data import SPARSE, LabData
from lossguard.demo import evaluate
from lossguard.demo.features import TASKS
from lossguard.keras.optimizer import Hook
from lossguard.keras.ring import frames_of
from lossguard.keras.scalars import StepScalars
from lossguard.keras.sharpness import RATIO, Sharpness
from lossguard.keras.tasks import Task
from lossguard.wire.frame import Frames

RING_ROWS = 4096
"""Steps of the longest training."""
SAMPLE = 4096
"""Held-out rows in an evaluation during the training."""
CHUNK = 4096
UNWATCHED = ("embedding",)
"""The table has three quarters of the weights and is not treated: measuring it would cost as much as the rest."""
SHARPNESS_ROWS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What one training left.

    Attributes:
        frames: of every step.
        final: held-out metrics after the last one.
        curve: see `Outcome`.
        sharpness: [step, sharpness_ratio].
        digest: SHA-256 of the final weights.
        cpu_seconds, wall_seconds: of the training.
    """

    frames: Frames
    final: dict[str, float]
    curve: list[list[float]]
    sharpness: list[list[float]]
    digest: str
    cpu_seconds: float
    wall_seconds: float


class Trainer:
    """One compiled step, and the model and optimizer it runs on.

    Args:
        config: any of the configurations that will be trained; they agree in `Config.compiled`.
        data: the rows, the same for all.
    """

    def __init__(self, config: Config, data: LabData) -> None:
        begin = time.process_time()
        self.compiled = config.compiled
        self._data = data
        self._categorical, self._numeric, labels = _tensors(data, config.sparse, config.raw)
        self._labels = {task: labels[task] for task in config.tasks}
        self.model = lab_model.build(
            config.bottom, data.examples.rows, self._categorical.shape[1], self._numeric.shape[1], config.tasks
        )
        self.optimizer = _optimizer(config)
        self.optimizer.build(self.model.trainable_variables)
        self._slots = [variable.numpy() for variable in self.optimizer.variables]
        self._losses = {
            task: (
                keras.losses.BinaryCrossentropy(from_logits=True)
                if TASKS[task] == "binary"
                else keras.losses.MeanSquaredError()
            )
            for task in config.tasks
        }
        known = tuple(
            Task(task, task, TASKS[task], TASKS[task] == "binary", self._losses[task]) for task in config.tasks
        )
        self._scalars = StepScalars(known)
        self._treatments = treatments.make(config.treatment, config.settings)
        self._hook = Hook(
            self.optimizer, self._treatments, self._scalars.of_step, RING_ROWS, config.full_every, UNWATCHED
        )
        self._kept = [
            (one, keras.ops.convert_to_numpy(one)) for treatment in self._treatments for one in _variables(treatment)
        ]
        self._rows = tf.Variable(
            np.zeros((1, config.batch), np.int32), shape=(None, config.batch), trainable=False, name="rows"
        )
        self._rates = tf.Variable(np.zeros(1, np.float32), shape=(None,), trainable=False, name="rates")
        self._steps = tf.function(self._run_steps, autograph=False)
        self._predict = tf.function(self._predicted, autograph=False)
        lab_model.initialise(self.model, 0)
        self._load(config.but(steps=2, seed=0))
        self._steps(tf.constant(0), tf.constant(1))
        self._predict(tf.zeros([CHUNK], tf.int32))
        self.compile_seconds = time.process_time() - begin

    # --- inside the graph

    def _inputs(self, rows: Any) -> dict[str, Any]:
        return {"categorical": tf.gather(self._categorical, rows), "numeric": tf.gather(self._numeric, rows)}

    def _total(self, rows: Any, *, training: bool) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        outputs = self.model(self._inputs(rows), training=training)
        labels = {task: tf.gather(values, rows) for task, values in self._labels.items()}
        losses = [self._losses[task](labels[task], outputs[task]) for task in self._labels]
        return tf.add_n(losses), labels, outputs

    def _run_steps(self, first: Any, last: Any) -> Any:
        variables = self.model.trainable_variables

        def body(step: Any) -> tuple[Any]:
            self.optimizer.learning_rate.assign(self._rates[step])
            with tf.GradientTape() as tape:
                total, labels, outputs = self._total(self._rows[step], training=True)
            gradients = tape.gradient(total, [variable.value for variable in variables])
            self._scalars.observe(total, labels, outputs)
            self.optimizer.apply(gradients, variables)
            return (step + 1,)

        return tf.while_loop(lambda step: step < last, body, (first,), parallel_iterations=1)

    def _predicted(self, rows: Any) -> dict[str, Any]:
        return self.model(self._inputs(rows), training=False)

    # --- one training

    def run(self, config: Config) -> Trained:
        """Train from fresh weights and slots."""
        if config.compiled != self.compiled:
            raise ValueError(f"config: needs a step of its own, {config.compiled}, this is {self.compiled}")
        if config.steps > RING_ROWS:
            raise ValueError(f"steps: at most {RING_ROWS}, got {config.steps}")
        cpu, wall = time.process_time(), time.monotonic()
        held_out = self._load(config)
        probe = self._probe(config)
        curve: list[list[float]] = []
        sharpness: list[list[float]] = []
        stops = {round(config.steps * k / config.evaluations) for k in range(1, config.evaluations)}
        probes = set(range(config.sharpness_every, config.steps, config.sharpness_every)) if probe else set()
        step = 0
        for stop in sorted(stops | probes | {config.steps}):
            self._steps(tf.constant(step), tf.constant(stop))
            step = stop
            if probe is not None and stop in probes:
                sharpness.append([stop, probe.probe().get(RATIO, math.nan)])
            if stop in stops:
                sample = held_out[:: max(1, len(held_out) // SAMPLE)]
                curve.append(_point(stop, self._metrics(sample)))
        final = self._metrics(held_out)
        curve.append(_point(config.steps, final))
        frames = self._frames(config.steps)
        return Trained(
            frames,
            final,
            curve,
            sharpness,
            self._digest(),
            time.process_time() - cpu,
            time.monotonic() - wall,
        )

    def _load(self, config: Config) -> Any:
        """Fresh weights, slots and batches; the rows of the judged day."""
        examples = self._data.until(self._data.examples.last_day - config.judged_day).examples
        lab_model.initialise(self.model, config.seed)
        for variable, value in zip(self.optimizer.variables, self._slots, strict=True):
            variable.assign(value)
        for variable, value in self._kept:
            variable.assign(value)
        self._rows.assign(order.rows(config, examples))
        self._rates.assign(order.rates(config))
        return np.arange(examples.training, len(examples), dtype=np.int32)

    def _probe(self, config: Config) -> Sharpness | None:
        if not config.sharpness_every:
            return None
        held = np.random.default_rng([config.seed, 0x5A47]).integers(0, self._data.examples.training, SHARPNESS_ROWS)
        rows = tf.constant(held.astype(np.int32))
        probe = Sharpness(
            loss=lambda: self._total(rows, training=False)[0], every=config.sharpness_every, exclude=UNWATCHED
        )
        probe.check([self.optimizer], None)
        return probe

    def _metrics(self, rows: Any) -> dict[str, float]:
        parts: dict[str, list[Any]] = {task: [] for task in self._labels}
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            # One shape for every chunk: another one would be traced anew.
            full = np.concatenate([chunk, np.zeros(CHUNK - len(chunk), np.int32)])
            for task, output in self._predict(tf.constant(full)).items():
                parts[task].append(output.numpy().ravel()[: len(chunk)])
        labels = self._data.examples.labels
        return evaluate.metrics(
            {task: labels[task][rows] for task in parts}, {task: np.concatenate(part) for task, part in parts.items()}
        )

    def _frames(self, steps: int) -> Frames:
        ring = self._hook.make_ring()
        return frames_of(ring.layout, 1, ring.snapshot(1, steps).numpy(), np.full(steps, np.nan))

    def _digest(self) -> str:
        found = hashlib.sha256()
        for variable in self.model.trainable_variables:
            found.update(variable.numpy().tobytes())
        return found.hexdigest()


@cache
def _tensors(data: LabData, sparse: bool, raw: bool) -> tuple[Any, Any, dict[str, Any]]:
    """The columns and labels for TensorFlow, one copy for all steps: it does not give back what a function captured."""
    columns = data.examples.categorical if sparse else np.delete(data.examples.categorical, SPARSE, axis=1)
    numbers = np.concatenate([data.examples.numeric, data.raw], 1) if raw else data.examples.numeric
    labels = {task: tf.constant(values[:, None]) for task, values in data.examples.labels.items()}
    return tf.constant(columns), tf.constant(numbers), labels


def _variables(treatment: Any) -> Any:
    return getattr(treatment, "variables", ())


def _point(step: int, metrics: dict[str, float]) -> list[float]:
    return [step, metrics.get(f"auc/{CLICK}", math.nan), metrics.get("rmse/play_time", math.nan)]


def _optimizer(config: Config) -> Any:
    optimizers = keras.optimizers
    if config.optimizer == "adagrad":
        return optimizers.Adagrad(config.learning_rate, initial_accumulator_value=0.1)
    if config.optimizer == "adam":
        return optimizers.Adam(config.learning_rate)
    if config.optimizer == "rmsprop":
        return optimizers.RMSprop(config.learning_rate)
    return optimizers.SGD(config.learning_rate)
