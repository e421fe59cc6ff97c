"""The generated stream has the shape that makes KuaiRand worth training on."""

import numpy as np
import pytest

from lossguard.demo import features, stream
from lossguard.demo.tables import COLUMNS, DataError, Tables


def _same(one: Tables, other: Tables) -> bool:
    return all(
        np.array_equal(getattr(one, table)[column], getattr(other, table)[column])
        for table, columns in COLUMNS.items()
        for column in columns
    )


def test_a_seed_makes_a_stream_and_another_seed_another() -> None:
    sizes = {"days": 3, "rows_per_day": 200, "users": 100, "videos": 50}
    assert _same(stream.generate(1, **sizes), stream.generate(1, **sizes))
    assert not _same(stream.generate(1, **sizes), stream.generate(2, **sizes))


def test_rows_are_in_time_order_and_lie_on_the_day_they_name(small: Tables) -> None:
    log = small.interactions
    day = log["time_ms"].astype("datetime64[ms]").astype("datetime64[D]")
    assert np.all(np.diff(log["time_ms"]) >= 0)
    assert np.array_equal(log["date"], [int(text.replace("-", "")) for text in day.astype(str)])
    assert len(np.unique(log["date"])) == 14


def test_play_time_has_a_heavy_tail_and_grows_with_the_click() -> None:
    log = stream.generate(0).interactions
    played, clicked = log["play_time_ms"], log["is_click"] > 0
    assert np.quantile(played, 0.999) > 20 * np.mean(played)
    assert np.mean(played[clicked]) > 5 * np.mean(played[~clicked])


def test_click_rates_drift_from_day_to_day_more_than_chance_does() -> None:
    log = stream.generate(0).interactions
    rates = np.array([np.mean(log["is_click"][log["date"] == date]) for date in np.unique(log["date"])])
    assert np.std(rates) > 3 * np.sqrt(0.25 / 16_000)


def test_no_video_is_shown_before_it_has_appeared_and_new_ones_keep_appearing() -> None:
    tables = stream.generate(0)
    log = tables.interactions
    uploaded = tables.videos["upload_dt"].astype("datetime64[D]")[log["video_id"]]
    shown = log["time_ms"].astype("datetime64[ms]").astype("datetime64[D]")
    assert np.all(shown >= uploaded)
    last = log["date"] == log["date"][-1]
    assert len(np.setdiff1d(log["video_id"][last], log["video_id"][~last])) > 50


def test_what_users_like_can_be_learned_from_the_features() -> None:
    tables = stream.generate(0)
    examples = features.encode(tables)
    click = examples.labels["click"]
    # The share of the variance of the click that each video's and each tab's own rate explain.
    for column in (tables.interactions["video_id"], tables.interactions["tab"]):
        rate = np.bincount(column, click) / np.maximum(np.bincount(column), 1)
        assert np.corrcoef(rate[column], click)[0, 1] > 0.15


@pytest.mark.parametrize("wrong", [{"days": 1}, {"rows_per_day": 0}, {"users": 0}, {"videos": 1}])
def test_a_stream_that_is_none_is_refused_by_name(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(DataError, match=f"{name}: must be at least"):
        stream.generate(0, **wrong)
