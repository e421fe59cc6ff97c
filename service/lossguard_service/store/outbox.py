"""Notices on their way to webhooks: written in the transaction that changes the incident, sent after its commit.

One row for each incident, state and destination, for ever: what was told once is not told again. A replica claims a row
before it sends it; the claim runs out, so a replica that dies in between loses nothing (the receiver may then see the
notice twice, with the same id). The states of one incident leave in the order in which they came about.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.store import schema
from lossguard_service.store.database import Database
from lossguard_service.store.upsert import insert_or_ignore


@dataclass(frozen=True, slots=True)
class Notice:
    """One claimed row.

    Attributes:
        id: the same at each try.
        run_id: whose incident it tells of.
        document: what there is to tell.
        created: when it came about, Unix seconds.
        tries: how often it was claimed, this time included.
    """

    id: int
    run_id: int
    document: dict[str, Any]
    created: float
    tries: int


def put(
    connection: Connection,
    run_id: int,
    sequence: int,
    state: str,
    document: dict[str, Any],
    *,
    destinations: Iterable[str],
    now: float,
) -> None:
    """Note that each destination is to hear of an incident's state, unless that was noted before."""
    for destination in destinations:
        row = {
            "run_id": run_id,
            "sequence": sequence,
            "state": state,
            "destination": destination,
            "document": document,
            "created": now,
            "tries": 0,
            "not_before": now,
        }
        insert_or_ignore(connection, schema.outbox, row)


async def claim(database: Database, destination: str, *, now: float, claim_seconds: float) -> Notice | None:
    """The oldest notice that is due and that no other replica is sending; ours for `claim_seconds`."""
    table, earlier = schema.outbox, schema.outbox.alias()
    held_up = sa.exists().where(
        earlier.c.run_id == table.c.run_id,
        earlier.c.sequence == table.c.sequence,
        earlier.c.destination == table.c.destination,
        earlier.c.done.is_(None),
        earlier.c.id < table.c.id,
    )
    due = (
        sa.select(table)
        .where(table.c.destination == destination, table.c.done.is_(None), table.c.not_before <= now, ~held_up)
        .order_by(table.c.id)
        .limit(1)
    )

    def look(connection: Connection) -> sa.Row[Any] | None:
        return connection.execute(due).one_or_none()

    # Nothing is due nearly always: a read costs no place in the queue of writes.
    while (row := await database.read(look)) is not None:
        mine = (
            sa.update(table)
            # Whoever claims changes `tries`, so of two replicas that saw the same row one changes none.
            .where(table.c.id == row.id, table.c.done.is_(None), table.c.tries == row.tries)
            .values(tries=row.tries + 1, not_before=now + claim_seconds)
        )

        def take(connection: Connection, mine: sa.Update = mine) -> bool:
            return connection.execute(mine).rowcount == 1

        if await database.write(take):
            return Notice(row.id, row.run_id, row.document, row.created, row.tries + 1)
    return None


async def settle(database: Database, notice: Notice, outcome: str, *, now: float) -> None:
    """Nothing more is to be done: it was sent, or it never will be, as `outcome` says."""
    await _update(database, notice, {"done": now, "outcome": outcome})


async def postpone(database: Database, notice: Notice, outcome: str, *, until: float) -> None:
    """It could not be sent, as `outcome` says; nobody tries again before `until`."""
    await _update(database, notice, {"not_before": until, "outcome": outcome})


async def waiting(database: Database) -> int:
    """How many notices are still to be sent."""
    table = schema.outbox
    query = sa.select(sa.func.count()).where(table.c.done.is_(None))
    return await database.read(lambda connection: int(connection.execute(query).scalar_one()))


async def _update(database: Database, notice: Notice, values: dict[str, Any]) -> None:
    table = schema.outbox
    # A claim that ran out may be somebody else's by now; what is done stays done.
    this = sa.update(table).where(table.c.id == notice.id, table.c.done.is_(None)).values(**values)
    await database.write(lambda connection: connection.execute(this).rowcount)
