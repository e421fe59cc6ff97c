"""Which steps of a run are stored, and which frames its trainer says it dropped.

A run of a million steps has some sixteen thousand chunks, but 244 segments, and a segment whose frames are as many as
its steps holds each of them exactly once (`compact` ends a segment before steps that come again). So only the chunks
of segments with holes, and those that are in no segment yet, are looked at one by one. Retention leaves both rows.

The first and last steps of those chunks leave the database as two texts per attempt, a third of the cost of rows, and
what follows on what is found out here, exactly.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from lossguard.wire.frame import Steps
from lossguard_service.store import schema
from lossguard_service.store.hot import Hot

_ATTEMPTS, _CHUNKS, _SEGMENTS = schema.attempts.c, schema.chunks.c, schema.segments.c
_RUN: Final = sa.bindparam("run", type_=sa.BigInteger)
_HELD = Hot(
    sa.select(
        _SEGMENTS.attempt, _SEGMENTS.first_index, _SEGMENTS.next_index,
        _SEGMENTS.first_step, _SEGMENTS.last_step, _SEGMENTS.frames,
    )
    .where(_SEGMENTS.run_id == _RUN)
    .order_by(_SEGMENTS.attempt, _SEGMENTS.first_index)
)  # fmt: skip
_END = (
    sa.select(sa.func.max(_SEGMENTS.next_index))
    .where(_SEGMENTS.run_id == _ATTEMPTS.run_id, _SEGMENTS.attempt == _ATTEMPTS.number)
    .scalar_subquery()
)
_REST_OF_ATTEMPT = sa.and_(
    _CHUNKS.run_id == _ATTEMPTS.run_id,
    _CHUNKS.attempt == _ATTEMPTS.number,
    _CHUNKS.index >= sa.func.coalesce(_END, 0),
    _CHUNKS.frames > 0,
)


def _texts(dialect: str) -> sa.Select[Any]:
    # SQLite writes numbers into texts by itself, at half the cost of being asked to.
    first, last = (
        sa.type_coerce(column, sa.Text) if dialect == "sqlite" else sa.cast(column, sa.Text)
        for column in (_CHUNKS.first_step, _CHUNKS.last_step)
    )
    comma: Any = sa.literal_column("','", sa.Text)
    texts = (sa.func.aggregate_strings(first, comma), sa.func.aggregate_strings(last, comma))
    # An outer join, or SQLite would begin with all chunks of the run instead of its attempts.
    return (
        sa.select(_ATTEMPTS.number, *texts, sa.func.sum(_CHUNKS.frames), sa.func.min(_CHUNKS.index))
        .select_from(schema.attempts.outerjoin(schema.chunks, _REST_OF_ATTEMPT))
        .where(_ATTEMPTS.run_id == _RUN)
        .group_by(_ATTEMPTS.number)
    )


_REST: Final = {dialect: Hot(_texts(dialect)) for dialect in ("sqlite", "postgresql")}
"""What is in no segment: each attempt from the end of its last segment on, which is one stretch of the index."""
_ROWS = (
    sa.select(_CHUNKS.first_step, _CHUNKS.last_step, _CHUNKS.frames, _CHUNKS.missing)
    .where(_CHUNKS.run_id == _RUN, _CHUNKS.attempt == sa.bindparam("attempt"), _CHUNKS.frames > 0)
    .where(_CHUNKS.index >= sa.bindparam("first"), _CHUNKS.index < sa.bindparam("end"))
    .order_by(_CHUNKS.index)
)
_DROPS = (
    sa.select(_CHUNKS.attempt, _CHUNKS.first_step, _CHUNKS.drops)
    .where(_CHUNKS.run_id == _RUN, _CHUNKS.drops != {})
    .order_by(_CHUNKS.attempt, _CHUNKS.index)
)
_LAST_INDEX: Final = 2**31 - 1


_Pairs = NDArray[np.int64]
"""First and last steps [N, 2]."""


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


def spans_of(connection: Connection, run_id: int) -> tuple[Span, ...]:
    """What is stored of every attempt, by attempt and step; steps that came twice are in two spans."""
    found: dict[int, list[_Pairs]] = defaultdict(list)
    held = np.array(_HELD.run(connection, {"run": run_id}), np.int64).reshape(-1, 6)
    whole = held[:, 5] == held[:, 4] - held[:, 3] + 1
    for attempt in set(held[whole, 0].tolist()):
        found[attempt].append(held[whole & (held[:, 0] == attempt), 3:5])
    for attempt, index, end, *_ in held[~whole].tolist():
        found[attempt].append(_with_holes(connection, run_id, attempt, index, end))
    rest = _REST[connection.dialect.name].run(connection, {"run": run_id})
    for attempt, first_texts, last_texts, frames, index in rest:
        if frames is None:
            continue
        pairs = np.stack([_numbers(first_texts), _numbers(last_texts)], 1)
        if int((pairs[:, 1] - pairs[:, 0]).sum()) + len(pairs) != frames:
            pairs = _with_holes(connection, run_id, attempt, index, _LAST_INDEX)
        found[attempt].append(pairs)
    return tuple(span for attempt in sorted(found) for span in _joined(attempt, np.concatenate(found[attempt])))


def drops_of(connection: Connection, run_id: int) -> tuple[Drops, ...]:
    """Every report of dropped frames."""
    return tuple(Drops(*row) for row in connection.execute(_DROPS, {"run": run_id}))


def _numbers(text: str) -> Steps:
    return np.fromstring(text, np.int64, sep=",")


def _joined(attempt: int, pairs: _Pairs) -> list[Span]:
    """Stretches of steps as spans that are as long as they can be."""
    if not len(pairs):
        return []
    first, last = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].T
    begins = np.flatnonzero(np.r_[True, first[1:] != last[:-1] + 1])
    ends = np.r_[begins[1:] - 1, len(first) - 1]
    return [Span(attempt, a, b) for a, b in zip(first[begins].tolist(), last[ends].tolist(), strict=True)]


def _with_holes(connection: Connection, run_id: int, attempt: int, first: int, end: int) -> _Pairs:
    """What there is of chunks `first` to `end - 1`, whose frames are fewer than their steps."""
    pairs: list[tuple[int, int]] = []
    place = {"run": run_id, "attempt": attempt, "first": first, "end": end}
    for first_step, last_step, frames, missing in connection.execute(_ROWS, place):
        if frames == last_step - first_step + 1:
            pairs.append((first_step, last_step))
            continue
        start = first_step
        for gap_first, gap_last in missing:
            if gap_first > start:
                pairs.append((start, gap_first - 1))
            start = gap_last + 1
        if missing and start <= last_step:
            pairs.append((start, last_step))
    return np.array(pairs, np.int64).reshape(-1, 2)
