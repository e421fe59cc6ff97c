"""Checkpoints: what the trainer saved, and how far each can be trusted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard.wire import chunk as wire
from lossguard.wire.incident import BREAKING, Incident
from lossguard_service.store import schema
from lossguard_service.store.database import Database
from lossguard_service.store.hot import Hot
from lossguard_service.store.upsert import insert_or_ignore

Trust = Literal["good", "suspect", "bad"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One saved model.

    Attributes:
        attempt: the number of the attempt that saved it.
        step: the last step in it.
        path: where, as the trainer names it.
        has_slots: True if the optimizer's slots are in it, without which it is no rollback target.
        time: Unix seconds by the trainer's clock.
    """

    attempt: int
    step: int
    path: str
    has_slots: bool
    time: float


def trust(step: int, incidents: Iterable[Incident]) -> Trust:
    """How far a checkpoint at `step` can be trusted, given the incidents that count.

    `bad` from the onset of an episode that broke the weights and has not ended, and inside any that broke them;
    `suspect` between an episode's first signal and its end, and after an episode that had once been called full;
    `good` otherwise.
    """
    answer: Trust = "good"
    for incident in incidents:
        if incident.kind == "stalled":
            continue
        signal = incident.onset_step if incident.first_signal_step is None else incident.first_signal_step
        inside = step >= incident.onset_step and (incident.end_step is None or step < incident.end_step)
        if incident.kind in BREAKING and inside:
            return "bad"
        divergence = incident.kind in BREAKING or incident.kind == "micro_divergence"
        early = divergence and min(signal, incident.onset_step) <= step < incident.onset_step
        after_full = incident.declared_full_step is not None and step >= incident.onset_step
        if early or (divergence and inside) or after_full:
            answer = "suspect"
    return answer


def rollback_target(checkpoints: Sequence[Checkpoint], incidents: Sequence[Incident]) -> Checkpoint | None:
    """The newest checkpoint with slots that is `good`: measured, nothing else rescues a run after a full divergence."""
    usable = [one for one in checkpoints if one.has_slots and trust(one.step, incidents) == "good"]
    return max(usable, key=lambda one: (one.step, one.attempt), default=None)


async def list_checkpoints(database: Database, run_id: int) -> list[Checkpoint]:
    """The run's checkpoints by step, superseded attempts' included."""
    return await database.read(lambda connection: checkpoints_of(connection, run_id))


_TABLE = schema.checkpoints
_OF_RUN = Hot(
    sa.select(*(_TABLE.c[name] for name in Checkpoint.__slots__))
    .where(_TABLE.c.run_id == sa.bindparam("run"))
    .order_by(_TABLE.c.step, _TABLE.c.attempt, _TABLE.c.path)
)


def checkpoints_of(connection: Connection, run_id: int) -> list[Checkpoint]:
    """The same within a transaction."""
    return [Checkpoint(*row) for row in _OF_RUN.rows(connection, {"run": run_id})]


def add(connection: Connection, run_id: int, attempt: int, events: Iterable[wire.Checkpoint]) -> None:
    """Store what a chunk reports; saying it twice changes nothing."""
    for event in events:
        insert_or_ignore(
            connection,
            schema.checkpoints,
            {
                "run_id": run_id,
                "attempt": attempt,
                "step": event.step,
                "path": event.path,
                "has_slots": event.has_slots,
                "time": event.time,
            },
        )
