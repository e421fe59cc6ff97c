"""Runs side by side: groups of one configuration, their spread, how often they diverge, and where they part."""

import doctest
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from pages_service import TASKS, Service, ranker

from lossguard.wire.frame import Frames
from lossguard_service.store.buckets import Buckets
from lossguard_service.web import apart, compare, trials
from lossguard_service.web.apart import Apart, parting, same_until


@dataclass(frozen=True)
class Said:
    """As much of a run as grouping looks at."""

    config: dict[str, Any]
    status: str = "healthy"


def steps(first: int, values: list[float], width: int = 1) -> Buckets:
    """One column, a bucket of `width` steps a value."""
    at = first + width * np.arange(len(values))
    column = np.array(values)[:, None]
    ones = np.ones_like(column, np.int64)
    return Buckets(at, at + width - 1, ones * width, ones * 0, column, column, column)


def changed(frames: Frames, step: int) -> Frames:
    """The same frames, but for the loss of one step."""
    scalars = frames.scalars.copy()
    scalars[frames.steps.searchsorted(step), 0] += 1e-9
    return replace(frames, scalars=scalars)


def test_examples_in_docstrings() -> None:
    for module in (compare, trials, apart):
        assert doctest.testmod(module).failed == 0


def test_the_first_bucket_that_differs_is_where_the_frames_are_read_from() -> None:
    one = steps(1, [1.0, np.nan, 3.0, 4.0], width=100)
    assert same_until(one, steps(1, [1.0, np.nan, 3.0, 5.0], width=100)) == 301
    assert same_until(one, steps(1, [1.0, np.nan], width=100)) == 101
    # Buckets with other edges say nothing about equality.
    assert same_until(one, steps(1, [1.0, np.nan, 3.0, 4.0], width=99)) == 1
    assert same_until(one, steps(1, [])) == 0


def test_runs_part_at_the_first_step_that_both_hold_and_that_differs() -> None:
    one = steps(1, [1.0, np.nan, 3.0, 4.0, 5.0])
    assert parting(one, steps(2, [np.nan, 3.0, 4.5, 6.0]), ["loss"]) == Apart(4, 4, "loss")
    assert parting(one, steps(3, [3.0, 4.0]), ["loss"]) is None
    assert parting(one, steps(1, [1.0, 2.0]), ["loss"]) == Apart(2, 2, "loss")
    assert parting(one, steps(50, [1.0]), ["loss"]) is None


def test_a_comparison_names_the_exact_step_of_a_long_run(service: Service) -> None:
    frames = ranker(2500)
    service.send("trials", "first", frames, config=TASKS | {"seed": 1})
    service.send("trials", "second", changed(frames, 1777), config=TASKS | {"seed": 2})
    service.send("trials", "third", frames, config=TASKS | {"seed": 3}, start=0)
    runs = ["trials/first", "trials/second", "trials/third"]
    page = service.client.get("/compare", params={"run": runs}).text
    assert "from first at step 1,777, loss" in page
    assert "nowhere from first" in page
    assert "Spread in A" in page
    assert "0 of 3, 0% (95% interval 0% to 56%)" in page


def test_runs_are_grouped_by_configuration_with_their_spread_and_divergence_ratio(service: Service) -> None:
    service.send("trials", "other", ranker(400), config=TASKS | {"optimizer": {"class": "Adam", "epsilon": None}})
    chosen = {"run": ["ranker/plain", "trials/other", "ranker/clippy"]}
    page = service.client.get("/compare", params=chosen).text
    assert "2 configurations, 3 runs" in page
    assert "1 of 2, 50% (95% interval 9.5% to 91%)" in page
    assert "optimizer Adagrad" in page
    assert "optimizer.class Adam" in page
    assert "from plain at step 220, loss" in page
    assert "Spread in B" not in page
    row = re.search(r'<th scope="row">Batch AUC: click</th>(.*?)</tr>', page)
    assert row is not None
    first, second, spread, _ = (float(value) for value in re.findall(r">([\d.]+)<", row[1]))
    assert first == pytest.approx(0.5, abs=0.02)
    assert second - first == pytest.approx(spread, abs=0.002)
    assert "Choose at least two runs" in service.client.get("/compare?run=ranker/plain&run=no/body").text
    data = service.client.get("/compare.json?run=ranker/plain&run=ranker/clippy&from=100&to=110").json()
    assert {line["label"] for chart in data["charts"] for line in chart["lines"]} == {"ranker/plain", "ranker/clippy"}
    assert data["charts"][0]["lines"][0]["first"] == list(range(100, 111))


def test_seeds_make_no_configuration_and_runs_that_say_nothing_stand_alone() -> None:
    told = {"optimizer": {"class": "Adam"}, "versions": {"keras": "3"}}
    runs: Any = [Said(told | {"seed": 1}), Said(told | {"seed": 2}, "diverged"), Said({}), Said({})]
    assert [group.places for group in trials.groups(runs)] == [(0, 1), (2,), (3,)]
    assert trials.groups(runs[:2])[0].differs == ""
    assert trials.groups(runs)[0].diverged == 1


def test_what_sets_configurations_apart_is_said_in_words_and_never_a_seed() -> None:
    told = {"optimizer": {"class": "Adagrad"}, "treatment": [], "data": {"shuffle_seed": 1}}
    clippy = {"name": "Clippy", "lambda_rel": 0.5, "exclude": ["embed"]}
    runs: Any = [Said(told), Said(told | {"treatment": [clippy], "data": {"shuffle_seed": 2}, "seed": 9})]
    assert [group.differs for group in trials.groups(runs)] == [
        "no treatment",
        "treatment Clippy (lambda_rel 0.5, exclude embed)",
    ]
