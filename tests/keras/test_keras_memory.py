"""What watching keeps in the trainer's memory: one trace of the step, no graphs of branches, no detectors."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from lossguard.keras import Watch
from lossguard.keras.backends import backend

X, Y = np.linspace(-1, 1, 48, dtype="float32").reshape(16, 3), np.ones((16, 1), "float32")


class OwnStep(keras.Model):
    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


def model(kind: type[keras.Model] = keras.Model, **options: Any) -> keras.Model:
    keras.utils.set_random_seed(7)
    inputs = keras.Input((3,), name="x")
    hidden = keras.layers.Dropout(0.5)(keras.layers.Dense(4, name="hidden")(inputs))
    made = kind(inputs, {"a": keras.layers.Dense(1, name="a")(hidden), "b": keras.layers.Dense(1, name="b")(hidden)})
    made.compile(
        keras.optimizers.Adam(0.1, use_ema=True, gradient_accumulation_steps=2, name="adam"),
        loss={"a": "mse", "b": "mae"},
        metrics={"a": ["mae", "mse"]},
        **{"jit_compile": False, **options},
    )
    return made


def fit(trained: keras.Model, *callbacks: Any) -> dict[str, list[float]]:
    return dict(trained.fit(X, {"a": Y, "b": Y}, batch_size=4, verbose=0, callbacks=callbacks).history)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_step_of_a_model_that_was_not_trained_before_is_traced_once(
    watch: Callable[..., Watch], jit_compile: bool
) -> None:
    traces: list[Any] = []

    def batch_id(inputs: Any) -> Any:
        traces.append(inputs)
        return inputs[0, 0]

    trained = model(jit_compile=jit_compile)
    assert not trained.optimizer.built
    fit(trained, watch(batch_id=batch_id))
    assert len(traces) == 1


def test_what_is_made_before_the_trace_is_what_keras_makes_in_it(watch: Callable[..., Watch]) -> None:
    mine, bare = model(), model()
    assert fit(mine, watch()) == fit(bare)
    for ours, theirs in (
        (mine.weights, bare.weights),
        (mine.optimizer.variables, bare.optimizer.variables),
        (mine.metrics_variables, bare.metrics_variables),
    ):
        assert [one.path for one in ours] == [one.path for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other))


def test_a_model_with_a_step_of_its_own_is_left_to_make_its_state_itself(watch: Callable[..., Watch]) -> None:
    traces: list[Any] = []

    def batch_id(inputs: Any) -> Any:
        traces.append(inputs)
        return inputs[0, 0]

    assert fit(model(OwnStep), watch(batch_id=batch_id)) == fit(model(OwnStep))
    assert len(traces) == 2


def test_a_conditional_keeps_no_graphs_of_its_branches_and_still_has_a_gradient() -> None:
    @tf.function(autograph=False)
    def chosen(value: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(value)
            found = backend.branch(value > 0.0, lambda: value * value, lambda: -value)
        return found, tape.gradient(found, value)

    conditional = next(
        one for one in chosen.get_concrete_function(tf.constant(3.0)).graph.get_operations() if "If" in one.type
    )
    functions = conditional.graph._functions.values()
    assert conditional._true_graph is None
    assert [one for one in functions if one.name.decode() in str(conditional.node_def) and one._cached_graph] == []
    for value, answers in ((3.0, (9.0, 6.0)), (-2.0, (2.0, -1.0))):
        assert [float(one) for one in chosen(tf.constant(value))] == list(answers)


def test_a_trainer_that_leaves_acting_to_others_loads_no_detectors_and_nothing_of_the_sidecar() -> None:
    script = (
        "import sys, lossguard.keras as ours; watch = ours.Watch('ads', 'ranker-7');"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('lossguard.')};"
        "print(sorted(rooms & {'detect', 'sidecar', 'trace', 'gate', 'cli'}))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True, stderr=subprocess.DEVNULL).strip() == "[]"
