"""Watching changes no bit, as a law over the built-in optimizers (their stats: `test_keras_oracle`)."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.common.stateless_scope import in_stateless_scope

from lossguard.keras.optimizer import Hook

SHAPES = [(4, 3), (3,), (2, 2, 3)]
STEPS = 6

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "SGD": lambda: keras.optimizers.SGD(0.1),
    "SGD momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "Adadelta": lambda: keras.optimizers.Adadelta(1.0),
    "Adam": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "AdamW": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "Adamax": lambda: keras.optimizers.Adamax(0.01),
    "Nadam": lambda: keras.optimizers.Nadam(0.01),
    "Ftrl": lambda: keras.optimizers.Ftrl(0.1, l1_regularization_strength=0.01),
    "Lion": lambda: keras.optimizers.Lion(0.01),
    "Lamb": lambda: keras.optimizers.Lamb(0.01),
    "Adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "Muon": lambda: keras.optimizers.Muon(0.01, exclude_embeddings=False),
    "ScheduleFreeAdamW": lambda: keras.optimizers.ScheduleFreeAdamW(0.01),
    "clipnorm": lambda: keras.optimizers.Adam(0.01, clipnorm=0.5),
    "schedule": lambda: keras.optimizers.Adagrad(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)),
    "moving average": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=3),
    "accumulation": lambda: keras.optimizers.Adagrad(0.1, gradient_accumulation_steps=2),
}


def weights(dtype: str, seed: int = 1) -> list[keras.Variable]:
    random = np.random.default_rng(seed)
    made = [random.normal(size=shape).astype("float32") for shape in SHAPES]
    made[0][1, 2] = 0.0
    return [keras.Variable(value, dtype=dtype, name=f"w{number}") for number, value in enumerate(made)]


def gradients(step: int) -> list[np.ndarray]:
    random = np.random.default_rng(100 + step)
    made = [random.normal(size=shape).astype("float32") for shape in SHAPES]
    made[0][0] = 0.0
    made[1] *= 1e-3
    return made


def train(
    make: Callable[[], Any], dtype: str = "float32", *, watched: bool, jit: bool = False, treatments: Any = ()
) -> tuple[Any, list[keras.Variable], Hook | None, list[list[np.ndarray]]]:
    """Optimizer, weights, hook and the weights before each step."""
    optimizer, variables = make(), weights(dtype)
    hook = None
    if watched:
        hook = Hook(optimizer, treatments, lambda eta: {"learning_rate": eta}, rows=16, full_every=1)
    optimizer.build(variables)
    run = tf.function(lambda given: optimizer.apply(given, variables), jit_compile=jit)
    before = []
    for step in range(STEPS):
        before.append([variable.numpy().astype("float64") for variable in variables])
        run([tf.constant(gradient, dtype) for gradient in gradients(step)])
    before.append([variable.numpy().astype("float64") for variable in variables])
    return optimizer, variables, hook, before


def same_bits(one: list[Any], other: list[Any], name: str) -> None:
    for bare, watched in zip(one, other, strict=True):
        assert np.array_equal(bare.numpy(), watched.numpy()), (name, bare.path)


def test_watching_changes_no_bit_of_weights_or_slots() -> None:
    for name, make in OPTIMIZERS.items():
        bare, alone, _, _ = train(make, watched=False)
        watched, seen, hook, _ = train(make, watched=True)
        same_bits([*alone, *bare.variables], [*seen, *watched.variables], name)
        assert hook is not None
        assert hook.step == (STEPS // 2 if name == "accumulation" else STEPS), name


def test_watching_changes_no_bit_under_xla() -> None:
    # All in one function: compiling is what this test's time is spent on. (Left out: accumulation, where XLA rounds
    # the last bit by what else reads the update.)
    def trained(*, watched: bool) -> dict[str, tuple[Any, list[keras.Variable]]]:
        made = {name: (make(), weights("float32")[:1]) for name, make in OPTIMIZERS.items() if name != "accumulation"}
        for optimizer, variables in made.values():
            if watched:
                Hook(optimizer, (), lambda eta: {"learning_rate": eta}, rows=16, full_every=1)
            optimizer.build(variables)

        def step(given: list[Any]) -> None:
            for optimizer, variables in made.values():
                optimizer.apply(given, variables)

        run = tf.function(step, jit_compile=True, autograph=False)
        for number in range(STEPS):
            run([tf.constant(gradients(number)[0])])
        return made

    alone, seen = trained(watched=False), trained(watched=True)
    for name, (bare, variables) in alone.items():
        watched, others = seen[name]
        assert "_backend_update_step" in watched.__dict__
        same_bits([*variables, *bare.variables], [*others, *watched.variables], name)


def test_what_fails_while_it_is_computed_aside_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    swallowed: list[str] = []
    monkeypatch.setattr("lossguard.guard.swallow", lambda entry, error: swallowed.append(entry))
    propose = Hook.propose

    def broken(hook: Hook, *given: Any) -> Any:
        if in_stateless_scope():
            raise RuntimeError("ours")
        return propose(hook, *given)

    monkeypatch.setattr(Hook, "propose", broken)
    bare, alone, _, _ = train(OPTIMIZERS["Adagrad"], watched=False, jit=True)
    watched, seen, _, _ = train(OPTIMIZERS["Adagrad"], watched=True, jit=True)
    assert set(swallowed) == {"Hook.measure"}
    same_bits([*alone, *bare.variables], [*seen, *watched.variables], "Adagrad")
