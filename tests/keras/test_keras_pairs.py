"""Two models in one script, each with its optimizer and a loop of its own: the two halves of a GAN.

A Watch for each half, or one for both; the weights are those of the bare optimizers to the last bit.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from conftest import MemorySink
from lossguard.keras import Watch

ROUNDS, PER_ROUND = 4, 2


def play(of_maker: Watch | None, of_critic: Watch | None) -> tuple[dict[str, list[float]], list[np.ndarray]]:
    """Losses by half, and all weights and slots at the end. Both models have the same names, as in copied code."""
    keras.utils.set_random_seed(1)
    maker = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")], name="net")
    critic = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="dense")], name="net")
    optimizers = {"maker": keras.optimizers.Adam(0.01), "critic": keras.optimizers.Adam(0.02)}
    watches = {"maker": of_maker, "critic": of_critic}
    for half, one in watches.items():
        if one is not None:
            one.wrap(optimizers[half])

    def step(half: str, model: Any, loss_of: Callable[[Any, Any], Any]) -> Any:
        @tf.function
        def update(noise: Any, true: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = loss_of(noise, true)
            if (one := watches[half]) is not None:
                one.observe(loss)
            optimizers[half].apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
            return loss

        return update

    steps = {
        "critic": step("critic", critic, lambda z, x: tf.reduce_mean(critic(maker(z)) - critic(x))),
        "maker": step("maker", maker, lambda z, x: -tf.reduce_mean(critic(maker(z)))),
    }
    random = np.random.default_rng(0)
    losses: dict[str, list[float]] = {"maker": [], "critic": []}
    together = of_maker is of_critic
    with ExitStack() as stack:
        for one in {id(one): one for one in watches.values() if one is not None}.values():
            stack.enter_context(one)
        for _ in range(ROUNDS):
            for half in ["critic"] * PER_ROUND + ["maker"]:
                noise, true = (tf.constant(random.normal(size=(8, n)), tf.float32) for n in (4, 3))
                losses[half].append(float(steps[half](noise, true)))
                if (one := watches[half]) is not None and (half == "maker" or not together):
                    one.after_step()
    state = [*maker.weights, *critic.weights, *optimizers["maker"].variables, *optimizers["critic"].variables]
    return losses, [variable.numpy() for variable in state]


@pytest.fixture(scope="module")
def bare() -> tuple[dict[str, list[float]], list[np.ndarray]]:
    return play(None, None)


def same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    assert all(np.array_equal(v, w) for v, w in zip(one, other, strict=True))


def test_a_watch_for_each_half_records_its_own_updates(
    watch: Callable[..., Watch], sinks: list[MemorySink], bare: tuple[dict[str, list[float]], list[np.ndarray]]
) -> None:
    losses, state = play(watch(full_every=1), watch(full_every=1))
    same(state, bare[1])
    assert [sink.steps for sink in sinks] == [list(range(1, ROUNDS + 1)), list(range(1, ROUNDS * PER_ROUND + 1))]
    for sink, half in zip(sinks, ("maker", "critic"), strict=True):
        assert (sink.ended, sink.drops) == ("finished", {})
        assert sink.blocks[0].schema.layers == ("net/dense/kernel", "net/dense/bias")
        np.testing.assert_allclose(sink.scalar("loss"), losses[half], rtol=1e-6)


def test_one_watch_of_both_halves_tells_layers_of_one_name_apart(
    watch: Callable[..., Watch], sinks: list[MemorySink], bare: tuple[dict[str, list[float]], list[np.ndarray]]
) -> None:
    both = watch(full_every=1)
    _, state = play(both, both)
    same(state, bare[1])
    (sink,) = sinks
    assert (sink.ended, sink.drops) == ("finished", {})
    assert sink.steps == list(range(1, ROUNDS + 1))
    layers = ("net/dense/kernel", "net/dense/bias", "net/dense/kernel#2", "net/dense/bias#2")
    assert sink.blocks[0].schema.layers == layers
    assert all((sink.stat(layer, "weight_norm") > 0).all() for layer in layers[::2])
