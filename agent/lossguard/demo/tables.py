"""The three tables a ranker learns from, whoever filled them: interactions, users, videos.

Guarantees: a `Tables` value has every column that `lossguard.demo.features` reads, columns of one table are equally
long, interactions are in time order, and no identifier stands twice in the users' or the videos' table. Missing
values are NaN in numeric columns and "" in text columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]

USER_TEXT = (
    "user_active_degree",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
)
USER_CODES = ("is_live_streamer", "is_video_author", *(f"onehot_feat{i}" for i in range(12)))
USER_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
VIDEO_TEXT = ("video_type", "upload_type", "tag", "upload_dt")
VIDEO_CODES = ("author_id", "music_type")
VIDEO_SIZES = ("server_width", "server_height")

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "interactions": (
        "user_id",
        "video_id",
        "date",
        "hourmin",
        "time_ms",
        "is_click",
        "is_like",
        "long_view",
        "play_time_ms",
        "duration_ms",
        "tab",
    ),
    "users": ("user_id", *USER_TEXT, *USER_CODES, *USER_COUNTS),
    "videos": ("video_id", *VIDEO_TEXT, *VIDEO_CODES, *VIDEO_SIZES),
}
"""The columns of KuaiRand-Pure that the demo reads, by table."""


class DataError(ValueError):
    """The data cannot be used; the message says what is missing and what to do. Nothing was written."""


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """Interactions with the users and videos they are about.

    Attributes:
        interactions: one row per impression, in time order.
        users: one row per user.
        videos: one row per video.
    """

    interactions: Mapping[str, Column]
    users: Mapping[str, Column]
    videos: Mapping[str, Column]

    def __post_init__(self) -> None:
        for name, columns in COLUMNS.items():
            table: Mapping[str, Column] = getattr(self, name)
            missing = [column for column in columns if column not in table]
            if missing:
                raise DataError(f"{name}: the column {missing[0]!r} is missing; a table needs {', '.join(columns)}")
            lengths = {column: len(table[column]) for column in columns}
            if len(set(lengths.values())) != 1:
                raise DataError(f"{name}: columns of different lengths: {lengths}")
        if len(self.interactions["time_ms"]) == 0:
            raise DataError("interactions: the table is empty; name a folder with the log files in it")
        if np.any(np.diff(self.interactions["time_ms"]) < 0):
            raise DataError("interactions: rows must be in time order; sort them by time_ms")
        for name, key in (("users", "user_id"), ("videos", "video_id")):
            identifiers = getattr(self, name)[key]
            if len(np.unique(identifiers)) != len(identifiers):
                raise DataError(f"{name}: {key} stands more than once in a table of one row each; keep one row each")
