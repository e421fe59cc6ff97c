"""The factors that other methods would have used, from the frames of a run alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from lossguard.trace import read
from lossguard.trace.factors import would_be
from lossguard.wire.frame import Frames, Schema
from lossguard.wire.stats import CLIPPY_RATIO, GRADIENT_NORM, UPDATE_NORM, WEIGHT_NORM

STATS = (WEIGHT_NORM, GRADIENT_NORM, UPDATE_NORM, CLIPPY_RATIO)


def frames(*rows: tuple[float, float, float, float], eta: float = 0.5) -> Frames:
    """One layer: ‖w‖, ‖g‖, ‖u‖ and Clippy's ratio at each step."""
    steps = np.arange(1, len(rows) + 1)
    schema = Schema(("learning_rate",), ("a",), STATS)
    stats = np.array(rows, "float32")[:, None, :]
    return Frames.of(schema, steps, np.full((len(rows), 1), eta), stats)


def test_they_are_the_papers_at_any_threshold() -> None:
    run = frames((2.0, 4.0, 0.25, 8.0), (2.0, 0.05, 0.25, 0.5), (0.0, 4.0, 0.25, np.inf), (2.0, 0.0, 0.0, 0.0))
    np.testing.assert_allclose(would_be(run, "clippy")[:, 0], [0.125, 1, 0, 1])
    np.testing.assert_allclose(would_be(run, "gc")[:, 0], [0.025, 1, 0.025, 1])
    np.testing.assert_allclose(would_be(run, "gc", 1.0)[:, 0], [0.25, 1, 0.25, 1])
    np.testing.assert_allclose(would_be(run, "agc")[:, 0], [5e-4, 0.04, 0, 1])
    np.testing.assert_allclose(would_be(run, "agc", 0.5, epsilon=1e-2)[:, 0], [0.25, 1, 0.00125, 1])
    # ‖r‖ = 0.25 / 0.5; mu alone where a norm is 0.
    np.testing.assert_allclose(would_be(run, "lamb")[:, 0], [4e-3, 4e-3, 1e-3, 1e-3])
    np.testing.assert_allclose(would_be(run, "lamb", 2.0)[:, 0], [8, 8, 2, 2])


def test_what_was_not_measured_or_is_nan_has_none() -> None:
    run = frames((2.0, np.nan, np.nan, np.nan), (np.nan, 0.0, 0.0, 0.0), (2.0, 4.0, 0.25, 8.0))
    for method, missing in (("clippy", [0]), ("gc", [0]), ("agc", [0, 1]), ("lamb", [0, 1])):
        assert np.flatnonzero(np.isnan(would_be(run, method)[:, 0])).tolist() == missing  # type: ignore[arg-type]
    run.stats_present[2, STATS.index(WEIGHT_NORM)] = False
    run.scalars_present[2, 0] = False
    assert np.isnan(would_be(run, "agc")[2, 0])
    assert np.isnan(would_be(run, "lamb")[2, 0])
    assert would_be(run, "gc")[2, 0] == pytest.approx(0.025)


def test_a_question_that_has_no_answer_is_one_sentence() -> None:
    run = Frames.of(Schema(("loss",), ("a",), (GRADIENT_NORM, UPDATE_NORM, WEIGHT_NORM)), [1], [[0.5]], [[[1, 1, 1]]])
    with pytest.raises(ValueError, match="method: must be one of clippy, gc, agc, lamb, got 'sgd'"):
        would_be(run, "sgd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no stat clippy_ratio; there are: gradient_norm, update_norm, weight_norm"):
        would_be(run, "clippy")
    with pytest.raises(ValueError, match="no scalar learning_rate"):
        would_be(run, "lamb")
    with pytest.raises(ValueError, match="threshold: clippy's are those"):
        would_be(run, "clippy", 0.1)


def test_a_stored_run_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    np.savez(
        path, step=[1, 2], scalar_names=["learning_rate"], scalars=[[0.5], [0.5]], layer_names=["a"],
        stat_names=list(STATS), stats=np.array([[[2, 4, 0.25, 8]], [[2, 0.05, 0.25, 0.5]]], "float32"),
        meta=json.dumps({}),
    )  # fmt: skip
    (block,) = read.read(path).attempts
    np.testing.assert_allclose(would_be(block, "agc", threshold=1.0), [[0.5], [1.0]])
