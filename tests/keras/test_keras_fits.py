"""Several calls of `fit` with one watch, and several watches of one model: what is compiled again, and who listens."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from conftest import MemorySink
from lossguard.keras import Watch

DATA = np.ones((8, 3), "float32"), np.ones((8, 1), "float32")


def model() -> keras.Model:
    made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    made.compile(keras.optimizers.SGD(0.1), loss="mse")
    return made


def fit(trained: keras.Model, watch: Watch | None) -> None:
    trained.fit(*DATA, batch_size=4, verbose=0, callbacks=[] if watch is None else [watch])


def losses(sink: MemorySink) -> list[float]:
    found = [float(one) for one in sink.scalar("loss")]
    assert np.isfinite(found).all()
    return found


def test_a_second_fit_trains_with_the_step_of_the_first(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    trained, mine = model(), watch()
    fit(trained, mine)
    compiled = trained.train_function
    fit(trained, mine)
    assert trained.train_function is compiled
    first, second = sinks
    assert (first.steps, second.steps) == ([1, 2], [3, 4])
    assert len({*losses(first), *losses(second)}) == 4


def test_a_model_that_is_compiled_anew_is_heard_by_the_same_watch_and_by_another(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    trained, mine = model(), watch()
    fit(trained, mine)
    trained.compile(keras.optimizers.SGD(0.1), loss="mse")
    fit(trained, mine)
    trained.compile(keras.optimizers.SGD(0.1), loss="mse")
    fit(trained, watch())
    assert [len(losses(sink)) for sink in sinks] == [2, 2, 2]


def test_a_watch_that_goes_on_to_a_second_model_leaves_the_first_as_it_was(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    one, other, mine = model(), model(), watch()
    fit(one, mine)
    fit(other, mine)
    assert "compute_loss" not in one.__dict__
    fit(one, None)
    assert [sink.steps for sink in sinks] == [[1, 2], [1, 2]]


def test_a_loss_that_the_user_put_into_the_model_is_heard_and_given_back(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    trained, mine = model(), watch()
    bare = trained.compute_loss

    def doubled(**given: Any) -> Any:
        return 2.0 * bare(**given)

    trained.compute_loss = doubled
    fit(trained, mine)
    (sink,) = sinks
    of_task = sink.scalar("loss/output")
    np.testing.assert_allclose(losses(sink), 2.0 * of_task, rtol=1e-6)
    mine.detach()
    assert trained.compute_loss is doubled


def test_a_pause_between_two_fits_of_a_with_block_makes_no_row_late(
    watch: Callable[..., Watch], sinks: list[MemorySink], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, time=lambda: clock.now)
    for room in ("attempt", "pace"):
        monkeypatch.setattr(f"lossguard.keras.{room}.time", clock)
    trained, mine = model(), watch()
    mine.set_model(trained)
    with mine:
        fit(trained, mine)
        clock.now = 100.0
        fit(trained, mine)
    (sink,) = sinks
    assert [block.steps.tolist() for block in sink.blocks] == [[1, 2], [3, 4]]
