"""Repeated trials: the runs of a project that trained the same configuration.

The configuration is what a run's first attempt said of itself, without what repetitions differ in: seeds, versions of
packages, rollbacks. Later attempts do not count: a rollback that halves the learning rate is part of the trial. A run
whose config says nothing of its optimizer has no configuration; one whose config names its `trials` is in that group.
Configs never change, so what was made of one may be remembered, by its run and the key of its attempt.
"""

import hashlib
import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard.wire.numbers import to_json
from lossguard_service.store import schema
from lossguard_service.store.database import Database
from lossguard_service.store.hot import Hot

NEWEST: Final = 200
"""Trials are looked for among so many runs of the project, those heard of last."""
MOST_TRIALS: Final = 20
"""So many of them count, those heard of last."""
_DIFFER: Final = frozenset({"seed", "trial", "rollbacks", "versions"})


@dataclass(frozen=True, slots=True)
class Member:
    """A run of a group of trials.

    Attributes:
        id, name: which.
        status: `healthy`, `recovered` or `diverged`.
        ended: False while its newest attempt goes on.
        judged_step: the last step the detectors have seen.
        revision: rises with every change of the run.
    """

    id: int
    name: str
    status: str
    ended: bool
    judged_step: int | None
    revision: int


_runs, _attempts = schema.runs, schema.attempts
_FIRST = (_attempts.c.run_id == _runs.c.id, _attempts.c.number == 1)
_MEMBERS = Hot(
    sa.select(
        _runs.c.id, _runs.c.name, _runs.c.status, _runs.c.stop_reason, _runs.c.judged_step, _runs.c.revision,
        _attempts.c.key, _attempts.c.start_step,
    )
    .join(_attempts, sa.and_(*_FIRST))
    .where(_runs.c.project == sa.bindparam("project"))
    .order_by(_runs.c.last_seen.desc(), _runs.c.id.desc())
    .limit(NEWEST)
)  # fmt: skip


_REVISIONS = Hot(
    sa.select(_runs.c.id, _runs.c.revision)
    .where(_runs.c.project == sa.bindparam("project"))
    .order_by(_runs.c.last_seen.desc(), _runs.c.id.desc())
    .limit(NEWEST)
)


@dataclass(frozen=True, slots=True)
class Group:
    """The trials of one configuration among the newest runs of a project.

    Attributes:
        members: those heard of last first; empty where the run that was asked about has no configuration.
        others: the ids of the runs that have another one, which never changes.
        is_whole: True if these are all runs of the project, and all members count: then only a new run, or a change
            of a member, changes what the group says.
    """

    members: tuple[Member, ...] = ()
    others: frozenset[int] = frozenset()
    is_whole: bool = False


class _Row(NamedTuple):
    id: int
    name: str
    status: str
    stop_reason: str | None
    judged_step: int | None
    revision: int
    key: str
    start_step: int | None


def configuration(config: Mapping[str, Any]) -> str | None:
    """What runs of one group have in common; None for a config that says too little.

    >>> adam = {"optimizer": {"class": "Adam"}}
    >>> configuration(adam | {"seed": 1}) == configuration(adam | {"seed": 2})
    True
    >>> configuration({"tasks": {}}) is None
    True
    """
    named = config.get("trials")
    if isinstance(named, str) and named:
        return f"named {named}"
    if not config.get("optimizer"):
        return None
    return hashlib.sha256(json.dumps(to_json(_common(config)), sort_keys=True).encode()).hexdigest()


def group_of(
    connection: Connection, project: str, run: str, remembered: MutableMapping[tuple[int, str], str | None]
) -> Group:
    """The group of a run, the run itself in it.

    Args:
        connection: of the transaction.
        project, run: whose group.
        remembered: configurations by the run's id and the key of its first attempt; what is missing is read and added.
    """
    rows = [_Row(*row) for row in _MEMBERS.rows(connection, {"project": project})]
    fresh = [row.id for row in rows if (row.id, row.key) not in remembered and row.start_step is not None]
    if fresh:
        query = sa.select(_attempts.c.run_id, _attempts.c.key, _attempts.c.config).where(
            _attempts.c.number == 1, _attempts.c.run_id.in_(fresh)
        )
        for run_id, key, config in connection.execute(query):
            remembered[run_id, key] = configuration(config or {})
    own = next((remembered.get((row.id, row.key)) for row in rows if row.name == run), None)
    if own is None:
        return Group()
    members = tuple(
        Member(row.id, row.name, row.status, row.stop_reason is not None, row.judged_step, row.revision)
        for row in rows
        if remembered.get((row.id, row.key)) == own
    )
    others = frozenset(row.id for row in rows if remembered.get((row.id, row.key), own) != own)
    is_whole = len(members) + len(others) == len(rows) < NEWEST and len(members) <= MOST_TRIALS
    return Group(members, others, is_whole)


async def is_as_it_was(database: Database, project: str, group: Group) -> bool:
    """True if no member of the group has changed, and no run that might be one has come or gone."""
    held = {one.id: one.revision for one in group.members}
    rows = await database.glance(_REVISIONS, {"project": project})
    found = {run_id: revision for run_id, revision in rows if run_id not in group.others}
    return found == held


def _common(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _common(item)
            for key, item in value.items()
            if str(key) not in _DIFFER and not str(key).endswith("_seed")
        }
    return [_common(item) for item in value] if isinstance(value, list | tuple) else value
