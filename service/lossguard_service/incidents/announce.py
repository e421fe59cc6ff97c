"""What changed about a run's incidents, into the outbox, in the transaction that changed it.

An incident is told of when it opens, when it is called full and when it is over, each once; notices (severity `info`)
are left out. One that came and went within a chunk is told of once, as resolved.
"""

from collections.abc import Sequence
from typing import Literal

from sqlalchemy.engine import Connection

from lossguard_service.store import outbox
from lossguard_service.store.incidents import StoredIncident

State = Literal["open", "full", "resolved"]


def announce(
    connection: Connection,
    run_id: int,
    name: tuple[str, str],
    before: Sequence[StoredIncident],
    after: Sequence[StoredIncident],
    *,
    destinations: Sequence[str],
    now: float,
) -> None:
    """Note what is to be told.

    Args:
        connection: inside the transaction that holds the run's lock.
        run_id: which run.
        name: its project and name.
        before: its incidents as they were, without the superseded ones.
        after: as they are now.
        destinations: who is to hear of it; nobody, and nothing is written.
        now: Unix seconds.
    """
    if not destinations:
        return
    known = {one.sequence: one for one in before}
    counted = {one.sequence for one in after}
    changed = [one for one in after if known.get(one.sequence) != one]
    taken_back = [one for one in before if one.sequence not in counted]
    for one in [*changed, *taken_back]:
        if one.incident.severity == "info":
            continue
        superseded = one.sequence not in counted
        state = "resolved" if superseded else state_of(one)
        document = {
            "event": "incident",
            "state": state,
            "project": name[0],
            "run": name[1],
            "incident": one.to_json() | {"superseded": superseded},
        }
        outbox.put(connection, run_id, one.sequence, state, document, destinations=destinations, now=now)


def state_of(one: StoredIncident) -> State:
    """Where an episode is in its life."""
    if not one.is_open:
        return "resolved"
    return "full" if one.incident.kind == "full_divergence" else "open"
