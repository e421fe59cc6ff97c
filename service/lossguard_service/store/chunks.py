"""Chunks at rest: an index row each, their bytes apart (`bytes`). Nothing here decides; see `ingest`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard.wire import chunk as wire
from lossguard.wire.frame import Frames, Schema
from lossguard_service.store import database, layout, schema, segments
from lossguard_service.store.bytes import Elsewhere, Held, Kept
from lossguard_service.store.database import Database
from lossguard_service.store.hot import Guarded, Hot, insert
from lossguard_service.store.record import attempt_update, run_update

K = TypeVar("K")


@lru_cache
def _store(attempt_names: tuple[str, ...], run_names: tuple[str, ...]) -> Hot:
    statements: list[Any] = [insert(schema.chunks), insert(schema.chunk_bytes)]
    if attempt_names:
        statements.append(attempt_update(attempt_names))
    return Hot(*statements, run_update(run_names))


@lru_cache
def _store_at_once(attempt_names: tuple[str, ...], run_names: tuple[str, ...]) -> Guarded:
    """Everything hangs on the run's row: if its revision is another one, nothing is written and no row comes back."""
    runs = schema.runs.c
    guarded = run_update(run_names).where(runs.revision == sa.bindparam("revision"))
    this = guarded.returning(runs.id).cte("this")
    written: list[Any] = []
    several: list[Any] = [guarded, insert(schema.chunks), insert(schema.chunk_bytes)]
    for table in (schema.chunks, schema.chunk_bytes):
        values = [sa.bindparam(one.name, type_=one.type) for one in table.c]
        rows = sa.select(*values).select_from(this)
        written.append(sa.insert(table).from_select([one.name for one in table.c], rows).cte(table.name))
    if attempt_names:
        update = attempt_update(attempt_names).where(schema.attempts.c.run_id == this.c.id)
        written.append(update.cte("attempt"))
        several.append(attempt_update(attempt_names))
    return Guarded(Hot(sa.select(this.c.id).add_cte(*written)), Hot(*several))


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A chunk to be stored, and what it changes.

    Attributes:
        row: all columns of `schema.chunks`.
        attempt_values, run_values: changed columns of its attempt and its run; the run's revision rises besides.
    """

    row: dict[str, Any]
    attempt_values: dict[str, Any]
    run_values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """A chunk without its bytes.

    Attributes:
        attempt: the attempt's number.
        index: its place in the attempt.
        first_step, last_step: of its frames; None if it carries none.
        frames: how many.
        schema: the number of its column names within the run.
        missing: [first, last] of each stretch of steps without a frame between its first and its last frame.
    """

    attempt: int
    index: int
    first_step: int | None
    last_step: int | None
    frames: int
    schema: int
    missing: list[list[int]]


def rows_of(
    connection: Connection,
    run_id: int,
    *,
    first: int | None = None,
    last: int | None = None,
    attempt: int | None = None,
    from_index: int = 0,
) -> list[ChunkRow]:
    """Index rows with frames in [first, last], by attempt and index; those before `from_index` are left out."""
    values = {"first": first, "last": last, "attempt": attempt, "index": from_index or None}
    given = {name: value for name, value in values.items() if value is not None}
    return [ChunkRow(*row) for row in _rows(tuple(given)).rows(connection, given | {"run": run_id})]


@lru_cache
def _rows(given: tuple[str, ...]) -> Hot:
    table = schema.chunks.c
    conditions = {
        "first": table.last_step >= sa.bindparam("first"),
        "last": table.first_step <= sa.bindparam("last"),
        "attempt": table.attempt == sa.bindparam("attempt"),
        "index": table.index >= sa.bindparam("index"),
    }
    return Hot(
        sa.select(*(table[name] for name in ChunkRow.__slots__))
        .where(table.run_id == sa.bindparam("run"), table.frames > 0)
        .where(*(conditions[name] for name in given))
        .order_by(table.attempt, table.index)
    )


_BYTES = Hot(
    sa.select(schema.chunk_bytes.c.index, schema.chunk_bytes.c.data, schema.chunk_bytes.c.object)
    .where(schema.chunk_bytes.c.run_id == sa.bindparam("run"), schema.chunk_bytes.c.attempt == sa.bindparam("attempt"))
    .where(schema.chunk_bytes.c.index.between(sa.bindparam("first"), sa.bindparam("last")))
    .order_by(schema.chunk_bytes.c.index)
)


def bytes_of(connection: Connection, run_id: int, attempt: int, first: int, last: int) -> dict[int, Held]:
    """The bytes of an attempt's chunks with indexes in [first, last], or where they are, by index."""
    place = {"run": run_id, "attempt": attempt, "first": first, "last": last}
    return {index: data if key is None else Elsewhere(key) for index, data, key in _BYTES.rows(connection, place)}


def bytes_now(connection: Connection, held: Mapping[K, Held]) -> dict[K, bytes]:
    """The bytes themselves, inside the transaction: for those who hold the run's lock, and for small reads."""
    if not any(isinstance(one, Elsewhere) for one in held.values()):
        return cast("dict[K, bytes]", held)
    (found,) = database.wait_for(lambda: database.bytes_of(connection).fetch([held]))
    return found


