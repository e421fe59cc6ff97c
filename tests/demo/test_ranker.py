"""The model and its schedule."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import pytest
import tensorflow as tf

from lossguard.demo import STEPS, ranker
from lossguard.demo.features import TASKS, Examples
from lossguard.demo.schedule import DECAYED, PLATEAU, Ramp

pytestmark = pytest.mark.tensorflow


def _build(examples: Examples, seed: int = 0) -> keras.Model:
    return ranker.build(examples.rows, examples.categorical.shape[1], examples.numeric.shape[1], seed)


def _inputs(examples: Examples, rows: int) -> dict[str, np.ndarray]:
    return {"categorical": examples.categorical[:rows], "numeric": examples.numeric[:rows]}


def test_a_row_of_the_embedding_that_is_hit_twice_gets_one_summed_gradient(examples: Examples) -> None:
    layer = ranker.DenseGradientEmbedding(5, width=2)
    codes = np.array([[1, 1, 3]], np.int32)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(codes) * [[1.0, 2.0, 10.0, 20.0, 100.0, 200.0]])
    gradient = tape.gradient(total, layer.trainable_variables[0].value)
    assert isinstance(gradient, tf.Tensor)
    assert np.array_equal(gradient, [[0, 0], [11, 22], [0, 0], [100, 200], [0, 0]])


def test_a_seed_makes_the_same_weights(examples: Examples) -> None:
    one, same, other = (_build(examples, seed).get_weights() for seed in (4, 4, 5))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_layers_bear_the_names_that_incidents_point_at(examples: Examples) -> None:
    paths = {variable.path for variable in _build(examples).trainable_variables}
    assert {
        "embedding/table",
        "cross_1/kernel",
        "normalization/gamma",
        "shared_4/bias",
        "head_play_time/kernel",
    } <= paths


def test_the_served_model_gives_probabilities_of_the_same_logits(examples: Examples) -> None:
    model = _build(examples)
    raw, served = model.predict(_inputs(examples, 8), verbose=0), None
    served = ranker.serving(model).predict(_inputs(examples, 8), verbose=0)
    assert set(served) == set(TASKS)
    for task, kind in TASKS.items():
        wanted = 1 / (1 + np.exp(-raw[task])) if kind == "binary" else raw[task]
        assert np.allclose(served[task], wanted, rtol=1e-5, atol=1e-6)


def test_a_saved_model_loads_with_its_schedule(examples: Examples, tmp_path: object) -> None:
    model = _build(examples)
    model.compile(optimizer=keras.optimizers.Adagrad(Ramp(300, 0.5)), loss=ranker.losses())
    file = f"{tmp_path}/model.keras"
    model.save(file)
    loaded = keras.models.load_model(file)
    assert np.array_equal(loaded.get_weights()[0], model.get_weights()[0])
    assert loaded.optimizer.get_config()["learning_rate"]["config"] == {"steps": 300, "peak": 0.5}


@pytest.mark.parametrize("steps", [STEPS, 2 * STEPS])
def test_the_rate_runs_along_the_corners(steps: int) -> None:
    ramp = Ramp(steps, 0.8)
    for step, rate in ramp.corners[1:]:
        # The update after n updates is update n + 1.
        assert float(ramp(step - 1)) == pytest.approx(rate, rel=1e-4)
    rates = [float(ramp(step)) for step in range(steps)]
    assert max(rates) == pytest.approx(0.8, rel=1e-4)
    assert rates[int(150 * steps / STEPS) : int(200 * steps / STEPS)] == pytest.approx(
        [PLATEAU] * (int(200 * steps / STEPS) - int(150 * steps / STEPS)), rel=2e-2
    )
    assert rates[-1] == pytest.approx(DECAYED * PLATEAU, rel=1e-3)
