"""Steps that an optimizer has counted and that wrote no row: their frames are absent, not what the ring held there."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from conftest import MemorySink
from lossguard.keras import Watch
from lossguard.keras.fetch import side_by_side
from lossguard.keras.leftout import LeftOut
from lossguard.keras.ring import Layout, frames_of
from lossguard.wire.stats import STAT_NAMES

RANDOM = np.random.default_rng(2)
X, Y = RANDOM.normal(size=(24, 3)).astype("float32"), RANDOM.normal(size=(24, 1)).astype("float32")


class CountOneMore(keras.callbacks.Callback):
    """Keras with TensorFlow and without XLA: it asks for a batch behind the last one, and the update is counted."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.optimizer.iterations.assign_add(1)


def train(mine: Watch, batches: Any, callbacks: list[keras.callbacks.Callback]) -> keras.Model:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="dense")])
    model.compile(keras.optimizers.SGD(0.01), loss="mse")
    model.fit(batches, epochs=3, verbose=0, callbacks=[*callbacks, mine])
    return model


def known(batches: Any = None) -> Any:
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)


def unknown() -> Any:
    spec = (tf.TensorSpec((None, 3)), tf.TensorSpec((None, 1)))
    return tf.data.Dataset.from_generator(
        lambda: ((X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)), None, None, None, spec
    )


def losses(sink: MemorySink) -> list[float]:
    return [float(loss) for loss in sink.scalar("loss")[sink.present("loss")]]


def test_a_data_set_of_unknown_length_has_the_frames_of_one_of_known_length(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    for batches in (known(), unknown()):
        train(watch(full_every=1), batches, [])
    one, other = sinks
    # Whether Keras counts one update too many is a race that it mostly loses.
    assert losses(other) == pytest.approx(losses(one), rel=1e-6)
    assert len(losses(other)) == 9
    assert other.steps == list(range(1, other.steps[-1] + 1))
    for sink in sinks:
        there = sink.measured("weight_norm")
        assert np.array_equal(there, sink.present("loss"))
        assert (sink.stat(sink.blocks[0].schema.layers[0], "weight_norm")[there] > 0).all()


def test_a_step_that_was_counted_and_not_made_leaves_a_frame_without_values(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    model = train(watch(fetch_steps=2), known(), [CountOneMore()])
    sink = sinks[0]
    assert sink.steps == list(range(1, 13))
    assert sink.drops == {}
    made = np.arange(1, 13) % 4 != 0
    assert np.array_equal(sink.present("loss"), made)
    assert np.array_equal(sink.measured("gradient_norm"), made)
    assert np.isnan(sink.scalar("loss")[~made]).all()
    # What is true of the weights is said, though the step has no row.
    layer = sink.blocks[0].schema.layers[0]
    assert sink.measured("weight_norm_after")[-1]
    assert sink.stat(layer, "weight_norm_after")[-1] == pytest.approx(np.linalg.norm(model.layers[0].kernel), rel=1e-6)


LAYOUT = Layout(("loss", "skipped_steps"), ("dense",), STAT_NAMES)


def rows_of(*steps: int) -> np.ndarray:
    rows = np.ones((len(steps), LAYOUT.width), np.float32)
    rows[:, 0] = steps
    return rows


def test_a_row_of_an_older_step_is_not_taken_for_one_of_a_newer() -> None:
    for stale in (0, 300 - 256):
        frames = frames_of(LAYOUT, 299, rows_of(299, stale, 301), np.zeros(3))
        assert frames.scalars_present.tolist() == [[True] * 2, [False] * 2, [True] * 2]
        assert not frames.stats_present[1].any()
        assert frames.stats_present[[0, 2], :-1].all()
        assert np.isnan(frames.scalars[1]).all()
        assert np.isnan(frames.stats[1]).all()


def test_a_frame_of_several_optimizers_has_the_stats_that_all_of_them_have() -> None:
    first, second = (frames_of(LAYOUT, 1, rows_of(*steps), np.zeros(2)) for steps in ((1, 2), (1, 0)))
    both = side_by_side([first, second])
    assert both.stats_present[0, :-1].all()
    assert not both.stats_present[1].any()
    assert both.scalars_present[1].tolist() == [True, True, False, False]


def test_a_last_frame_without_values_leaves_the_count_of_skipped_steps() -> None:
    counts = iter([0.0, 3.0])
    left_out = LeftOut(lambda: next(counts))
    rows = rows_of(1, 0)
    rows[0, LAYOUT.state + 1] = 2.0
    left_out.judge(frames_of(LAYOUT, 1, rows, np.zeros(2)))
    assert left_out.end() == 1
