"""Segments: a few thousand consecutive steps of an attempt, laid out by series, in place of the chunks' bytes.

Reading one layer's stat over a million steps touches one small row per segment instead of every chunk. Nothing is
lost: what the parts hold (`layout`) gives back the frames bit for bit. Chunks keep their index rows, so identity, gaps
and positions stay. A segment's `pyramid` is in parts of its own table.

In an object, the parts lie one after the other, and the one row that is left has the number -2: the object's key, and
as its data number and size of each part, int32 [n, 2].
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.store import schema as tables
from lossguard_service.store.bytes import Elsewhere, Held, Kept
from lossguard_service.store.hot import Hot

PACKED: Final = -2
"""The number of the row that stands for all parts where they are in an object."""


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A segment without its parts.

    Attributes:
        attempt: the attempt's number.
        first_index, next_index: it holds the chunks from the first to before the next.
        first_step, last_step: of its frames.
        frames: how many.
        schema: the number of its column names within the run.
        is_full: False if retention has dropped the frames, so that only the pyramid is left.
    """

    attempt: int
    first_index: int
    next_index: int
    first_step: int
    last_step: int
    frames: int
    schema: int
    is_full: bool


def rows_of(
    connection: Connection,
    run_id: int,
    *,
    first: int | None = None,
    last: int | None = None,
    attempt: int | None = None,
) -> list[SegmentRow]:
    """Segments with frames in [first, last], by attempt and index."""
    table = tables.segments
    query = sa.select(*(table.c[name] for name in SegmentRow.__slots__)).where(table.c.run_id == run_id)
    if first is not None:
        query = query.where(table.c.last_step >= first)
    if last is not None:
        query = query.where(table.c.first_step <= last)
    if attempt is not None:
        query = query.where(table.c.attempt == attempt)
    return [SegmentRow(*row) for row in connection.execute(query.order_by(table.c.attempt, table.c.first_index))]


_AFTER = Hot(
    sa.select(*(tables.segments.c[name] for name in SegmentRow.__slots__))
    .where(tables.segments.c.run_id == sa.bindparam("run"), tables.segments.c.attempt == sa.bindparam("attempt"))
    .where(tables.segments.c.next_index > sa.bindparam("index"))
    .order_by(tables.segments.c.first_index)
)


def rows_after(connection: Connection, run_id: int, attempt: int, index: int) -> list[SegmentRow]:
    """The segment of an attempt that holds chunk `index`, if one does, and those after it."""
    return [SegmentRow(*row) for row in _AFTER.rows(connection, {"run": run_id, "attempt": attempt, "index": index})]


def ends_of(connection: Connection, run_id: int) -> dict[int, int]:
    """By attempt, the first chunk index that is in no segment; attempts without segments are left out."""
    table = tables.segments
    query = (
        sa.select(table.c.attempt, sa.func.max(table.c.next_index))
        .where(table.c.run_id == run_id)
        .group_by(table.c.attempt)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def parts_of(
    connection: Connection,
    table: sa.Table,
    run_id: int,
    held: Sequence[SegmentRow],
    parts: Sequence[int] | None = None,
    *,
    elsewhere: Collection[int] = (),
) -> list[dict[int, Held]]:
    """Parts of segments of one attempt, or of their pyramids, by number, a dictionary each; all parts by default.

    Those of `elsewhere` are found too where the parts lie in an object, but not where they have rows.
    """
    place: dict[str, int] = {"run": run_id, "attempt": held[0].attempt}
    firsts = [row.first_index for row in held]
    if parts is None:
        query = _all_parts(table.name)
        place |= {"first": firsts[0], "last": firsts[-1]}
    else:
        some = padded(firsts)
        query = _some_parts(table.name, len(some), len(parts) + 1)
        place |= {f"first_{n}": first for n, first in enumerate(some)}
        place |= {f"part_{n}": part for n, part in enumerate((PACKED, *parts))}

    def is_wanted(part: int) -> bool:
        return parts is None or part in parts or part in elsewhere

    found: dict[int, dict[int, Held]] = {first: {} for first in firsts}
    for first, part, data, key in query.rows(connection, place):
        if first not in found:
            continue
        if key is None:
            found[first][part] = data
        else:
            found[first] |= _places(key, data, is_wanted)
    return list(found.values())


def padded(firsts: Sequence[int]) -> list[int]:
    """The same, the last one again and again until there are 2^n: statements of a few lengths only are made."""
    return [*firsts, *[firsts[-1]] * ((1 << (len(firsts) - 1).bit_length()) - len(firsts))]


def _parts(name: str) -> sa.Select[Any]:
    table = tables.metadata.tables[name].c
    return sa.select(table.first_index, table.part, table.data, table.object).where(
        table.run_id == sa.bindparam("run"), table.attempt == sa.bindparam("attempt")
    )


@lru_cache
def _all_parts(name: str) -> Hot:
    first_index = tables.metadata.tables[name].c.first_index
    return Hot(_parts(name).where(first_index.between(sa.bindparam("first"), sa.bindparam("last"))))


@lru_cache
def _some_parts(name: str, held: int, parts: int) -> Hot:
    # Both as lists, so that the index is asked for each pair of them. A stretch from the first segment to the last
    # would go through all their entries: 3.2 against 0.2 ms for 244 segments of 200 layers.
    table = tables.metadata.tables[name].c
    return Hot(
        _parts(name)
        .where(table.first_index.in_([sa.bindparam(f"first_{n}") for n in range(held)]))
        .where(table.part.in_([sa.bindparam(f"part_{n}") for n in range(parts)]))
    )


def packed(parts: Mapping[int, bytes]) -> tuple[bytes, bytes]:
    """All parts as one object's bytes, and the data of the row that names it."""
    index = np.array([(part, len(data)) for part, data in parts.items()], "<i4")
    return b"".join(parts.values()), index.tobytes()


def rows_for(kept: Kept, parts: Mapping[int, bytes], key: Mapping[str, int]) -> list[dict[str, Any]]:
    """The rows of a segment's parts, or of its pyramid's: one each, or one for all where they are in an object."""
    if kept.object is None:
        return [{**key, "part": part, "data": data, "object": None} for part, data in parts.items()]
    return [{**key, "part": PACKED, "data": kept.data, "object": kept.object}]


def _places(key: str, data: bytes, is_wanted: Callable[[int], bool]) -> dict[int, Held]:
    index = np.frombuffer(data, "<i4").reshape(-1, 2)
    sizes = index[:, 1].astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    found = zip(index[:, 0].tolist(), starts.tolist(), sizes.tolist(), strict=True)
    return {part: Elsewhere(key, start, size) for part, start, size in found if is_wanted(part)}
