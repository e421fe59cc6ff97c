"""Turns tables into what the ranker reads: categorical codes, numbers, one label per task, in time order.

Guarantees: everything that is estimated (means, deviations) is estimated on the days before the last, on which the
model is judged; vocabularies are the catalogue's, as in a production ranker, so that an item that appears late has
its own row, still untrained. Every number is finite.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lossguard.demo.tables import USER_CODES, USER_COUNTS, USER_TEXT, Column, DataError, Tables

TASKS: dict[str, Literal["binary", "regression"]] = {
    "click": "binary",
    "like": "binary",
    "long_view": "binary",
    "finish": "binary",
    "watch_ratio": "regression",
    "play_time": "regression",
}
"""What the ranker predicts. `watch_ratio` is cut at 5; `play_time` is in units of 10 s and not cut: its heavy tail
is what makes the shared layers unstable (arXiv 2302.09178, section 3; measured in docs/decisions/0601)."""

PLAY_TIME_UNIT_MS = 10_000
FINISHED = 0.95
RATIO_LIMIT = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Encoded interactions, in time order.

    Attributes:
        day: int64 [N], 0 for the first day.
        categorical: int32 [N, C], rows of one shared embedding table.
        numeric: float32 [N, F].
        labels: float32 [N] per task, keys as in `TASKS`.
        rows: how many rows the embedding table needs.
    """

    day: NDArray[np.int64]
    categorical: NDArray[np.int32]
    numeric: NDArray[np.float32]
    labels: dict[str, NDArray[np.float32]]
    rows: int

    def __len__(self) -> int:
        return len(self.day)

    @property
    def last_day(self) -> int:
        """The day that the model is judged on."""
        return int(self.day[-1])

    @property
    def training(self) -> int:
        """How many examples lie before the last day."""
        return int(np.searchsorted(self.day, self.last_day))


def encode(tables: Tables) -> Examples:
    """Encode every interaction.

    Raises:
        DataError: less than two days.
    """
    log = tables.interactions
    dates, day = np.unique(log["date"], return_inverse=True)
    if len(dates) < 2:
        raise DataError("interactions: at least two days are needed, one to learn from and one to be judged on")
    training = int(np.searchsorted(day, len(dates) - 1))
    user = join(log["user_id"], tables.users["user_id"])
    video = join(log["video_id"], tables.videos["video_id"])
    categorical, rows = _categorical(tables, user, video)
    return Examples(
        day=day.astype(np.int64),
        categorical=categorical,
        numeric=_numeric(tables, user, video, training),
        labels=_labels(tables),
        rows=rows,
    )


def join(keys: Column, table_keys: Column) -> NDArray[np.int64]:
    """For each key its row in the table, or the table's length where it is unknown."""
    order = np.argsort(table_keys, kind="stable")
    place = np.minimum(np.searchsorted(table_keys, keys, sorter=order), len(order) - 1)
    row = order[place]
    return np.where(table_keys[row] == keys, row, len(table_keys)).astype(np.int64)


def _codes(column: Column) -> tuple[NDArray[np.int64], int]:
    """Values as 0, 1, 2, ... and how many there are, one more being kept for "unknown"."""
    values, code = np.unique(column, return_inverse=True)
    return np.append(code.astype(np.int64), len(values)), len(values) + 1


def _categorical(tables: Tables, user: NDArray[np.int64], video: NDArray[np.int64]) -> tuple[NDArray[np.int32], int]:
    log, users, videos = tables.interactions, tables.users, tables.videos
    columns: list[NDArray[np.int64]] = []
    rows = 0

    def add(code: NDArray[np.int64], count: int) -> None:
        nonlocal rows
        columns.append(code + rows)
        rows += count

    for name in ("user_id", *USER_TEXT, *USER_CODES):
        code, count = _codes(users[name])
        add(code[user], count)
    for name in ("video_id", "author_id", "video_type", "upload_type", "music_type"):
        code, count = _codes(videos[name])
        add(code[video], count)
    first_tag = np.array([text.split(",")[0] for text in videos["tag"]], dtype=np.str_)
    code, count = _codes(first_tag)
    add(code[video], count)
    for context in (log["tab"], log["hourmin"] // 100):
        code, count = _codes(context)
        add(code[:-1], count)
    return np.stack(columns, axis=1).astype(np.int32), rows


def _numeric(tables: Tables, user: NDArray[np.int64], video: NDArray[np.int64], training: int) -> NDArray[np.float32]:
    log, users, videos = tables.interactions, tables.users, tables.videos

    def of(column: Column, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.append(column.astype(np.float64), np.nan)[rows]

    uploaded = np.array([text or "NaT" for text in videos["upload_dt"]], dtype="datetime64[D]").astype(np.int64)
    uploaded = np.append(uploaded, np.datetime64("NaT").astype(np.int64))[video]
    today = log["time_ms"] // 86_400_000
    age = np.where(uploaded > 0, today - uploaded, np.nan).astype(np.float64)
    width, height = of(videos["server_width"], video), of(videos["server_height"], video)
    hour = 2 * np.pi * (log["hourmin"] // 100) / 24
    weekend = (today + 3) % 7 >= 5
    columns = [np.log1p(np.maximum(of(users[name], user), 0)) for name in USER_COUNTS]
    columns += [
        np.log1p(np.maximum(log["duration_ms"], 0) / 1000),
        np.log(np.maximum(width, 1)),
        np.log(np.maximum(height, 1) / np.maximum(width, 1)),
        age,
        np.sin(hour),
        np.cos(hour),
        weekend.astype(np.float64),
    ]
    values = np.stack(columns, axis=1)
    mean = np.nanmean(values[:training], axis=0)
    deviation = np.nanstd(values[:training], axis=0)
    scaled = (values - mean) / np.where(deviation > 0, deviation, 1)
    return np.nan_to_num(scaled, nan=0.0).astype(np.float32)


def _labels(tables: Tables) -> dict[str, NDArray[np.float32]]:
    log = tables.interactions
    ratio = log["play_time_ms"] / np.maximum(log["duration_ms"], 1)
    ratio = np.where(log["duration_ms"] > 0, ratio, 0.0)
    labels = {
        "click": log["is_click"],
        "like": log["is_like"],
        "long_view": log["long_view"],
        "finish": ratio >= FINISHED,
        "watch_ratio": np.minimum(ratio, RATIO_LIMIT),
        "play_time": log["play_time_ms"] / PLAY_TIME_UNIT_MS,
    }
    return {task: labels[task].astype(np.float32) for task in TASKS}
