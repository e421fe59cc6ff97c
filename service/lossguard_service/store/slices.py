"""One stat's arrays out of the rows of layers, without the bytes of their other stats.

A layer's part begins with the sizes of its arrays, so that a read of its beginning and one of the array are enough: a
tenth of the row. SQLite has incremental reads for it. PostgreSQL's `substr` fetches only the slices that it needs of a
value which is stored out of line as it is, and what Zstandard has compressed is: nothing compresses it again.
"""

import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Connection

from lossguard_service.store import layout, segments
from lossguard_service.store.hot import Hot
from lossguard_service.store.schema import segment_parts
from lossguard_service.store.segments import SegmentRow

_ROWID: Final = sa.literal_column("segment_parts.rowid", sa.Integer)
_LAST_LAYER: Final = layout.SLICES - 1


def slices_of(
    connection: Connection, run_id: int, held: Sequence[SegmentRow], *, stat: int, stats: int, layer: int | None = None
) -> list[dict[int, bytes]]:
    """Arrays of one stat of segments of one attempt, a dictionary each; segments that lie in objects have none.

    Args:
        connection: of a read.
        run_id: which run.
        held: which segments.
        stat: which one of its `stats` stats.
        stats: how many each layer has.
        layer: of this layer only; of all by default.

    Returns:
        The packed arrays, that of layer l under `layout.SLICES + l`.
    """
    firsts = [row.first_index for row in held]
    place = {"run": run_id, "attempt": held[0].attempt}
    padded = segments.padded(firsts)
    chosen = {f"first_{n}": first for n, first in enumerate(padded)}
    chosen |= {"low": 0, "high": _LAST_LAYER} if layer is None else {"low": layer, "high": layer}
    found: dict[int, dict[int, bytes]] = {first: {} for first in firsts}
    if connection.dialect.name == "sqlite":
        rows = _layers("sqlite", len(padded)).rows(connection, place | chosen)
        _read(connection, rows, stat, stats, found)
        return list(found.values())
    heads = _layers("postgresql", len(padded)).rows(connection, place | chosen | {"begin": 1, "size": 4 * stats})
    places = [(first, part, *layout.place_of(head, stat)) for first, part, head in heads]
    if places:
        columns = dict(zip(("firsts", "parts", "starts", "sizes"), map(list, zip(*places, strict=True)), strict=True))
        for first, part, data in _SLICES.rows(connection, place | columns):
            found[first][layout.SLICES + part] = data
    return list(found.values())


def _read(
    connection: Connection, rows: Sequence[tuple[Any, ...]], stat: int, stats: int, found: dict[int, dict[int, bytes]]
) -> None:
    driver: Any = connection.connection.driver_connection
    try:
        for first, part, row in rows:
            with driver.blobopen("segment_parts", "data", row, readonly=True) as blob:
                start, size = layout.place_of(blob.read(4 * stats), stat)
                blob.seek(start)
                found[first][layout.SLICES + part] = blob.read(size)
    except sqlite3.Error as error:
        raise sa.exc.DBAPIError.instance("blobopen", None, error, sqlite3.Error, hide_parameters=True) from error


@lru_cache
def _layers(dialect: str, held: int) -> Hot:
    """First index and layer of the rows, and where SQLite has them or how they begin."""
    table = segment_parts.c
    what = _ROWID if dialect == "sqlite" else sa.func.substr(table.data, sa.bindparam("begin"), sa.bindparam("size"))
    return Hot(
        sa.select(table.first_index, table.part, what)
        .where(table.run_id == sa.bindparam("run"), table.attempt == sa.bindparam("attempt"))
        .where(table.first_index.in_([sa.bindparam(f"first_{n}") for n in range(held)]))
        .where(table.part.between(sa.bindparam("low"), sa.bindparam("high")))
    )


def _slices() -> sa.Select[Any]:
    names = {"first": "firsts", "part": "parts", "start": "starts", "size": "sizes"}
    lists = (sa.bindparam(many, type_=ARRAY(sa.Integer)) for many in names.values())
    wanted = (
        sa.func.unnest(*lists)
        .table_valued(*(sa.column(one, sa.Integer) for one in names))
        .render_derived(name="wanted")
    )
    table = segment_parts.c
    # Asked for one by one: with the plan for any lists that PostgreSQL makes at the sixth execution, and without
    # statistics of a new table, a join went through all rows for each array, 30 ms in place of 4 for 244 of them.
    # What has a LIMIT is not made a join. `substr` counts from 1.
    one = (
        sa.select(table.first_index, table.part, sa.func.substr(table.data, wanted.c.start + 1, wanted.c.size))
        .where(table.run_id == sa.bindparam("run"), table.attempt == sa.bindparam("attempt"))
        .where(table.first_index == wanted.c.first, table.part == wanted.c.part)
        .limit(1)
        .lateral("one")
    )
    return sa.select(*one.c).select_from(wanted.join(one, sa.true()))


_SLICES: Final = Hot(_slices())
"""PostgreSQL only."""
