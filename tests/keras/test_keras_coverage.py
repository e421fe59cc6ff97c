"""The coverage report names every weight, and why it is not measured if it is not."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from click_and_play import LOSSES
from conftest import MemorySink, two_tasks
from lossguard.keras import Clippy, Watch


def compiled(optimizer: Any) -> keras.Model:
    model = two_tasks()
    model.get_layer("head_play").trainable = False
    model.compile(optimizer, loss=LOSSES)
    return model


def test_each_weight_has_its_reason(watch: Callable[..., Watch]) -> None:
    mine = watch(treatment=Clippy(), unwatched=("embedding", "shared/bias"))
    mine.attach(compiled(keras.optimizers.SGD(0.1)))
    report = mine.coverage()
    how = {one.layer: one.how for one in report.weights}
    assert how == {
        "embedding/embeddings": "left out by unwatched=",
        "shared/kernel": "measured",
        "shared/bias": "treated, not measured",
        "head_click/kernel": "measured",
        "head_click/bias": "measured",
        "head_play/kernel": "not trainable",
        "head_play/bias": "not trainable",
    }
    assert report.parameters == 22 + 66 + 6 + 6 + 1
    assert report.watched == pytest.approx(73 / 101)
    assert report.unwatched == ("embedding/embeddings", "shared/bias")
    assert "72.3% of 101 trained parameters are measured" in str(report)


def test_what_another_optimizer_updates_is_said(watch: Callable[..., Watch]) -> None:
    model = compiled(keras.optimizers.SGD(0.1))
    model.optimizer.build(model.get_layer("shared").trainable_variables)
    report = watch().attach(model).coverage()
    assert [one.layer for one in report.weights if one.how == "no watched optimizer updates it"] == [
        "embedding/embeddings",
        "head_click/kernel",
        "head_click/bias",
    ]


def test_a_loop_of_ones_own_reports_what_its_optimizer_has(watch: Callable[..., Watch]) -> None:
    optimizer = keras.optimizers.SGD(0.1)
    mine = watch()
    mine.wrap(optimizer)
    assert mine.coverage().weights == ()
    optimizer.build([keras.Variable([[1.0, 2.0]], name="table")])
    assert [(one.layer, one.parameters, one.how) for one in mine.coverage().weights] == [("table", 2, "measured")]


def test_the_tables_of_an_embedding_engine_are_named(watch: Callable[..., Watch]) -> None:
    # TensorFlow's own engine, in its form for hosts without a TPU.
    tpu = tf.tpu.experimental.embedding
    table = tpu.TableConfig(vocabulary_size=40, dim=8, name="videos")

    class Engine(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__(name="engine")
            self.engine = tpu.TPUEmbeddingForServing(tpu.FeatureConfig(table=table), tpu.Adagrad(0.1))

        def call(self, inputs: Any) -> Any:
            return inputs

    model = keras.Sequential([keras.Input((2,)), Engine(), keras.layers.Dense(1, name="head")])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    report = watch().attach(model).coverage()
    assert [one.layer for one in report.weights if one.how == "a TPU's embedding engine updates it"] == [
        "engine/videos"
    ]
    assert report.unwatched == ("engine/videos",)
    assert report.watched == 1.0
    assert "320  a TPU's embedding engine updates it" in str(report)


def test_two_models_whose_layers_have_the_same_names_are_counted_twice(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    mine = watch(unwatched=("bias",))
    for _ in range(2):
        optimizer = mine.wrap(keras.optimizers.SGD(0.1))
        optimizer.build([keras.Variable(np.ones((3, 2)), name="kernel"), keras.Variable(np.ones(2), name="bias")])
    with mine:
        pass
    config = sinks[0].options["config"]
    assert (config["parameters"], config["parameters_watched"]) == (16, 0.75)
    assert config["layers_watched"] == 2
    assert config["layers_unwatched"] == ["bias", "bias"]
