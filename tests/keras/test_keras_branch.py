"""The conditional of a step: one operation on CPU (decision 0215), which gives what it gave with its switches."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from conftest import MemorySink
from lossguard.keras import Watch
from lossguard.keras.backends import backend

SIGNATURE = [tf.TensorSpec([None], "float32"), tf.TensorSpec([], "bool")]


def sum_or_double(x: Any, wanted: Any) -> Any:
    return backend.branch(wanted, lambda: 2.0 * tf.reduce_sum(x), lambda: tf.reduce_sum(x))


def lowered(graph: Any) -> list[bool]:
    ops = [op for op in graph.get_operations() if op.type in ("If", "StatelessIf")]
    return [op.get_attr("_lower_using_switch_merge") for op in ops]


def test_on_cpu_a_branch_stays_one_operation_and_gives_what_its_function_gives() -> None:
    run = tf.function(sum_or_double, autograph=False, input_signature=SIGNATURE)
    assert lowered(run.get_concrete_function().graph) == [False]
    assert [float(run(tf.ones(3), tf.constant(wanted))) for wanted in (True, False)] == [6.0, 3.0]
    assert float(sum_or_double(tf.ones(3), tf.constant(True))) == 6.0
    within_xla = tf.function(run, autograph=False, jit_compile=True)
    assert float(within_xla(tf.ones(3), tf.constant(True))) == 6.0


def test_within_a_strategy_it_is_lowered_for_its_operations_may_lie_on_several_devices() -> None:
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        run = tf.function(sum_or_double, autograph=False, input_signature=SIGNATURE).get_concrete_function()
    assert lowered(run.graph) == [True]


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("full_every", [1, 2])
def test_layers_on_two_devices_and_one_that_the_loss_does_not_reach_train_as_without_us(
    watch: Callable[..., Watch], sinks: list[MemorySink], full_every: int
) -> None:
    def fit(*callbacks: Any) -> list[Any]:
        keras.utils.set_random_seed(1)
        inputs = keras.Input((3,))
        with tf.device("CPU:1"):
            hidden = keras.layers.Dense(4, "relu")(inputs)
        outputs = keras.layers.Dense(1)(hidden)
        model = keras.Model(inputs, outputs)
        with tf.device("CPU:1"):
            model.unused = keras.layers.Dense(2)
            model.unused.build((None, 2))
        model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
        data = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
        model.fit(data, data.sum(1, keepdims=True), batch_size=8, verbose=0, shuffle=False, callbacks=list(callbacks))
        assert {weight.value.device[-5:] for weight in model.trainable_variables} == {"CPU:0", "CPU:1"}
        return [weight.numpy() for weight in model.trainable_variables]

    for mine, bare in zip(fit(watch(full_every=full_every)), fit(), strict=True):
        assert np.array_equal(mine, bare)
    (sink,) = sinks
    assert sink.steps == [1, 2, 3, 4]
    assert len(sink.blocks[0].schema.layers) == 6
    assert sink.measured("weight_norm").tolist() == [step % full_every == 0 for step in range(4)]