def decoded(connection: Connection, run_id: int, attempt: int, first: int, end: int) -> Iterator[tuple[int, Frames]]:
    """Index and frames of chunks `first` to `end - 1` of an attempt, a few at a time so that memory stays flat.

    Chunks whose bytes have become a segment come out of it, as they were; those that retention has dropped do not come.
    """
    held = segments.rows_after(connection, run_id, attempt, first)
    index = first
    while index < end:
        segment = next((row for row in held if row.first_index <= index < row.next_index), None)
        if segment is not None:
            for place, frames in _out_of(connection, run_id, segment):
                if index <= place < end:
                    yield place, frames
            index = segment.next_index
            continue
        stop = min((row.first_index for row in held if row.first_index > index), default=end)
        stop = min(stop, end, index + 16)
        data = bytes_now(connection, bytes_of(connection, run_id, attempt, index, stop - 1))
        for place in sorted(data):
            yield place, wire.decode(data[place]).frames
        index = stop


def _out_of(connection: Connection, run_id: int, segment: segments.SegmentRow) -> Iterator[tuple[int, Frames]]:
    if not segment.is_full:
        return
    names = schemas_of(connection, run_id)[segment.schema]
    (parts,) = segments.parts_of(connection, schema.segment_parts, run_id, [segment])
    whole = layout.load(bytes_now(connection, parts), names)
    table = schema.chunks
    query = (
        sa.select(table.c.index, table.c.frames)
        .where(table.c.run_id == run_id, table.c.attempt == segment.attempt)
        .where(table.c.index >= segment.first_index, table.c.index < segment.next_index)
        .order_by(table.c.index)
    )
    start = 0
    for index, count in connection.execute(query):
        yield index, whole[start : start + count]
        start += count


def digest_of(connection: Connection, run_id: int, attempt: int, index: int) -> str | None:
    """The SHA-256 of a stored chunk, or None."""
    table = schema.chunks
    found: str | None = connection.execute(
        sa.select(table.c.sha256).where(table.c.run_id == run_id, table.c.attempt == attempt, table.c.index == index)
    ).scalar()
    return found


def store(connection: Connection, new: NewChunk, kept: Kept) -> None:
    """Store a chunk and what it changes of its attempt and its run; the caller holds the run's lock and knows it new.

    Args:
        connection: inside the transaction that holds the lock.
        new: what to store.
        kept: the chunk's bytes, or where they are.
    """
    _store(tuple(new.attempt_values), tuple(new.run_values)).run(connection, _named(new, kept))


async def store_at_once(database: Database, new: NewChunk, kept: Kept, revision: int, *, together: bool) -> bool | None:
    """The same without a lock before it, provided that the run's revision is `revision`; it is one more afterwards.

    `together` is that of `Database.at_once`.

    Returns:
        Whether that was so and all is stored, durably; None where the connection was lost meanwhile: it may be stored
        then, and whoever asks under the run's lock finds out.
    """
    guarded = _store_at_once(tuple(new.attempt_values), tuple(new.run_values))
    values = _named(new, kept) | {"revision": revision}
    return await database.at_once(guarded, values, len(kept.data), together=together)


def _named(new: NewChunk, kept: Kept) -> dict[str, Any]:
    """The values of both by the names that they have in the statements."""
    values = new.row | {"data": kept.data, "object": kept.object}
    values |= {f"attempt_{name}": value for name, value in new.attempt_values.items()}
    return values | {f"run_{name}": value for name, value in new.run_values.items()}


def schemas_of(connection: Connection, run_id: int) -> dict[int, Schema]:
    """Every set of column names that the run's chunks have had, by number."""
    table = schema.schemas
    query = sa.select(table.c.number, table.c.document).where(table.c.run_id == run_id).order_by(table.c.number)
    return {
        number: Schema(*(tuple(document[kind]) for kind in ("scalars", "layers", "stats")))
        for number, document in connection.execute(query)
    }


def add_schema(connection: Connection, run_id: int, number: int, names: Schema) -> None:
    """Store a new set of column names."""
    document = {"scalars": names.scalars, "layers": names.layers, "stats": names.stats}
    connection.execute(sa.insert(schema.schemas).values(run_id=run_id, number=number, document=document))


def union(schemas: Sequence[Schema]) -> Schema:
    """All names, in the order in which they first appeared."""
    return Schema(
        *(
            tuple(dict.fromkeys(name for names in schemas for name in getattr(names, kind)))
            for kind in ("scalars", "layers", "stats")
        )
    )


def cut(frames: Frames, *, after: int | None = None, until: int | None = None) -> Frames:
    """The frames with `after < step <= until`."""
    start = 0 if after is None else int(frames.steps.searchsorted(after, "right"))
    end = len(frames) if until is None else int(frames.steps.searchsorted(until, "right"))
    return frames if (start, end) == (0, len(frames)) else frames[start : max(start, end)]
