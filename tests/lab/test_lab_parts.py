"""What the lab is made of, without a training: grouping, keeping, folding."""

import json
from pathlib import Path

import numpy as np
import pytest

from lab import cache as cache_module
from lab.cache import Cache, code_version
from lab.config import Config, Outcome
from lab.experiments import fluctuation
from lab.grids import MAKERS, METHODS
from lab.pool import CHUNK, chunks
from lossguard.trace.trace import TraceError
from lossguard.wire.frame import Frames, Schema

SCALARS = ("loss", "loss/click", "batch_auc/click", "label_mean/click")


@pytest.fixture
def frames() -> Frames:
    steps = np.arange(1, 121)
    draw = np.random.default_rng(0)
    columns = [
        10 + draw.normal(0, 0.1, 120),
        0.6 + draw.normal(0, 0.01, 120),
        0.68 + draw.normal(0, 0.01, 120),
        np.full(120, 0.44),
    ]
    return Frames.of(Schema(SCALARS), steps, np.stack(columns, 1))


@pytest.fixture
def outcome() -> Outcome:
    return Outcome(
        config=Config(tasks=("click",), settings=(("threshold", 0.1),)),
        status="diverged",
        incidents=[],
        hindsight="full",
        onset=3,
        judged="by older detectors",
        final={"auc/click": 0.67, "rmse/play_time": float("nan")},
        curve=[[120, 0.67, float("nan")]],
        digest="d",
        cpu_seconds=1.0,
        wall_seconds=2.0,
    )


def test_runs_that_share_a_compiled_step_stay_together_in_the_order_of_their_importance() -> None:
    small = [Config(bottom="small", seed=seed) for seed in range(3 * CHUNK)]
    large = [Config(bottom="large", learning_rate=rate) for rate in (0.1, 0.2)]
    cut = chunks([large[0], *small, large[1], large[0]], workers=2)
    assert cut[0] == large
    assert [config for part in cut[1:] for config in part] == small
    assert max(map(len, cut)) <= CHUNK
    assert len(chunks(small, workers=1)) == 1


def test_a_configuration_survives_its_document() -> None:
    config = Config(treatment="clippy", settings=(("lambda_abs", 0.01),), tasks=("click",), batch_seed=3)
    assert Config.of(json.loads(json.dumps(config.document()))) == config
    assert hash(config) == hash(Config.of(config.document()))


def test_a_kept_run_comes_back_judged_by_the_detectors_of_today(
    tmp_path: Path, frames: Frames, outcome: Outcome
) -> None:
    cache = Cache(tmp_path, "data", 0.67)
    assert cache.load(outcome.config) is None
    cache.store(outcome, frames, {})
    found = cache.load(outcome.config)
    assert found is not None
    assert (found.status, found.hindsight, found.onset) == ("healthy", "healthy", None)
    assert found.final["auc/click"] == 0.67
    assert np.isnan(found.final["rmse/play_time"])
    again = Cache(tmp_path, "data", 0.67).load(outcome.config)
    assert again is not None
    assert again.judged == found.judged
    assert cache.load(outcome.config.but(seed=1)) is None
    assert Cache(tmp_path, "other data", 0.67).load(outcome.config) is None


def test_a_trace_without_its_outcome_is_no_run(tmp_path: Path, frames: Frames, outcome: Outcome) -> None:
    cache = Cache(tmp_path, "data", 0.67)
    cache.store(outcome, frames, {})
    (tmp_path / f"{cache.key(outcome.config)}.json").unlink()
    assert cache.load(outcome.config) is None
    with pytest.raises(TraceError):
        cache.trace(outcome.config.but(seed=1))


def test_every_treatment_has_a_version_of_its_own() -> None:
    assert set(METHODS) <= {"naive", *MAKERS}
    versions = {name: code_version(name) for name in ("naive", "clippy", "lamb")}
    assert len(set(versions.values())) == 3
    assert code_version("gc") == code_version("agc")  # one module
    assert cache_module.library_version("no-such-library") == "absent"


def test_a_loss_with_the_period_of_an_epoch_is_told_from_noise() -> None:
    draw = np.random.default_rng(0)
    steps = 200
    noise = draw.normal(0, 0.3, 6 * steps)
    wave = np.sin(np.arange(6 * steps) * 2 * np.pi / steps)
    assert fluctuation.correlation(10 + wave + noise, steps) > 0.8
    assert abs(fluctuation.correlation(10 + noise, steps)) < 0.5
    assert fluctuation.amplitude(10 + wave + noise, steps) > 3 * fluctuation.amplitude(10 + noise, steps)
    assert np.isnan(fluctuation.correlation(noise[:100], steps))
