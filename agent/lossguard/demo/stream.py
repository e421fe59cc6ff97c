"""A seeded stream of interactions in the shape of KuaiRand-Pure, for a machine that has no data.

Guarantees: on one machine the same seed gives the same tables, bit for bit; the columns are
KuaiRand's and so is what matters to a ranker: click rates that drift from day to day and differ between tabs, a play
time with a heavy tail (the best-fed cause of spurious gradients), items whose popularity is steep and which keep
appearing during the stream. What users like is drawn, so a model can learn it; nobody's data are in here.
"""

import numpy as np

from lossguard.demo.tables import USER_CODES, Column, DataError, Tables

FIRST_DAY = np.datetime64("2022-04-25")
DAY_MS = 86_400_000
TASTES = 8
"""Dimensions of what users like and of what videos are."""

_TAB_SHARE = np.array([0.09, 0.75, 0.03, 0.002, 0.06, 0.003, 0.05, 0.015])
_TAB_LOGIT = np.array([-2.0, 0.0, 0.1, -3.0, 0.5, -1.0, -1.6, -2.5])
_HOURS = np.array([9, 5, 4, 2, 2, 2, 4, 6, 7, 9, 10, 12, 13, 13, 12, 12, 13, 14, 13, 12, 13, 13, 14, 14])
_RANGES = (0, 10, 50, 100, 150, 250, 500)


def generate(
    seed: int = 0, *, days: int = 14, rows_per_day: int = 16_000, users: int = 25_000, videos: int = 6_400
) -> Tables:
    """The tables of one stream.

    Args:
        seed: draws everything.
        days: how many, at least 2; the last one is for judging.
        rows_per_day: impressions a day, on average.
        users: users who may appear.
        videos: videos that will have appeared by the last day; half of them are there on the first.

    Raises:
        DataError: a count that is too small to be a stream.
    """
    for name, value, least in (("days", days, 2), ("rows_per_day", rows_per_day, 1), ("users", users, 1)):
        if value < least:
            raise DataError(f"{name}: must be at least {least}, got {value}")
    if videos < 2:
        raise DataError(f"videos: must be at least 2, got {videos}")
    draw = np.random.default_rng([seed, 0x10557])
    user_taste = draw.normal(size=(users, TASTES))
    video_taste = draw.normal(size=(videos, TASTES))
    user_table = _users(draw, user_taste)
    video_table, first_day = _videos(draw, video_taste, days)
    log = _interactions(draw, days, rows_per_day, user_taste, video_taste, first_day, video_table["video_duration"])
    return Tables(interactions=log, users=user_table, videos=video_table)


def _ranges(counts: Column) -> Column:
    """KuaiRand's coarse text form of a count, one more column that says the same."""
    names = np.array([f"[{low},{high})" for low, high in zip(_RANGES, (*_RANGES[1:], "+"), strict=True)])
    return names[np.searchsorted(_RANGES, counts, side="right") - 1]


