"""Which steps of a run are stored, and which frames its trainer says it dropped.

A run of a million steps has some sixteen thousand chunks. Their first and last steps leave the database as two texts
per attempt, a third of the cost of rows, and what follows on what is found out here, exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard.wire.frame import Steps
from lossguard_service.store import schema

_TABLE = schema.chunks
_WITH_FRAMES = (_TABLE.c.run_id == sa.bindparam("run"), _TABLE.c.frames > 0)
_ROWS = (
    sa.select(_TABLE.c.first_step, _TABLE.c.last_step, _TABLE.c.frames, _TABLE.c.missing)
    .where(*_WITH_FRAMES, _TABLE.c.attempt == sa.bindparam("attempt"))
    .order_by(_TABLE.c.index)
)
_DROPS = (
    sa.select(_TABLE.c.attempt, _TABLE.c.first_step, _TABLE.c.drops)
    .where(_TABLE.c.run_id == sa.bindparam("run"), _TABLE.c.drops != {})
    .order_by(_TABLE.c.attempt, _TABLE.c.index)
)


@dataclass(frozen=True, slots=True)
class Span:
    """Steps `first` to `last` of one attempt, each of which has its frame stored."""

    attempt: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Drops:
    """Frames that a chunk reports as dropped by the trainer.

    Attributes:
        attempt: the attempt's number.
        first_step: the first step of the chunk that says so; None if it carries no frames.
        counts: how many, by reason.
    """

    attempt: int
    first_step: int | None
    counts: Mapping[str, int]


@lru_cache
def _places(dialect: str) -> sa.Select[Any]:
    # SQLite writes numbers into texts by itself, at half the cost of being asked to.
    first, last = (
        sa.type_coerce(column, sa.Text) if dialect == "sqlite" else sa.cast(column, sa.Text)
        for column in (_TABLE.c.first_step, _TABLE.c.last_step)
    )
    texts = (sa.func.aggregate_strings(first, ","), sa.func.aggregate_strings(last, ","))
    return (
        sa.select(_TABLE.c.attempt, *texts, sa.func.sum(_TABLE.c.frames))
        .where(*_WITH_FRAMES)
        .group_by(_TABLE.c.attempt)
        .order_by(_TABLE.c.attempt)
    )


def spans_of(connection: Connection, run_id: int) -> tuple[Span, ...]:
    """What is stored of every attempt, by attempt and step; steps that came twice are in two spans."""
    found: list[Span] = []
    for attempt, firsts, lasts, frames in connection.execute(_places(connection.dialect.name), {"run": run_id}):
        first, last = _numbers(firsts), _numbers(lasts)
        if int((last - first).sum()) + len(first) == frames:
            found += _joined(attempt, first, last)
        else:
            found += _with_holes(connection, run_id, attempt)
    return tuple(found)


def drops_of(connection: Connection, run_id: int) -> tuple[Drops, ...]:
    """Every report of dropped frames."""
    return tuple(Drops(*row) for row in connection.execute(_DROPS, {"run": run_id}))


def _numbers(text: str) -> Steps:
    return np.fromstring(text, np.int64, sep=",")


def _joined(attempt: int, first: Steps, last: Steps) -> list[Span]:
    """Chunks without holes in them, as spans that are as long as they can be."""
    order = np.lexsort((last, first))
    first, last = first[order], last[order]
    begins = np.flatnonzero(np.r_[True, first[1:] != last[:-1] + 1])
    ends = np.r_[begins[1:] - 1, len(first) - 1]
    return [Span(attempt, a, b) for a, b in zip(first[begins].tolist(), last[ends].tolist(), strict=True)]


def _with_holes(connection: Connection, run_id: int, attempt: int) -> list[Span]:
    """An attempt whose frames are fewer than its chunks' steps: what there is of each chunk."""
    spans = []
    for first, last, frames, missing in connection.execute(_ROWS, {"run": run_id, "attempt": attempt}):
        if frames == last - first + 1:
            spans.append(Span(attempt, first, last))
            continue
        start = first
        for gap_first, gap_last in missing:
            if gap_first > start:
                spans.append(Span(attempt, start, gap_first - 1))
            start = gap_last + 1
        if missing and start <= last:
            spans.append(Span(attempt, start, last))
    return sorted(spans, key=lambda span: (span.first, span.last))
