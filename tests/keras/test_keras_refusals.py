"""What bare Keras cannot train under a strategy is refused before the first step."""

from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf

from lossguard.keras import Watch


def compiled(replicas: int, optimizer: dict[str, Any], **options: Any) -> keras.Model:
    with tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(replicas)]).scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1, **optimizer), "mse", **options)
    return model


@pytest.mark.parametrize(
    ("replicas", "optimizer", "options", "sentence"),
    [
        (2, {}, {"steps_per_execution": 4}, "model: Keras cannot run several steps per execution under Mirrored"),
        (2, {"gradient_accumulation_steps": 2}, {}, "optimizer: Keras cannot accumulate gradients under Mirrored"),
        (1, {"gradient_accumulation_steps": 2}, {}, "optimizer: Keras cannot accumulate gradients under Mirrored"),
        (2, {}, {"jit_compile": True}, "model: XLA cannot compile a step of several CPU replicas"),
    ],
    ids=["steps per execution", "accumulation", "accumulation on one replica", "XLA on CPUs"],
)
def test_what_keras_cannot_do_over_replicas_is_refused_before_the_first_step(
    watch: Callable[..., Watch], replicas: int, optimizer: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    model = compiled(replicas, optimizer, **options)
    with pytest.raises(ValueError, match=sentence):
        watch().attach(model)
    assert "_backend_update_step" not in model.optimizer.__dict__, "a refused optimizer stays bare"


def test_what_keras_can_do_is_not_refused(watch: Callable[..., Watch]) -> None:
    for replicas, options in ((2, {}), (1, {"steps_per_execution": 4}), (1, {"jit_compile": True})):
        watch().attach(compiled(replicas, {}, **options))


def test_a_loop_of_ones_own_that_accumulates_is_refused_where_it_is_wrapped(watch: Callable[..., Watch]) -> None:
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="keras#20582"):
        watch().wrap(optimizer)
