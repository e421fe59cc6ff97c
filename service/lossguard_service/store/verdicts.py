"""Verdicts and policies at rest. A verdict is written once and never changed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard.wire.verdict import Verdict
from lossguard_service.store import audit, schema
from lossguard_service.store.database import Database
from lossguard_service.store.hot import Hot, insert
from lossguard_service.store.upsert import insert_or_ignore

PASSED_LIMIT: Final = 20
"""So many of a model's versions that passed are looked through for its metrics."""


@dataclass(frozen=True, slots=True)
class Passed:
    """A version of a model that passed.

    Attributes:
        verdict: the id of its verdict.
        run, step: whose export it is.
        metrics: what was supplied from held-out data, by name.
    """

    verdict: str
    run: str
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """One version of a named policy; its document is the gate's to read."""

    name: str
    version: int
    document: dict[str, Any]
    created: float


_INSERT = Hot(insert(schema.verdicts))


async def add_verdict(
    database: Database,
    verdict: Verdict,
    document: dict[str, Any],
    signature: dict[str, Any] | None = None,
    *,
    model: str = "",
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Store a verdict, its JSON form, its signature if it has one, and what the next version is compared with."""

    finite = {name: value for name, value in (metrics or {}).items() if math.isfinite(value)}
    compared = finite if verdict.outcome == "pass" else {}

    def write(connection: Connection) -> None:
        values = {
            "id": verdict.id,
            "project": verdict.project,
            "run": verdict.run,
            "step": verdict.step,
            "artifact_digest": verdict.artifact_digest,
            "policy": verdict.policy,
            "policy_version": verdict.policy_version,
            "outcome": verdict.outcome,
            "created": verdict.created,
            "document": document,
            "signature": signature,
            "model": model if compared else None,
            "metrics": compared or None,
        }
        _INSERT.run(connection, values)
        told = {
            "verdict": verdict.id,
            "run": verdict.run,
            "step": verdict.step,
            "artifact_digest": verdict.artifact_digest,
            "policy": f"{verdict.policy} {verdict.policy_version}",
            "outcome": verdict.outcome,
            "key": None if signature is None else signature["key"],
        }
        audit.append(connection, verdict.created, "verdict", verdict.project, "service", told)

    await database.write(write)


def prepare(connection: Connection) -> None:
    """Compile what the first verdict would compile."""
    _INSERT.prepare(connection)
    audit.prepare(connection)


async def find_verdict(database: Database, verdict_id: str) -> tuple[Verdict, dict[str, Any] | None] | None:
    """The verdict and its signature, or None."""

    def read(connection: Connection) -> tuple[Verdict, dict[str, Any] | None] | None:
        table = schema.verdicts
        query = sa.select(table.c.document, table.c.signature).where(table.c.id == verdict_id)
        row = connection.execute(query).one_or_none()
        return None if row is None else (Verdict.from_json(row.document), row.signature)

    return await database.read(read)


async def list_verdicts(
    database: Database,
    *,
    project: str | None = None,
    run: str | None = None,
    digest: str | None = None,
    limit: int = 100,
) -> list[Verdict]:
    """Verdicts, newest first."""
    table = schema.verdicts
    query = sa.select(table.c.document).order_by(table.c.created.desc(), table.c.id)
    for column, value in ((table.c.project, project), (table.c.run, run), (table.c.artifact_digest, digest)):
        if value is not None:
            query = query.where(column == value)

    def read(connection: Connection) -> list[Verdict]:
        return [Verdict.from_json(row.document) for row in connection.execute(query.limit(limit))]

    return await database.read(read)


_TABLE = schema.verdicts
_PASSED = Hot(
    sa.select(_TABLE.c.id, _TABLE.c.run, _TABLE.c.step, _TABLE.c.metrics)
    .where(_TABLE.c.project == sa.bindparam("project"), _TABLE.c.model == sa.bindparam("model"))
    .where(_TABLE.c.artifact_digest != sa.bindparam("digest"))
    .order_by(_TABLE.c.created.desc(), _TABLE.c.id)
    .limit(PASSED_LIMIT)
)


def passed_of(connection: Connection, project: str, model: str, digest: str) -> tuple[Passed, ...]:
    """The versions of a model that passed with metrics, the newest first; those of this digest are left out."""
    place = {"project": project, "model": model, "digest": digest}
    return tuple(Passed(*row) for row in _PASSED.rows(connection, place))


_BLOCKED = Hot(
    sa.select(_TABLE.c.run, _TABLE.c.step, _TABLE.c.id)
    .where(_TABLE.c.artifact_digest == sa.bindparam("digest"), _TABLE.c.project == sa.bindparam("project"))
    .where(_TABLE.c.outcome == "block")
    .where(sa.or_(_TABLE.c.run != sa.bindparam("run"), _TABLE.c.step != sa.bindparam("step")))
    .order_by(_TABLE.c.created.desc(), _TABLE.c.id)
    .limit(1)
)


def blocked_of(connection: Connection, project: str, digest: str, run: str, step: int) -> list[tuple[str, int, str]]:
    """Run, step and id of the newest verdict that blocked these bytes as another run's or step's export, if any."""
    return [tuple(row) for row in _BLOCKED.run(connection, _place(project, digest, run, step))]


def _place(project: str, digest: str, run: str, step: int) -> dict[str, Any]:
    return {"project": project, "digest": digest, "run": run, "step": step}


async def add_policy(database: Database, policy: StoredPolicy, *, actor: str) -> bool:
    """Store a version of a policy; a version that is there stays as it is, and the answer is False."""

    def write(connection: Connection) -> bool:
        table = schema.policies
        taken = sa.select(table.c.version).where(table.c.name == policy.name, table.c.version == policy.version)
        if connection.execute(taken).one_or_none() is not None:
            return False
        values = {
            "name": policy.name,
            "version": policy.version,
            "document": policy.document,
            "created": policy.created,
        }
        insert_or_ignore(connection, table, values)
        audit.append(connection, policy.created, "policy_created", None, actor, policy.document)
        return True

    return await database.write(write)


async def list_policies(database: Database, name: str | None = None) -> list[StoredPolicy]:
    """Every version, by name and version."""
    return await database.read(lambda connection: policies_of(connection, name))


_POLICIES = sa.select(schema.policies).order_by(schema.policies.c.name, schema.policies.c.version)
_OF_NAME = Hot(_POLICIES.where(schema.policies.c.name == sa.bindparam("name")))
_ALL = Hot(_POLICIES)


def policies_of(connection: Connection, name: str | None = None) -> list[StoredPolicy]:
    """The same within a transaction."""
    rows = _ALL.rows(connection, {}) if name is None else _OF_NAME.rows(connection, {"name": name})
    return [StoredPolicy(*row) for row in rows]
