"""A few numbers that change whenever something does that a verdict follows from: they tell if an answer still holds.

Guarantees. Read within the caller's snapshot, by one statement. The run's revision rises with every transaction that
changes anything about the run; waivers are only added and revoked; a policy gets new versions; a key is exchanged for
another one; of the versions that passed only the newest count, and they are only added. Trials:
where a group is whole, the number of the project's runs and the sum of its members' revisions.
"""

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.store import schema
from lossguard_service.store.database import Database
from lossguard_service.store.hot import Hot
from lossguard_service.store.trials import MOST_TRIALS, Group
from lossguard_service.store.verdicts import PASSED_LIMIT

_run, _policy, _key, _waiver, _verdict = (
    schema.runs.c, schema.policies.c, schema.signing_keys.c, schema.waivers.c, schema.verdicts.c
)  # fmt: skip
_trial, _other = schema.runs.alias("trial"), schema.runs.alias("other")
_TRIALS: Final = [f"trial_{place}" for place in range(MOST_TRIALS)]
_PROJECT: Final = sa.bindparam("project", type_=sa.Text)
_RUN: Final = sa.bindparam("run", type_=sa.Text)
_OF_RUN = (_waiver.project == _PROJECT, _waiver.run == _RUN)
_PASSED = (
    _verdict.project == _PROJECT,
    _verdict.model == sa.bindparam("model", type_=sa.Text),
    _verdict.artifact_digest != sa.bindparam("digest"),
)
_NEWEST: Final = (
    sa.select(_verdict.created).where(*_PASSED).order_by(_verdict.created.desc()).limit(PASSED_LIMIT).subquery("newest")
)
"""When the versions were given that the next one is compared with: another one among them makes another sum."""
_PARTS: Final = (
    sa.select(sa.func.max(_policy.version)).where(_policy.name == sa.bindparam("policy")),
    sa.select(sa.func.count(_verdict.id)).where(
        _verdict.artifact_digest == sa.bindparam("bytes"),
        _verdict.project == _PROJECT,
        _verdict.outcome == "block",
        sa.or_(_verdict.run != _RUN, _verdict.step != sa.bindparam("step")),
    ),
    sa.select(sa.func.max(_key.id)).where(_key.private.is_not(None)),
    sa.select(sa.func.count(_key.revoked)),
    # Each is revoked once, so their sum rises whenever one is added or revoked.
    sa.select(sa.func.count(_waiver.id) + sa.func.count(_waiver.revoked)).where(*_OF_RUN),
    sa.select(sa.func.sum(_NEWEST.c.created)),
    sa.select(sa.func.sum(_trial.c.revision)).where(
        _trial.c.id.in_([sa.bindparam(name, type_=sa.BigInteger) for name in _TRIALS])
    ),
    sa.select(sa.func.count(_other.c.name)).where(_other.c.project == sa.bindparam("group", type_=sa.Text)),
)
_ALWAYS: Final = sa.select(sa.literal_column("1")).subquery("always")
"""A row that is there also where the run is not."""
_THIS_RUN: Final = _ALWAYS.outerjoin(schema.runs, sa.and_(_run.project == _PROJECT, _run.name == _RUN))
_STAMP: Final = Hot(
    sa.select(_run.id, _run.revision, _run.last_seen, *(part.scalar_subquery() for part in _PARTS)).select_from(
        _THIS_RUN
    )
)


def about(
    project: str, run: str, policy: str, model: str, digest: str, group: Group, *, blocked_as: int | None
) -> dict[str, Any]:
    """What is asked about: an export of these bytes, of a run whose config names this model, and of its trials.

    `blocked_as` is the export's step if it matters that the same bytes were blocked as another export; else None.
    """
    found = {"project": project, "run": run, "policy": policy, "model": model, "digest": digest}
    trials = [one.id for one in group.members[:MOST_TRIALS]]
    held = dict.fromkeys(_TRIALS) | dict(zip(_TRIALS, trials, strict=False))
    return (
        found
        | held
        | {"group": project if trials else None, "bytes": "" if blocked_as is None else digest, "step": blocked_as}
    )


def stamp_of(connection: Connection, asked: Mapping[str, Any]) -> tuple[Any, ...]:
    """The numbers for what is asked about."""
    return tuple(_STAMP.run(connection, asked)[0])


async def glance_at(database: Database, asked: Mapping[str, Any]) -> tuple[Any, ...]:
    """The same as of now, in a transaction of its own."""
    return tuple((await database.glance(_STAMP, asked))[0])
