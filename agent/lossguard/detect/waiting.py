"""Frames that are known to tell nothing and wait to be taken in together with those that follow.

Taking one frame costs nearly as much as taking sixteen. So a few frames that are sure to change no incident (`quiet`
says which) are kept beside the state as they came; whoever needs the state itself takes them in first. They are no part
of its bytes.
"""

from dataclasses import dataclass

import numpy as np

from lossguard.wire.frame import Floats32, Frames, Schema

MOST_JOINED = 16
"""A longer block that follows is taken in by itself: it would have to be copied."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Within what a frame is quiet, as long as the state stays what it is.

    Attributes:
        schema: of the frames.
        kept: the same without the stats that nobody looks at.
        stats: places of the others in `schema`.
        finite: which of these others must be finite.
        zero: which of them must be 0 everywhere; None where there is none.
        voices: each loss's column, centre and scale.
        labels: the label means' columns.
        rate: the learning rate's column; None where there is none.
        room: how many frames may wait.
    """

    schema: Schema
    kept: Schema
    stats: list[int]
    finite: list[int]
    zero: int | None
    voices: list[tuple[int, float, float]]
    labels: list[int]
    rate: int | None
    room: int

    def takes(self, schema: Schema) -> bool:
        """Whether these are frames of the same columns."""
        return schema is self.schema or schema == self.schema


@dataclass(frozen=True, slots=True)
class Part:
    """Frames that came together, all scalars measured: values without what they were cut from.

    Attributes:
        steps: [n].
        times: [n].
        scalars: [n] of [S].
        stats: those that are kept [K, n, L].
        present: which of these were measured [n] of [K]; None where all were.
    """

    steps: list[int]
    times: list[float]
    scalars: list[list[float]]
    stats: Floats32
    present: list[list[bool]] | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Quiet frames.

    Attributes:
        limits: what they were held against.
        parts: the frames, oldest first.
        count: how many they are.
        rate: the last learning rate; NaN while unknown.
        time: when the last one was handed over, Unix seconds; NaN where unknown.
    """

    limits: Limits
    parts: tuple[Part, ...]
    count: int
    rate: float
    time: float

    def blocks(self, more: Frames | None = None) -> list[Frames]:
        """All of them, and what follows, in as few blocks as can be."""
        parts, limits, width = self.parts, self.limits, len(self.limits.stats)
        present = np.ones((self.count, width), np.bool_)
        if any(part.present is not None for part in parts):
            rows = [part.present or [[True] * width] * len(part.steps) for part in parts]
            present = np.array([row for some in rows for row in some], np.bool_).reshape(self.count, width)
        steps = np.array([step for part in parts for step in part.steps], np.int64)
        times = np.array([time for part in parts for time in part.times])
        scalars = np.array([row for part in parts for row in part.scalars])
        here = np.ones(scalars.shape, np.bool_)
        stats = [part.stats for part in parts]
        apart: list[Frames] = []
        if more is not None and (len(more) > MOST_JOINED or not limits.takes(more.schema)):
            apart, more = [more], None
        if more is not None:
            steps, times = np.concatenate([steps, more.steps]), np.concatenate([times, more.times])
            scalars, here = np.concatenate([scalars, more.scalars]), np.concatenate([here, more.scalars_present])
            stats.append(more.stats.transpose(2, 0, 1)[limits.stats])
            present = np.concatenate([present, more.stats_present[:, limits.stats]])
        together = np.concatenate(stats, axis=1).transpose(1, 2, 0)
        return [Frames(limits.kept, steps, times, scalars, together, here, present), *apart]
