"""What the detectors say about runs whose story is known."""

from collections import Counter

import numpy as np
import pytest

from lossguard.detect import monitor
from lossguard.wire.frame import Frames
from lossguard.wire.incident import Incident, RunReport

from .runs import curve, decay, ranker


def report(frames: Frames) -> RunReport:
    return monitor.report(monitor.update(monitor.init(), frames), "run")


def only(found: RunReport, *kinds: str) -> Incident:
    hits = [incident for incident in found.incidents if incident.kind in kinds]
    assert len(hits) == 1, found
    return hits[0]


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_ranker_is_healthy(seed: int) -> None:
    found = report(ranker(600, seed=seed))
    assert found.status == "healthy"
    assert not [incident for incident in found.incidents if incident.kind != "loss_spike"]


@pytest.mark.parametrize("seed", range(5))
def test_a_divergence_that_stays_is_full_though_the_loss_came_back(seed: int) -> None:
    found = report(ranker(400, seed=seed, onset=200))
    incident = only(found, "full_divergence")
    assert found.status == "diverged"
    assert 0 <= incident.detected_step - 201 <= 2
    assert incident.declared_full_step is not None
    assert incident.declared_full_step - 201 <= 90
    assert incident.end_step is None
    assert "click" in incident.explanation
    assert "step 20" in incident.explanation
    assert "optimizer slots" in incident.advice


def test_a_divergence_that_recovers_is_micro() -> None:
    found = report(ranker(400, onset=200, recovers_after=25))
    incident = only(found, "micro_divergence")
    assert found.status == "recovered"
    assert incident.end_step is not None
    assert 225 <= incident.end_step <= 260


def test_the_layer_that_moved_first_is_named_with_its_step() -> None:
    incident = only(report(ranker(400, onset=200)), "full_divergence")
    assert incident.first_layer == "shared1/kernel"
    assert incident.first_signal_step == 198
    assert "shared1/kernel" in incident.explanation


def test_a_silent_nan_is_seen_in_the_same_step_with_its_layer() -> None:
    found = report(ranker(300, nan_at=150))
    incident = only(found, "nonfinite")
    assert (incident.onset_step, incident.detected_step, incident.first_layer) == (151, 151, "shared0/kernel")
    assert found.status == "diverged"


def test_a_nan_loss_that_passes_ends() -> None:
    values = decay(300)
    values[150] = np.nan
    found = report(curve(values))
    assert only(found, "nonfinite").end_step == 201
    assert found.status == "recovered"


def test_one_bad_batch_is_information() -> None:
    frames = ranker(400)
    scalars = frames.scalars.copy()
    scalars[200, [0, 3]] += 1e4
    found = report(Frames.of(frames.schema, frames.steps, scalars, frames.stats))
    incident = only(found, "loss_spike")
    assert incident.onset_step == 201
    assert found.status == "healthy"
    assert "metrics did not fall" in incident.explanation


def test_a_collapse_of_the_auc_without_any_loss_is_an_episode() -> None:
    frames = ranker(400)
    scalars = frames.scalars.copy()
    scalars[200:, 4] -= 0.17
    found = report(Frames.of(frames.schema, frames.steps, scalars, frames.stats))
    assert found.status == "diverged"
    assert found.incidents[-1].tasks == ("click",)


def test_a_loss_only_jump_that_returns_is_micro_and_one_that_stays_is_full() -> None:
    values = decay(400)
    values[200:230] += np.linspace(3, 0.3, 30)
    assert only(report(curve(values)), "micro_divergence").onset_step == 201
    values = decay(400)
    values[200:] += 1.5
    found = report(curve(values))
    assert only(found, "full_divergence").onset_step == 201
    assert found.status == "diverged"


def test_a_slide_without_any_jump_is_found() -> None:
    values = decay(500)
    values[200:] += np.linspace(0, 2.5, 300)
    found = report(curve(values))
    assert found.status == "diverged"


def test_a_heavy_tailed_loss_stays_quiet() -> None:
    rng = np.random.default_rng(3)
    values = decay(4000) + 0.03 * rng.standard_t(3, 4000)
    found = report(curve(values))
    # A t distribution with 3 degrees of freedom throws a 10-sigma value every 500 frames; 6 sigma fires 5 times here.
    assert len([i for i in found.incidents if i.kind == "micro_divergence"]) <= 2
    assert not [i for i in found.incidents if i.kind == "full_divergence"]


def wandering(frames: int, memory: float, seed: int) -> np.ndarray:
    """A loss that has nothing to learn, as after a warm start: 0.5, with noise of 0.02 that remembers so much."""
    noise = np.random.default_rng(seed).standard_normal(frames)
    for t in range(1, frames):
        noise[t] = memory * noise[t - 1] + (1 - memory**2) ** 0.5 * noise[t]
    return 0.5 + 0.02 * noise


def test_a_loss_that_wanders_about_its_level_is_not_broken() -> None:
    kinds = Counter[str]()
    for memory in (0.0, 0.5, 0.8, 0.9, 0.97):
        for seed in range(5):
            kinds.update(incident.kind for incident in report(curve(wandering(2000, memory, seed))).incidents)
    assert kinds["full_divergence"] <= 1
    assert kinds["micro_divergence"] <= 25, "one in 2000 frames"


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_a_warm_start_that_breaks_is_found(memory: float) -> None:
    values = wandering(1500, memory, 1)
    values[900:] += 0.3
    assert only(report(curve(values)), "full_divergence").onset_step == 901
    values = wandering(1500, memory, 1)
    values[900:] += np.linspace(0, 0.6, 600)
    assert report(curve(values)).status == "diverged"


def test_a_smaller_loss_is_no_incident() -> None:
    values = decay(300)
    values[150:] -= 1.0
    assert report(curve(values)).incidents == ()
