"""Which layer is named: the one whose movement leads into the onset, not the one that coughed long before."""

import doctest
import json

import numpy as np
import pytest

from lossguard.detect import layers, monitor, ranking
from lossguard.wire.frame import Frames
from lossguard.wire.incident import Incident

from .runs import LAYERS, STATS, ranker, rarely

NAMES = ("a/kernel", "b/bias", "c/kernel")
ONSET = 15
"""The onset's place in a window of 20 frames; it was flagged 4 frames later."""


def only(frames: Frames, kind: str = "full_divergence") -> Incident:
    found = monitor.report(monitor.update(monitor.init(), frames), "run").incidents
    (incident,) = [one for one in found if one.kind == kind]
    return incident


def named(moved: dict[int, list[int]], since: int = 4) -> list[tuple[str, int]]:
    """The ranking for layers that moved at these places."""
    places = sorted((at, i) for i, ats in moved.items() for at in ats)
    frame, layer = np.array(places, np.int64).reshape(-1, 2).T
    state = layers.Layers(NAMES, seen=20, kept=20, moved_frame=frame, moved_layer=layer, moved_height=9.0 + layer)
    return [(name, ago) for name, ago, _ in layers.movers(state, 20, since)]


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        ({}, []),
        ({1: [4], 0: [15, 16]}, [("a/kernel", 4)]),
        ({1: [4]}, []),
        ({1: [4, 9, 14], 0: [15]}, [("b/bias", 15), ("a/kernel", 4)]),
        ({1: [4, 12, 15]}, [("b/bias", 7)]),
        ({0: [15], 1: [15], 2: [15]}, [("c/kernel", 4), ("b/bias", 4), ("a/kernel", 4)]),
        ({0: [19], 1: [11]}, [("b/bias", 8), ("a/kernel", 0)]),
    ],
)
def test_a_movement_counts_from_where_it_leads_without_a_break_into_the_onset(
    moved: dict[int, list[int]], expected: list[tuple[str, int]]
) -> None:
    assert named(moved) == expected


def test_an_incident_ranks_layers_and_tasks_by_who_moved_first_and_how_far() -> None:
    incident = only(ranker(400, onset=200))
    first = incident.movers[0]
    assert (first.what, first.name, first.step) == ("layer", incident.first_layer, incident.first_signal_step)
    assert [one.step for one in incident.movers] == sorted(one.step for one in incident.movers)
    tasks = {one.name: one for one in incident.movers if one.what == "task"}
    assert set(tasks) == {"", "click", "play"}
    assert all(one.step in (201, 202) for one in tasks.values())
    assert max(one.height for one in tasks.values()) == pytest.approx(incident.peak, rel=0.01)
    assert {one.name for one in incident.movers if one.what == "layer"} == set(LAYERS)


def test_a_nan_ranks_the_layer_that_holds_it() -> None:
    incident = only(ranker(300, nan_at=150), "nonfinite")
    assert [(one.what, one.name, one.step) for one in incident.movers] == [("layer", "shared0/kernel", 151)]
    assert Incident.from_json(json.loads(json.dumps(incident.to_json(), allow_nan=False))) == incident


def test_the_examples_of_the_ranking_hold() -> None:
    assert doctest.testmod(ranking).failed == 0
    many = ranking.add((), [("layer", f"l{i}", i, 7.0) for i in range(50)])
    assert [name for _, name, _, _ in many] == [f"l{i}" for i in range(ranking.KEPT)]


def test_a_stat_that_is_measured_every_16th_step_is_judged_by_its_own_frames() -> None:
    noise = np.exp(0.4 * np.random.default_rng(5).standard_normal((3000, len(LAYERS)))).astype(np.float32)
    frames = ranker(3000)
    frames.stats[:, :, STATS.index("update_norm")] *= noise
    state, moved = monitor.init(), 0
    for start in range(0, len(frames), 40):
        state = monitor.update(state, rarely(frames)[start : start + 40])
        moved += len(layers.movers(state.layers, 40))
    assert moved <= 1
    scales = {memory.signals: memory.scale for memory in state.layers.memories}
    assert set(scales) == {("gradient_norm",), ("update_over_weight", "clippy_ratio")}
    assert 0.2 < float(np.median(scales["update_over_weight", "clippy_ratio"][0])) < 0.6
