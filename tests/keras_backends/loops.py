"""A loop of one's own, as each backend writes it."""

from typing import Any

import keras
from fits import BACKEND, Sink, model_of_two_tasks, values, watch_of

from click_and_play import examples
from lossguard.keras import Watch


def own_loop() -> Any:
    model = model_of_two_tasks()
    made = keras.optimizers.Adam(0.02)
    sinks: list[Sink] = []
    mine = watch_of(sinks, tasks={"click": "binary", "play": "regression"}, logits=["click"], full_every=1)
    mine.wrap(made)
    made.build(model.trainable_variables)
    inputs, labels = examples(8)
    click, play = keras.losses.BinaryCrossentropy(from_logits=True), keras.losses.MeanSquaredError()

    def loss_of(outputs: Any) -> Any:
        parts = {"click": click(labels["click"], outputs["click"]), "play": play(labels["play"], outputs["play"])}
        loss = parts["click"] + 2.0 * parts["play"]
        mine.observe(loss, labels, outputs, task_losses=parts)
        return loss

    step: Any = {"jax": _jax_loop, "torch": _torch_loop, "tensorflow": _tensorflow_loop}[BACKEND]
    with mine:
        step(model, made, inputs, loss_of, mine)
    return {**sinks[0].told(), "weights": values(model.weights)}


def _tensorflow_loop(model: Any, optimizer: Any, inputs: Any, loss_of: Any, watch: Watch) -> None:
    import tensorflow as tf

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(model(inputs, training=True))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    for _ in range(4):
        step()
        watch.after_step()


def _jax_loop(model: Any, optimizer: Any, inputs: Any, loss_of: Any, watch: Watch) -> None:
    import jax

    def loss(trainable: Any) -> Any:
        outputs, _ = model.stateless_call(trainable, [], inputs, training=True)
        return loss_of(outputs)

    @jax.jit
    def step(trainable: Any, state: Any) -> Any:
        return optimizer.stateless_apply(state, jax.grad(loss)(trainable), trainable)

    trainable, state = ([one.value for one in some] for some in (model.trainable_variables, optimizer.variables))
    for _ in range(4):
        trainable, state = step(trainable, state)
        watch.after_step(state)
    for one, value in zip(model.trainable_variables, trainable, strict=True):
        one.assign(value)


def _torch_loop(model: Any, optimizer: Any, inputs: Any, loss_of: Any, watch: Watch) -> None:
    import torch

    for _ in range(4):
        model.zero_grad()
        loss_of(model({name: torch.as_tensor(value) for name, value in inputs.items()}, training=True)).backward()
        gradients = [one.value.grad for one in model.trainable_variables]
        with torch.no_grad():
            optimizer.apply(gradients, model.trainable_variables)
        watch.after_step()
