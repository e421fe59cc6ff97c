"""A few numbers that change whenever something does that a verdict follows from: they tell if an answer still holds.

Guarantees. Read within the caller's snapshot, by one statement. The run's revision rises with every transaction that
changes anything about the run; waivers are only added and revoked; a policy gets new versions; a key is exchanged for
another one; versions that passed are only added.
"""

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.store import schema
from lossguard_service.store.database import Database
from lossguard_service.store.hot import Hot

_run, _policy, _key, _waiver, _verdict = (
    schema.runs.c, schema.policies.c, schema.signing_keys.c, schema.waivers.c, schema.verdicts.c
)  # fmt: skip
_PROJECT: Final = sa.bindparam("project", type_=sa.Text)
_RUN: Final = sa.bindparam("run", type_=sa.Text)
_THIS_RUN = (_run.project == _PROJECT, _run.name == _RUN)
_OF_RUN = (_waiver.project == _PROJECT, _waiver.run == _RUN)
_PASSED = (
    _verdict.project == _PROJECT,
    _verdict.model == sa.bindparam("model", type_=sa.Text),
    _verdict.artifact_digest != sa.bindparam("digest"),
)
_PARTS: Final = (
    *(sa.select(column).where(*_THIS_RUN) for column in (_run.id, _run.revision, _run.last_seen)),
    sa.select(sa.func.max(_policy.version)).where(_policy.name == sa.bindparam("policy")),
    sa.select(sa.func.max(_key.id)).where(_key.private.is_not(None)),
    sa.select(sa.func.count(_key.revoked)),
    *(sa.select(value).where(*_OF_RUN) for value in (sa.func.count(_waiver.id), sa.func.count(_waiver.revoked))),
    sa.select(sa.func.count(_verdict.created)).where(*_PASSED),
)
_STAMP: Final = Hot(sa.select(*(part.scalar_subquery() for part in _PARTS)))


def stamp_of(connection: Connection, project: str, run: str, policy: str, model: str, digest: str) -> tuple[Any, ...]:
    """The numbers for an export of these bytes, of a run whose config names this model."""
    return tuple(_STAMP.run(connection, _values(project, run, policy, model, digest))[0])


async def glance_at(
    database: Database, project: str, run: str, policy: str, model: str, digest: str
) -> tuple[Any, ...]:
    """The same as of now, in a transaction of its own."""
    return tuple((await database.glance(_STAMP, _values(project, run, policy, model, digest)))[0])


def _values(project: str, run: str, policy: str, model: str, digest: str) -> dict[str, str]:
    return {"project": project, "run": run, "policy": policy, "model": model, "digest": digest}
