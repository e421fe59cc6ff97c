"""Frames that tell nothing wait to be taken in; nobody can tell from the answers."""

import dataclasses
import itertools
import random

import numpy as np
import pytest

from lossguard.detect import monitor
from lossguard.wire.frame import Frames

from .runs import curve, decay, ranker, rarely


def by_series(frames: Frames) -> Frames:
    """The same block as a chunk holds it."""
    return dataclasses.replace(frames, stats=np.ascontiguousarray(frames.stats.transpose(2, 1, 0)).transpose(2, 1, 0))


def with_scalar(frames: Frames, column: int, values: np.ndarray) -> Frames:
    scalars = frames.scalars.copy()
    scalars[:, column] = values
    return dataclasses.replace(frames, scalars=scalars)


def with_times(frames: Frames) -> Frames:
    """Handed over once a second, but for one night, and for one frame whose time is unknown."""
    times = 1.7e9 + np.arange(len(frames)) + 9000.0 * (np.arange(len(frames)) >= 203)
    times[250] = np.nan
    return dataclasses.replace(frames, times=times)


def with_stat(frames: Frames, t: int, stat: str, value: float) -> Frames:
    stats = frames.stats.copy()
    stats[t, 2, frames.schema.stats.index(stat)] = value
    return by_series(dataclasses.replace(frames, stats=stats))


def absent_here_and_there(frames: Frames) -> Frames:
    present = np.random.default_rng(3).random(frames.scalars_present.shape) > 0.01
    return dataclasses.replace(frames, scalars_present=present, scalars=np.where(present, frames.scalars, np.nan))


RUN = ranker(320)
RUNS = {
    "healthy": by_series(RUN),
    "full": ranker(320, onset=203),
    "micro": by_series(ranker(320, onset=203, recovers_after=40)),
    "rare stats": rarely(ranker(320, onset=203), phase=5),
    "every fifth": rarely(RUN, every=5),
    "curve": curve(np.concatenate([decay(203), decay(30) + 6, decay(100)])),
    "night": with_times(RUN),
    "labels move": with_scalar(RUN, 5, np.where(np.arange(320) < 203, 0.442, 0.8)),
    "rate falls": with_scalar(RUN, 1, 0.1 / (1 + np.arange(320) / 100)),
    "rate steps": with_scalar(RUN, 1, np.where(np.arange(320) < 203, 0.1, 0.05)),
    "rate becomes NaN": with_scalar(RUN, 1, np.where(np.arange(320) < 203, 0.1, np.nan)),
    "loss is NaN once": with_scalar(RUN, 2, np.where(np.arange(320) == 203, np.nan, RUN.scalars[:, 2])),
    "absent scalars": absent_here_and_there(RUN),
    "a gradient is infinite": with_stat(RUN, 203, "gradient_norm", np.inf),
    "a weight is NaN": with_stat(RUN, 203, "weight_norm", np.nan),
    "a count is not 0": with_stat(RUN, 203, "nonfinite_count", 2),
    "a norm is the largest number": with_stat(RUN, 203, "update_norm", 3.4e38),
    "a ratio is infinite": with_stat(RUN, 203, "clippy_ratio", np.inf),
}


def cuts(frames: Frames, longest: int, seed: int = 0) -> list[Frames]:
    rng, edges = random.Random(seed), [0]
    while edges[-1] < len(frames):
        edges.append(min(len(frames), edges[-1] + rng.randint(1, longest)))
    return [frames[start:stop] for start, stop in itertools.pairwise(edges)]


@pytest.mark.parametrize("longest", [1, 6])
@pytest.mark.parametrize("name", RUNS)
def test_incidents_are_known_at_the_frame_at_which_they_happen(name: str, longest: int) -> None:
    """Beside the state under test goes one that is written and read after each block, so that no frame waits in it."""
    state = eager = monitor.init()
    for part in cuts(RUNS[name], longest):
        state, eager = monitor.update(state, part), monitor.loads(monitor.dumps(monitor.update(eager, part)))
        assert eager.waiting is None
        assert monitor.report(state, "x") == monitor.report(eager, "x")
    assert monitor.dumps(state) == monitor.dumps(eager)


@pytest.mark.parametrize("name", ["healthy", "every fifth", "night", "rate falls", "curve"])
def test_most_frames_of_a_healthy_run_wait(name: str) -> None:
    frames, waited = RUNS[name], 0
    state = monitor.update(monitor.init(), frames[:128])
    for t in range(128, 200):
        state = monitor.update(state, frames[t : t + 1])
        waited += state.waiting is not None
    assert waited > 36


def test_a_state_with_frames_waiting_is_a_value_like_any_other() -> None:
    state = monitor.update(monitor.init(), RUNS["healthy"][:130])
    early = monitor.update(state, RUNS["healthy"][130:131])
    assert early.waiting is not None
    written = monitor.dumps(early)
    one, other = (monitor.update(early, RUNS[name][131:260]) for name in ("healthy", "full"))
    assert monitor.dumps(one) != monitor.dumps(other)
    assert monitor.dumps(early) == written
    assert monitor.dumps(state) == monitor.dumps(monitor.update(monitor.init(), RUNS["healthy"][:130]))


def test_frames_wait_without_the_block_that_they_were_cut_from() -> None:
    frames = ranker(160)
    state = monitor.update(monitor.update(monitor.init(), frames[:130]), frames[130:131])
    assert state.waiting is not None
    (part,) = state.waiting.parts
    assert not np.shares_memory(part.stats, frames.stats)


def test_a_new_attempt_does_not_wait_for_what_the_last_one_left() -> None:
    frames = RUNS["healthy"]
    late = monitor.update(monitor.update(monitor.init(), frames[:130]), frames[130:131])
    assert late.waiting is not None
    fresh = monitor.new_attempt(late, 100)
    assert fresh.waiting is None
    assert monitor.dumps(fresh) == monitor.dumps(monitor.new_attempt(monitor.loads(monitor.dumps(late)), 100))
