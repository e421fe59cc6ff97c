"""Tasks are found where Keras finds them, whatever forms outputs, losses, labels and weights have, or that they are not
is told."""

import doctest
import logging
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from conftest import MemorySink
from lossguard.keras import Watch, places

RANDOM = np.random.default_rng(5)
X = RANDOM.normal(size=(16, 4)).astype("float32")
Z, A = (RANDOM.random((16, 1)) < 0.4).astype("float32"), RANDOM.normal(size=(16, 1)).astype("float32")
WZ, WA = RANDOM.random((2, 16)).astype("float32")
BCE, MSE = "binary_crossentropy", "mean_squared_error"


class Own(keras.Model):
    """Its outputs have no names before it is called, and `z` stands before `a`."""

    def __init__(self, form: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.z, self.a = keras.layers.Dense(1, activation="sigmoid", name="z"), keras.layers.Dense(1, name="a")
        self.form = form

    def call(self, x: Any) -> Any:
        return self.form(self.z(x), self.a(x))


class Deaf(Own):
    """A step that computes its loss by itself."""

    def train_step(self, data: Any) -> Any:
        x, (_, a) = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(x)[1] - a))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


def functional(form: Callable[[Any, Any], Any]) -> keras.Model:
    x = keras.Input((4,))
    z, a = keras.layers.Dense(1, activation="sigmoid", name="z")(x), keras.layers.Dense(1, name="a")(x)
    return keras.Model(x, form(z, a))


def listed(z: Any, a: Any) -> list[Any]:
    return [z, a]


def named(z: Any, a: Any) -> dict[str, Any]:
    return {"z": z, "a": a}


def named_anew(z: Any, a: Any) -> dict[str, Any]:
    return {"a": a, "z": z}


CASES: dict[str, tuple[Any, Any, Any, Any, Any]] = {
    "a list": (functional, listed, [BCE, MSE], [Z, A], [WZ, WA]),
    "a list, losses in another order": (functional, listed, {"a": MSE, "z": BCE}, [Z, A], None),
    "a list, labels in another order": (functional, listed, {"a": MSE, "z": BCE}, {"a": A, "z": Z}, None),
    "a list, the second has no loss": (functional, listed, [BCE, None], [Z], WZ),
    "a list, the first has no loss": (functional, listed, [None, MSE], [A], None),
    "a dictionary": (functional, named, {"z": BCE, "a": MSE}, {"a": A, "z": Z}, {"z": WZ, "a": WA}),
    "a dictionary, one has a loss": (functional, named, {"z": BCE}, {"z": Z}, None),
    "a dictionary and a list of labels": (functional, named, {"z": BCE}, [A, Z], {"z": WZ, "a": WA}),
    "a dictionary and lists": (functional, named_anew, [MSE, BCE], [A, Z], None),
    "own, a list": (Own, listed, [BCE, MSE], [Z, A], None),
    "own, a dictionary": (Own, named, {"a": MSE, "z": BCE}, {"z": Z, "a": A}, None),
    "own, a dictionary and a list of losses": (Own, named, [MSE, BCE], {"z": Z, "a": A}, None),
    "own, a dictionary and lists": (Own, named_anew, [MSE, None], [A, Z], {"z": WZ, "a": WA}),
}


@pytest.mark.parametrize(("make", "form", "loss", "labels", "weights"), CASES.values(), ids=CASES)
def test_the_losses_of_the_tasks_add_up_to_the_one_that_is_minimised(
    make: Any,
    form: Any,
    loss: Any,
    labels: Any,
    weights: Any,
    watch: Callable[..., Watch],
    sinks: list[MemorySink],
) -> None:
    keras.utils.set_random_seed(1)
    model = make(form)
    model.compile("sgd", loss, run_eagerly=True)
    with watch().attach(model) as mine:
        total = model.train_on_batch(X, labels, sample_weight=weights)
        mine.after_step()
    names = sinks[0].blocks[0].schema.scalars
    parts = {name: sinks[0].scalar(name)[0] for name in names if name.startswith("loss/")}
    given = [one for one in (loss if isinstance(loss, list) else loss.values()) if one is not None]
    assert len(parts) == len(given)
    assert sum(parts.values()) == pytest.approx(float(np.ravel(total)[0]), rel=1e-5)
    # Labels of z are 0 and 1, and it is z that is binary.
    assert sum(name.startswith("batch_auc/") for name in names) == given.count(BCE)


@pytest.mark.parametrize("loss", [[BCE, MSE], MSE], ids=["a loss each", "one loss for all"])
def test_outputs_without_names_take_the_names_that_are_said_in_their_order(
    loss: Any, watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    model = Own(listed)
    model.compile("sgd", loss, run_eagerly=True)
    with watch(tasks={"click": "binary", "play": "regression"}).attach(model) as mine:
        model.train_on_batch(X, [Z, A])
        mine.after_step()
    assert sinks[0].scalar("label_mean/click")[0] == pytest.approx(Z.mean())
    assert sinks[0].scalar("label_std/play")[0] == pytest.approx(A.std(), rel=1e-5)


def test_a_step_whose_loss_is_not_heard_is_told_of_once_in_an_attempt(
    watch: Callable[..., Watch], sinks: list[MemorySink], caplog: pytest.LogCaptureFixture
) -> None:
    for make, told in ((Deaf, 1), (Own, 0)):
        caplog.clear()
        model = make(listed)
        model.compile("sgd", [BCE, MSE], run_eagerly=True)
        with caplog.at_level(logging.WARNING, "lossguard"):
            model.fit(X, [Z, A], batch_size=4, verbose=0, callbacks=[watch(fetch_steps=1)])
        assert sum("let your train_step call self.compute_loss" in one.getMessage() for one in caplog.records) == told
        assert len(caplog.records) == told
        assert sinks[-1].steps == [1, 2, 3, 4]


def test_a_task_of_which_the_steps_say_nothing_is_named(
    watch: Callable[..., Watch], sinks: list[MemorySink], caplog: pytest.LogCaptureFixture
) -> None:
    optimizer, weight = keras.optimizers.SGD(0.1), keras.Variable([1.0])
    mine = watch(tasks={"click": "binary", "play": "regression"})
    mine.wrap(optimizer)
    with mine:
        mine.observe(tf.constant(1.0), {"play": tf.constant([1.0])}, {"play": weight.value})
        optimizer.apply([tf.constant([1.0])], [weight])
        mine.after_step()
    (told,) = [record.getMessage() for record in caplog.records]
    assert "no outputs of the task 'click'" in told
    assert "rmse/play" in sinks[0].blocks[0].schema.scalars


def test_the_examples_of_places_hold() -> None:
    assert doctest.testmod(places).failed == 0
