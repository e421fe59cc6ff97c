"""Steps have the times at which they ended, however many are fetched at once."""

import time
from collections.abc import Callable

import keras
import numpy as np
import pytest

from conftest import MemorySink
from lossguard.keras import Watch
from lossguard.keras.pace import Pace

WALL = 1.7e9


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clocks: what a training's steps take is what these tests are about, and no real one is exact."""

    def to(seconds: float) -> None:
        monkeypatch.setattr(time, "monotonic", lambda: seconds)
        monkeypatch.setattr(time, "time", lambda: WALL + seconds)

    to(0.0)
    return to


def ended(pace: Pace, count: int) -> list[float]:
    pace.cut()
    return (pace.times(count) - WALL).tolist()


def run(pace: Pace, at: Callable[[float], None], first: float, a_call: float, calls: int, steps: int = 1) -> None:
    for call in range(calls):
        at(first + call * a_call)
        pace.passed(steps)


def test_steps_of_one_fetch_ended_one_after_the_other(at: Callable[[float], None]) -> None:
    pace = Pace()
    run(pace, at, first=9.0, a_call=0.5, calls=4)
    at(11.0)
    assert ended(pace, 4) == [9.0, 9.5, 10.0, 10.5]


def test_a_pause_before_the_stretch_does_not_count(at: Callable[[float], None]) -> None:
    pace = Pace()
    run(pace, at, first=9.0, a_call=0.5, calls=4)
    pace.cut()
    run(pace, at, first=1000.0, a_call=0.5, calls=4)
    assert ended(pace, 4) == [1000.0, 1000.5, 1001.0, 1001.5]


def test_a_row_that_was_held_back_ended_with_its_own_stretch(at: Callable[[float], None]) -> None:
    pace = Pace()
    run(pace, at, first=9.0, a_call=0.5, calls=4)
    pace.cut()
    run(pace, at, first=1000.0, a_call=0.5, calls=3)
    assert ended(pace, 4) == [10.5, 1000.0, 1000.5, 1001.0]


def test_the_steps_of_one_execution_share_the_time_since_the_one_before(at: Callable[[float], None]) -> None:
    pace = Pace()
    at(60.0)
    pace.passed(4)
    assert ended(pace, 4) == [60.0] * 4, "what the compiler took is not a step's time"
    at(62.0)
    pace.passed(4)
    assert ended(pace, 4) == [60.5, 61.0, 61.5, 62.0]


def test_executions_of_several_steps_are_spread_over_them(at: Callable[[float], None]) -> None:
    pace = Pace()
    run(pace, at, first=8.0, a_call=4.0, calls=3, steps=8)
    assert ended(pace, 17) == pytest.approx(np.linspace(8.0, 16.0, 17).tolist(), abs=1 / 1024)


def test_steps_of_which_nothing_was_fetched_do_not_wait_for_ever(at: Callable[[float], None]) -> None:
    pace = Pace()
    run(pace, at, first=1.0, a_call=0.5, calls=4)
    assert pace.waiting == 4
    pace.cut()
    pace.cut()
    assert pace.waiting == 0
    assert pace.times(0).tolist() == []


def test_the_frames_of_a_fit_have_times_that_go_on_with_its_steps(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    before = time.time()
    model.fit(np.ones((128, 3)), np.ones((128, 1)), batch_size=2, verbose=0, callbacks=[watch()])
    (sink,) = sinks
    times = np.concatenate([block.times for block in sink.blocks])
    assert len(times) == 64
    assert (np.diff(times) >= 0).all()
    # 64 steps were fetched at once, and none of them takes less than a fortieth of the grid.
    assert before - 1 < times[0] < times[-1] <= time.time()
