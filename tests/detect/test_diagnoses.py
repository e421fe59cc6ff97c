"""What the detectors say about how a run is set up, beside its divergences."""

import dataclasses

import numpy as np
import pytest

from lossguard.detect import monitor, period
from lossguard.wire.frame import Frames, Schema
from lossguard.wire.incident import Incident

from .runs import SCALARS, STATS, curve, decay, ranker, rarely


def incidents(frames: Frames, kind: str) -> list[Incident]:
    found = monitor.report(monitor.update(monitor.init(), frames), "run").incidents
    return [incident for incident in found if incident.kind == kind]


def with_stat(frames: Frames, name: str, values: np.ndarray) -> Frames:
    """The same run with a stat set, [T, L]."""
    stats = frames.stats.copy()
    stats[:, :, STATS.index(name)] = values
    return dataclasses.replace(frames, stats=stats)


def test_unshuffled_data_show_as_the_period_of_an_epoch() -> None:
    epoch = np.random.default_rng(5).standard_normal(150).cumsum()
    values = decay(1200, noise=0.05) + 0.03 * np.tile(epoch, 8)
    (found,) = incidents(curve(values), "periodic_loss")
    assert "every 150 logged steps" in found.explanation
    assert "Shuffle" in found.advice


def test_shuffled_data_have_no_period() -> None:
    rng = np.random.default_rng(5)
    epoch = rng.standard_normal(150).cumsum()
    values = decay(1200, noise=0.05) + 0.03 * np.concatenate([rng.permutation(epoch) for _ in range(8)])
    assert incidents(curve(values), "periodic_loss") == []


def test_a_trend_alone_has_no_period() -> None:
    assert incidents(curve(decay(3000, noise=0.01)), "periodic_loss") == []


def test_no_update_at_all_is_an_incident_that_ends_with_the_next_update() -> None:
    frames = ranker(400)
    updates = frames.stats[:, :, STATS.index("update_norm")].copy()
    updates[150:300] = 0
    (found,) = incidents(with_stat(frames, "update_norm", updates), "no_update")
    assert 140 <= found.onset_step <= 160
    assert found.detected_step <= 208
    assert found.end_step is not None
    assert 300 < found.end_step <= 320


def test_updates_far_below_their_own_past_are_no_updates() -> None:
    frames = ranker(400)
    updates = frames.stats[:, :, STATS.index("update_norm")].copy()
    updates[200:] *= 1e-4
    (found,) = incidents(with_stat(frames, "update_norm", updates), "no_update")
    assert found.end_step is None


@pytest.mark.parametrize("phase", [0, 5, 15])
@pytest.mark.parametrize("factor", [0.0, 1e-4])
def test_updates_that_are_measured_every_16th_step_only_are_missed_all_the_same(phase: int, factor: float) -> None:
    frames = ranker(400)
    updates = frames.stats[:, :, STATS.index("update_norm")].copy()
    updates[150:300] *= factor
    (found,) = incidents(rarely(with_stat(frames, "update_norm", updates), phase=phase), "no_update")
    assert found.detected_step <= 220
    assert found.end_step is not None
    assert 300 < found.end_step <= 340
    assert not incidents(rarely(frames, phase=phase), "no_update")


def test_updates_that_follow_the_learning_rate_down_are_fine() -> None:
    frames = ranker(400)
    updates = frames.stats[:, :, STATS.index("update_norm")].copy()
    updates[200:] *= 1e-4
    scalars = frames.scalars.copy()
    scalars[200:, SCALARS.index("learning_rate")] *= 1e-4
    quiet = dataclasses.replace(with_stat(frames, "update_norm", updates), scalars=scalars)
    assert incidents(quiet, "no_update") == []


def extra(frames: Frames, name: str, values: np.ndarray) -> Frames:
    """The same run with one more stat [T, L]."""
    schema = Schema(frames.schema.scalars, frames.schema.layers, (*frames.schema.stats, name))
    stats = np.concatenate([frames.stats, values[:, :, None].astype(np.float32)], axis=2)
    present = np.ones((len(frames), stats.shape[2]), np.bool_)
    return dataclasses.replace(frames, schema=schema, stats=stats, stats_present=present)


def test_units_that_die_are_named_with_their_layer_and_sparse_inputs_are_not() -> None:
    frames = ranker(500)
    share = np.full((500, 4), 0.2)
    share[:, 3] = 0.99
    share[200:, 1] = 0.95
    (found,) = incidents(extra(frames, "gradient_zero_fraction", share), "dead_units")
    assert found.first_layer == "shared1/kernel"


def test_a_model_that_is_clipped_to_nothing_is_told_so() -> None:
    frames = ranker(400)
    assert incidents(extra(frames, "clipping_factor", np.full((400, 4), 1e-5)), "overclipped")
    assert not incidents(extra(frames, "clipping_factor", np.full((400, 4), 0.3)), "overclipped")


def test_a_layer_that_does_not_settle_is_named() -> None:
    frames = ranker(1400)
    updates = np.exp(-np.arange(1400) / 200)[:, None] * np.ones((1, 4))
    updates[:, 2] = 0.8
    (found,) = incidents(with_stat(frames, "update_norm", updates.astype(np.float32)), "unconverged_layer")
    assert found.first_layer == "head_click/kernel"


def test_a_moved_label_mean_is_a_shift_of_the_data_and_no_divergence() -> None:
    frames = ranker(700)
    scalars = frames.scalars.copy()
    noise = 0.01 * np.random.default_rng(2).standard_normal(700)
    scalars[:, SCALARS.index("label_mean/click")] += noise
    scalars[400:, SCALARS.index("label_mean/click")] *= 0.5
    shifted = dataclasses.replace(frames, scalars=scalars)
    (found,) = incidents(shifted, "distribution_shift")
    assert found.tasks == ("click",)
    assert monitor.report(monitor.update(monitor.init(), shifted), "run").status == "healthy"


def test_a_learning_rate_that_stays_while_the_loss_is_flat_is_remarked_on() -> None:
    values = decay(3000, noise=0.01)
    rates = np.full(3000, 0.1)
    frames = Frames.of(Schema(("loss", "learning_rate")), np.arange(1, 3001), np.stack([values, rates], 1))
    (found,) = incidents(frames, "learning_rate_not_decayed")
    assert "0.1" in found.explanation


def test_a_long_silence_between_frames_is_a_stall() -> None:
    frames = ranker(200)
    times = np.arange(200.0)
    times[120:] += 7200
    (found,) = incidents(dataclasses.replace(frames, times=times), "stalled")
    assert (found.onset_step, found.end_step) == (120, 121)
    assert "7201 seconds" in found.explanation


@pytest.mark.parametrize("size", [1, 7, 64, 5000])
def test_the_loss_is_thinned_alike_however_blocks_are_cut(size: int) -> None:
    values, memory = np.arange(9000.0), period.Period()
    for start in range(0, len(values), size):
        period.extend(memory, values[start : start + size])
    assert memory.stride == 8
    assert len(memory.values) <= period.KEPT
    assert set(np.diff(memory.values)) == {8.0}