def _users(draw: np.random.Generator, taste: Column) -> dict[str, Column]:
    count = len(taste)
    table: dict[str, Column] = {"user_id": np.arange(count)}
    active = np.array(["full_active", "high_active", "middle_active", "2_14_day_new", "single_low_active"])
    level = np.clip(np.round(taste[:, 0] + draw.normal(scale=0.5, size=count)) + 2, 0, 4).astype(np.int64)
    table["user_active_degree"] = active[level]
    for name, middle in (("follow_user_num", 3.5), ("fans_user_num", 3.0), ("friend_user_num", 2.0)):
        # The tail is the legacy feature's: most users have a few dozen fans, somebody has millions.
        table[name] = np.floor(np.exp(draw.normal(middle, 1.6, count))).astype(np.int64)
        table[f"{name}_range"] = _ranges(table[name])
    table["register_days"] = draw.integers(14, 3600, count)
    table["register_days_range"] = _ranges(table["register_days"] // 7)
    for number, name in enumerate(USER_CODES):
        # Coarse views of one taste each, as segments from a profile service would be.
        view = taste[:, number % TASTES] + draw.normal(scale=0.6, size=count)
        table[name] = np.digitize(view, np.linspace(-1.5, 1.5, 2 + number % 6))
    return table


def _videos(draw: np.random.Generator, taste: Column, days: int) -> tuple[dict[str, Column], Column]:
    count = len(taste)
    late = draw.random(count) < 0.5
    first_day = np.where(late, draw.integers(0, days, count), 0)
    uploaded = FIRST_DAY + first_day - draw.integers(0, 3, count)
    tag = np.argmax(taste + draw.normal(scale=0.3, size=taste.shape), axis=1) * 8 + draw.integers(0, 8, count)
    kinds = np.array(["ShortImport", "LongImport", "Kmovie", "PhotoCopy", "AiCutVideo", "Web"])
    table: dict[str, Column] = {
        "video_id": np.arange(count),
        "author_id": draw.integers(0, max(count * 7 // 8, 1), count),
        "video_type": np.where(draw.random(count) < 0.02, "AD", "NORMAL"),
        "upload_type": kinds[draw.integers(0, len(kinds), count)],
        "upload_dt": uploaded.astype(np.str_),
        "tag": tag.astype(np.str_),
        "music_type": draw.choice([4, 7, 8, 9, 11], count),
        "server_width": draw.choice([540, 720, 1080], count, p=[0.1, 0.7, 0.2]),
        "server_height": draw.choice([960, 1280, 1920], count, p=[0.1, 0.7, 0.2]),
        "video_duration": np.round(np.exp(draw.normal(4.2, 1.0, count)) * 1000).clip(3000, 1_200_000),
    }
    return table, first_day


def _interactions(
    draw: np.random.Generator,
    days: int,
    rows_per_day: int,
    user_taste: Column,
    video_taste: Column,
    first_day: Column,
    duration: Column,
) -> dict[str, Column]:
    counts = np.maximum(draw.poisson(rows_per_day, days), 1)
    day = np.repeat(np.arange(days), counts)
    rows = len(day)
    user = np.floor(len(user_taste) * draw.random(rows) ** 1.7).astype(np.int64)
    video = _shown(draw, day, first_day)
    hour = draw.choice(24, rows, p=_HOURS / _HOURS.sum())
    tab = draw.choice(len(_TAB_SHARE), rows, p=_TAB_SHARE / _TAB_SHARE.sum())
    # Rates drift as a slow walk from day to day, and what is liked turns with them.
    level = np.cumsum(draw.normal(scale=0.06, size=days))
    turn = 1 + np.cumsum(draw.normal(scale=0.05, size=(days, TASTES)), axis=0)
    quality = draw.normal(scale=0.7, size=len(video_taste))
    match = np.einsum("nk,nk,nk->n", user_taste[user], video_taste[video], turn[day]) / np.sqrt(TASTES)
    logit = -0.1 + _TAB_LOGIT[tab] + level[day] + 0.9 * match + quality[video] + 0.7 * user_taste[user, 0]
    chance = 1 / (1 + np.exp(-logit))
    click = draw.random(rows) < chance
    length = duration[video]
    # Who clicks stays for a time of lognormal length; the rest leaves within seconds.
    stay = np.exp(draw.normal(9.9 + 0.35 * np.clip(match, -2, 2) + 0.25 * np.log(length / 66_000), 1.1))
    glance = np.exp(draw.normal(7.4, 1.0, rows)) * (draw.random(rows) > 0.17)
    played = np.minimum(np.where(click, stay, glance), 900_000).round()
    like = click & (draw.random(rows) < 0.04 * 2 * chance)
    moment = day * DAY_MS + hour * 3_600_000 + draw.integers(0, 3_600_000, rows)
    order = np.argsort(moment, kind="stable")
    start = FIRST_DAY.astype("datetime64[ms]").astype(np.int64)
    dates = (FIRST_DAY + np.arange(days)).astype(np.str_)
    columns: dict[str, Column] = {
        "user_id": user,
        "video_id": video,
        "date": np.array([int(date.replace("-", "")) for date in dates])[day],
        "hourmin": hour * 100,
        "time_ms": start + moment,
        "is_click": click.astype(np.int64),
        "is_like": like.astype(np.int64),
        "long_view": (played >= np.minimum(length, 18_000)).astype(np.int64),
        "play_time_ms": played.astype(np.int64),
        "duration_ms": length.astype(np.int64),
        "tab": tab,
    }
    return {name: column[order] for name, column in columns.items()}


def _shown(draw: np.random.Generator, day: Column, first_day: Column) -> Column:
    """Which video each row shows: steep popularity among those that have appeared by then, new ones favoured."""
    popularity = (1 + np.arange(len(first_day))) ** -0.8
    draw.shuffle(popularity)
    shown = np.empty(len(day), np.int64)
    for today in np.unique(day):
        there = np.flatnonzero(first_day <= today)
        weight = popularity[there] * np.where(first_day[there] == today, 3.0, 1.0)
        rows = np.flatnonzero(day == today)
        shown[rows] = draw.choice(there, len(rows), p=weight / weight.sum())
    return shown
