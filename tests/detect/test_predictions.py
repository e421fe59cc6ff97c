"""Regressions against the constant predictor, and predictions that no longer differ from each other."""

import itertools

import numpy as np
import pytest

from lossguard.detect import monitor, spread, voices
from lossguard.wire.frame import Frames, Schema
from lossguard.wire.incident import RunReport

SCALARS = ("loss", "loss/play", "rmse/play", "label_std/play", "label_mean/play", "prediction_std/play")


def regression(frames: int = 400, *, onset: int | None = None, until: int | None = None, tail: float = 0.0) -> Frames:
    """One regression on a raw scale that explains a fifth of its labels' deviation; constant from `onset` to `until`.

    With a `tail`, the deviation of a batch's labels is log-normal with that spread, and its error follows it.
    """
    rng = np.random.default_rng(5)
    t = np.arange(frames)
    deviation = 40 * np.exp(tail * rng.standard_normal(frames))
    share = 0.8 + 0.2 * np.exp(-t / 40) + 0.01 * rng.standard_normal(frames)
    spreads = 24 * (1 - np.exp(-t / 20)) * np.exp(0.05 * rng.standard_normal(frames)) + 1e-3
    if onset is not None:
        share[onset:until] = 1 + 0.01 * rng.standard_normal(len(share[onset:until]))
        spreads[onset:until] = 1e-4
    error = share * deviation
    columns = [error**2, error**2, error, deviation, np.full(frames, 9.0), spreads]
    return Frames.of(Schema(SCALARS), t + 1, np.stack(columns, 1))


def dropped(frames: Frames, *names: str) -> Frames:
    """The same run without some scalars."""
    keep = [i for i, name in enumerate(frames.schema.scalars) if name not in names]
    schema = Schema(tuple(frames.schema.scalars[i] for i in keep))
    return Frames.of(schema, frames.steps, frames.scalars[:, keep])


def judged(frames: Frames, block: int = 64) -> monitor.MonitorState:
    state = monitor.init({"play": "regression"})
    for start in range(0, len(frames), block):
        state = monitor.update(state, frames[start : start + block])
    return state


def report(frames: Frames) -> RunReport:
    return monitor.report(judged(frames), "r")


def test_the_constant_predictor_has_no_skill_and_a_perfect_one_all() -> None:
    skill = voices.error_skill(np.array([2.0, 0.0, 1.0, 9.0, 1.0]), np.array([2.0, 2.0, 2.0, 2.0, 0.0]))
    np.testing.assert_allclose(skill, [0.5, 1.0, 1.0, 0.0, np.nan])


def test_a_regression_that_falls_back_to_its_mean_is_a_full_divergence_though_its_loss_hardly_moves() -> None:
    found = report(dropped(regression(onset=200), "prediction_std/play"))
    (incident,) = [i for i in found.incidents if i.kind == "full_divergence"]
    assert found.status == "diverged"
    assert incident.tasks == ("play",)
    assert 195 <= incident.onset_step <= 220
    assert incident.declared_full_step is not None
    assert incident.declared_full_step <= 290


@pytest.mark.parametrize("tail", [0.0, 0.5, 1.5])
def test_a_sound_regression_is_no_divergence_however_heavy_its_labels_tail_is(tail: float) -> None:
    assert report(regression(tail=tail)).status == "healthy"


def test_constant_predictions_are_flagged_within_a_group_and_called_full_after_four() -> None:
    lone = dropped(regression(onset=208), "rmse/play", "label_std/play", "loss", "loss/play")
    found = report(lone)
    (incident,) = [i for i in found.incidents if i.kind == "full_divergence"]
    assert incident.onset_step == 209
    assert incident.detected_step == 208 + spread.GROUP_FRAMES
    assert incident.declared_full_step == 208 + spread.FULL_GROUPS * spread.GROUP_FRAMES
    assert incident.tasks == ("play",)
    assert "nearly the same to every example" in incident.explanation
    assert found.status == "diverged"


def test_predictions_that_spread_again_make_it_micro() -> None:
    lone = dropped(regression(onset=208, until=304), "rmse/play", "label_std/play", "loss", "loss/play")
    found = report(lone)
    (incident,) = found.incidents
    assert (incident.kind, incident.end_step) == ("micro_divergence", 320)
    assert incident.declared_full_step is not None
    assert found.status == "recovered"


def test_one_collapse_is_one_incident() -> None:
    broken = [i for i in report(regression(onset=200)).incidents if i.kind in ("full_divergence", "micro_divergence")]
    assert [i.kind for i in broken] == ["full_divergence"]


def test_a_narrowing_that_stays_above_a_hundredth_of_the_labels_deviation_is_no_collapse() -> None:
    watch = spread.Spread(usual=[10.0] * spread.USUAL_LEAST)
    assert spread.take(watch, [0.4] * 16, True, 30.0, True) is None
    assert spread.take(watch, [0.2] * 16, True, 30.0, True) == "collapsed"
    assert spread.take(watch, [0.2] * 16, True, float("nan"), True) == "collapsed"


def test_what_is_not_measured_is_no_collapse() -> None:
    watch = spread.Spread(usual=[10.0] * spread.USUAL_LEAST)
    assert spread.take(watch, [float("nan")] * 12 + [0.0] * 4, True, 1.0, True) is None
    assert watch.usual == [10.0] * spread.USUAL_LEAST


@pytest.mark.parametrize("until", [None, 260])
def test_the_answer_does_not_depend_on_the_cuts_or_on_a_round_trip(until: int | None) -> None:
    frames = regression(onset=200, until=until, tail=0.3)
    whole = monitor.dumps(judged(frames, 400))
    assert monitor.dumps(judged(frames, 1)) == whole
    assert monitor.dumps(judged(frames, 23)) == whole
    state = monitor.init({"play": "regression"})
    for first, last in itertools.pairwise([0, 100, 203, 217, 400]):
        state = monitor.loads(monitor.dumps(monitor.update(state, frames[first:last])))
    assert monitor.dumps(state) == whole
