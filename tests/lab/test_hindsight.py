"""The rule that knows a run's end."""

import numpy as np
import pytest

from lab import hindsight

REFERENCE = 0.67
STEPS = 300


@pytest.fixture
def loss() -> np.ndarray:
    return 10.0 + np.random.default_rng(0).normal(0, 0.3, STEPS)


@pytest.fixture
def ranked() -> np.ndarray:
    return 0.68 + np.random.default_rng(1).normal(0, 0.01, STEPS)


def test_a_calm_run_is_healthy(loss: np.ndarray, ranked: np.ndarray) -> None:
    assert hindsight.judge(loss, ranked, 0.67, REFERENCE) == ("healthy", None)


def test_a_jump_with_a_ranking_that_never_comes_back_is_full_although_the_loss_does(
    loss: np.ndarray, ranked: np.ndarray
) -> None:
    loss[150:155] = 1e6
    ranked[150:] = 0.5
    label, onset = hindsight.judge(loss, ranked, 0.5, REFERENCE)
    assert label == "full"
    assert onset == 151


def test_a_jump_that_recovers_with_its_ranking_is_micro(loss: np.ndarray, ranked: np.ndarray) -> None:
    loss[150:170] = 100.0
    ranked[150:190] = 0.55
    label, onset = hindsight.judge(loss, ranked, 0.67, REFERENCE)
    assert label == "micro"
    assert onset == 151


def test_a_jump_of_the_loss_alone_is_a_bad_batch(loss: np.ndarray, ranked: np.ndarray) -> None:
    loss[150:154] = 100.0
    assert hindsight.judge(loss, ranked, 0.67, REFERENCE)[0] == "healthy"


def test_a_run_that_dies_in_its_first_steps_is_full_from_there(loss: np.ndarray, ranked: np.ndarray) -> None:
    loss[1] = 1e5
    ranked[:] = 0.5
    assert hindsight.judge(loss, ranked, 0.5, REFERENCE) == ("full", 2)


def test_a_run_that_learned_too_little_without_an_event_is_degraded(loss: np.ndarray, ranked: np.ndarray) -> None:
    assert hindsight.judge(loss, ranked - 0.08, 0.59, REFERENCE) == ("degraded", None)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_named_so(loss: np.ndarray, ranked: np.ndarray, value: float) -> None:
    loss[41] = value
    assert hindsight.judge(loss, ranked, 0.67, REFERENCE) == ("nan", 42)


def test_a_final_auc_of_nan_is_lost(loss: np.ndarray, ranked: np.ndarray) -> None:
    assert hindsight.judge(loss, ranked, float("nan"), REFERENCE)[0] == "degraded"
