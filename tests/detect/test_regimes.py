"""Known changes of the regime are events, and what they explain is no incident."""

import dataclasses

import numpy as np
import pytest

from lossguard.detect import layers, monitor, regime
from lossguard.wire.frame import Frames, Schema
from lossguard.wire.incident import Incident

from .runs import SCALARS, STATS, curve, decay, ranker


def judged(frames: Frames) -> tuple[Incident, ...]:
    return monitor.report(monitor.update(monitor.init(), frames), "run").incidents


def changes(found: tuple[Incident, ...]) -> list[tuple[int, str]]:
    return [(one.onset_step, one.explanation) for one in found if one.kind == "regime_change"]


def with_rates(frames: Frames, rates: np.ndarray) -> Frames:
    scalars = frames.scalars.copy()
    scalars[:, SCALARS.index("learning_rate")] = rates
    return dataclasses.replace(frames, scalars=scalars)


def events(rates: list[float]) -> list[tuple[int, str, float]]:
    state, found = regime.Regime(), []
    for frame, rate in enumerate(rates):
        event = regime.take(state, frame, rate)
        if event is not None:
            found.append((frame, event.reason, round(event.factor, 6)))
    return found


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([0.1] * 50, []),
        ([0.01 * i for i in range(1, 11)] + [0.1] * 5, [(10, "warm", 10.0)]),
        ([0.01 * i for i in range(1, 11)] + [0.1 * 0.99**i for i in range(1, 50)], [(10, "warm", 10.0)]),
        ([0.1 * 0.99**i for i in range(100)], []),
        ([0.1] * 10 + [0.01] * 10, [(10, "rate", 0.1)]),
        ([0.1] * 10 + [0.01] * 10 + [0.1], [(10, "rate", 0.1), (20, "rate", 10.0)]),
        ([0.1, 0.2, 0.2], [(2, "rate", 2.0)]),
        ([0.1, 0.1 * 1.2] * 10, []),
    ],
)
def test_a_warm_up_that_ends_and_a_step_of_the_rate_are_events_and_a_schedule_that_glides_is_none(
    rates: list[float], expected: list[tuple[int, str, float]]
) -> None:
    assert events(rates) == expected


def test_a_rate_that_steps_all_the_time_is_told_of_thirty_two_times() -> None:
    assert len(events([0.1, 0.01] * 200)) == regime.EVENTS_KEPT


def test_the_end_of_a_warm_up_is_told_with_its_step_and_rate() -> None:
    rates = np.minimum(np.arange(1, 301) / 50, 1.0) * 0.1
    ((step, text),) = changes(judged(with_rates(ranker(), rates)))
    assert step == 51
    assert "warm-up ended" in text
    assert "50-fold, to 0.1" in text


def test_layers_follow_a_step_of_the_rate_and_none_is_said_to_have_moved() -> None:
    frames = ranker(400)
    rates = np.where(np.arange(400) < 200, 0.1, 1.0)
    stats = frames.stats.copy()
    for name in ("update_norm", "clippy_ratio"):
        stats[200:, :, STATS.index(name)] *= 10
    stepped = dataclasses.replace(with_rates(frames, rates), stats=stats)
    silent = dataclasses.replace(frames, stats=stats)
    told = monitor.update(monitor.init(), stepped[:230])
    untold = monitor.update(monitor.init(), silent[:230])
    assert layers.movers(untold.layers, 20)
    assert not layers.movers(told.layers, 20)
    assert changes(judged(stepped)) == [
        (201, "The learning rate rose 10-fold at step 201, to 1; what follows it begins anew.")
    ]


def test_a_task_that_joins_is_an_event_and_the_total_that_jumps_with_it_is_no_incident() -> None:
    values = decay(400)
    names = ("loss", "loss/click")
    before = Frames.of(Schema(names), np.arange(1, 201), np.stack([values[:200]] * 2, 1))
    both = np.stack([values[200:] + 3, values[200:], np.full(200, 3.0)], 1)
    after = Frames.of(Schema((*names, "loss/like")), np.arange(201, 401), both)
    state = monitor.update(monitor.update(monitor.init(), before), after)
    (found,) = monitor.report(state, "run").incidents
    assert (found.kind, found.onset_step, found.tasks) == ("regime_change", 201, ("like",))
    jumped = values.copy()
    jumped[200:] += 3
    assert "full_divergence" in {one.kind for one in judged(curve(jumped))}


def test_a_new_attempt_is_an_event_of_its_first_step() -> None:
    state = monitor.new_attempt(monitor.update(monitor.init(), ranker(200)), 140)
    (found,) = [one for one in monitor.report(state, "run").incidents if one.kind == "regime_change"]
    assert (found.onset_step, found.end_step, found.severity) == (141, 142, "info")
    assert found.explanation == "Attempt 2 begins at step 141; the baselines begin anew."
    assert monitor.report(state, "run").status == "healthy"
