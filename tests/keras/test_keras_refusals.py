"""Wrong arguments, and what cannot be watched or what bare Keras cannot train, are refused before the first step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf

from conftest import two_tasks
from lossguard.keras import Clippy, Watch


def compiled(replicas: int, optimizer: dict[str, Any], **options: Any) -> keras.Model:
    with tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(replicas)]).scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1, **optimizer), "mse", **options)
    return model


def test_wrong_arguments_raise_with_their_name(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for options, sentence in (
        ({"journal": file}, "journal: .* is not a folder"),
        ({"journal": "nul\0"}, "journal: must be a folder"),
        ({"journal": ""}, "journal: must be a folder"),
        ({"unwatched": 3}, "unwatched: must be a sequence of patterns"),
        ({"service": "localhost:8000"}, "service: must be a URL"),
        ({"service": "http://"}, "service: must be a URL"),
        ({"token": 5}, "token: must be text"),
        ({"config": ["team"]}, "config: must be a JSON-like mapping"),
        ({"config": {"team": {1, 2}}}, "config: must be a JSON-like mapping"),
        ({"logits": True}, "logits: must be a sequence"),
        ({"tasks": {"click": "binary"}, "logits": ["clik"]}, "logits: 'clik' is none of the tasks click"),
        ({"treatment": "clippy"}, "treatment: 'clippy' is not a treatment"),
        ({"open_recorder": 5}, "open_recorder: must be a function"),
        ({"tasks": {"click": "binray"}}, "tasks: 'click' must be"),
        ({"tasks": ["click"]}, "tasks: must map"),
        ({"treatment": Clippy}, "treatment: .* did you mean"),
        ({"fetch_steps": 0}, "fetch_steps"),
        ({"full_every": 0}, "full_every"),
        ({"fetch_seconds": -1}, "fetch_seconds"),
        ({"fetch_seconds": "1"}, "fetch_seconds"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Watch("ads", "ranker", **options)
    with pytest.raises(ValueError, match="run: must not contain"):
        Watch("ads", "a/b")


def test_a_model_or_optimizer_that_cannot_be_watched_is_refused(watch: Callable[..., Watch]) -> None:
    with pytest.raises(ValueError, match="model: compile it"):
        watch().attach(two_tasks())
    mistaken = watch()
    with pytest.raises(ValueError, match="model: must be a Keras model, got 'ranker'"):
        mistaken.attach("ranker")  # type: ignore[arg-type]
    mistaken.detach()
    with pytest.raises(ValueError, match="optimizer: must be a Keras optimizer"):
        watch().wrap("adam")  # type: ignore[arg-type]
    optimizer = keras.optimizers.SGD(0.1)
    watch().wrap(optimizer)
    with pytest.raises(ValueError, match="watched by another Watch"):
        watch().wrap(optimizer)


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
