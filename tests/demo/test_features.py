"""What the ranker reads: finite, in range, and estimated without the day it is judged on."""

import numpy as np
import pytest

from lossguard.demo import batches, features
from lossguard.demo.features import TASKS, Examples
from lossguard.demo.tables import DataError, Tables


def _but(tables: Tables, **changed: np.ndarray) -> Tables:
    return Tables({**tables.interactions, **changed}, tables.users, tables.videos)


def test_every_code_lies_in_its_own_columns_rows(examples: Examples) -> None:
    lows, highs = examples.categorical.min(axis=0), examples.categorical.max(axis=0)
    assert lows[0] >= 0
    assert highs[-1] < examples.rows
    assert np.all(highs[:-1] < lows[1:])


def test_every_number_is_finite_and_has_unit_scale_on_the_training_days(examples: Examples) -> None:
    assert np.all(np.isfinite(examples.numeric))
    deviation = examples.numeric[: examples.training].std(axis=0)
    assert np.all((np.abs(deviation - 1) < 0.01) | (deviation < 1e-3))


def test_every_task_has_a_label_per_row_of_its_kind(examples: Examples) -> None:
    assert tuple(examples.labels) == tuple(TASKS)
    for task, kind in TASKS.items():
        values = examples.labels[task]
        assert len(values) == len(examples)
        assert np.all(np.isfinite(values))
        if kind == "binary":
            assert set(np.unique(values)) <= {0.0, 1.0}
    assert examples.labels["watch_ratio"].max() <= features.RATIO_LIMIT
    assert examples.labels["play_time"].max() > 10


def test_the_last_day_does_not_reach_back_into_the_days_before(small: Tables, examples: Examples) -> None:
    log = small.interactions
    last = log["date"] == log["date"][-1]
    longer = np.where(last, log["duration_ms"] * 100, log["duration_ms"])
    changed = features.encode(_but(small, duration_ms=longer))
    assert np.array_equal(changed.numeric[: examples.training], examples.numeric[: examples.training])


def test_an_unknown_user_and_video_share_a_row_that_nobody_else_has(small: Tables) -> None:
    log = small.interactions
    strangers = np.array([10**9, 10**9 + 1])
    user = np.concatenate([strangers, log["user_id"][2:]])
    video = np.concatenate([strangers, log["video_id"][2:]])
    found = features.encode(_but(small, user_id=user, video_id=video))
    assert np.array_equal(found.categorical[0, 0:1], found.categorical[1, 0:1])
    assert not np.any(found.categorical[2:, 0] == found.categorical[0, 0])
    assert np.all(np.isfinite(found.numeric))


def test_a_video_without_a_length_has_the_watch_ratio_zero(small: Tables) -> None:
    found = features.encode(_but(small, duration_ms=np.zeros_like(small.interactions["duration_ms"])))
    assert np.all(found.labels["watch_ratio"] == 0)


def test_one_day_is_not_enough(small: Tables) -> None:
    first = small.interactions["date"] == small.interactions["date"][0]
    one_day = {key: column[first] for key, column in small.interactions.items()}
    with pytest.raises(DataError, match="at least two days"):
        features.encode(Tables(one_day, small.users, small.videos))


def test_tables_refuse_what_is_not_a_log(small: Tables) -> None:
    log = small.interactions
    with pytest.raises(DataError, match="in time order"):
        _but(small, time_ms=log["time_ms"][::-1])
    with pytest.raises(DataError, match="different lengths"):
        _but(small, is_click=log["is_click"][1:])
    with pytest.raises(DataError, match="the column 'is_like' is missing"):
        Tables({key: value for key, value in log.items() if key != "is_like"}, small.users, small.videos)
    with pytest.raises(DataError, match="the table is empty"):
        Tables({key: value[:0] for key, value in log.items()}, small.users, small.videos)
    twice = {key: np.concatenate([value, value[:1]]) for key, value in small.users.items()}
    with pytest.raises(DataError, match="user_id stands more than once"):
        Tables(log, twice, small.videos)


def test_batches_follow_the_days_and_never_see_the_last(examples: Examples) -> None:
    rows = batches.indices(examples, 40, seed=5, batch=64)
    assert rows.shape == (40, 64)
    assert rows.max() < examples.training
    days = examples.day[rows]
    assert days[0].max() <= 1
    assert days[-1].min() >= examples.last_day - 2
    assert np.all(days.max(axis=1) - days.min(axis=1) <= 2)
    assert np.array_equal(rows, batches.indices(examples, 40, seed=5, batch=64))
    assert not np.array_equal(rows, batches.indices(examples, 40, seed=6, batch=64))
