"""Verdicts and policies at rest. A verdict is written once and never changed."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard.wire.verdict import Verdict
from lossguard_service.store import audit, schema
from lossguard_service.store.database import Database
from lossguard_service.store.upsert import insert_or_ignore


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """One version of a named policy; its document is the gate's to read."""

    name: str
    version: int
    document: dict[str, Any]
    created: float


async def add_verdict(database: Database, verdict: Verdict, signature: dict[str, Any] | None = None) -> None:
    """Store a verdict, and its signature if it has one."""

    def write(connection: Connection) -> None:
        connection.execute(
            sa.insert(schema.verdicts).values(
                id=verdict.id,
                project=verdict.project,
                run=verdict.run,
                step=verdict.step,
                artifact_digest=verdict.artifact_digest,
                policy=verdict.policy,
                policy_version=verdict.policy_version,
                outcome=verdict.outcome,
                created=verdict.created,
                document=verdict.to_json(),
                signature=signature,
            )
        )
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
    table = schema.policies
    query = sa.select(table).order_by(table.c.name, table.c.version)
    if name is not None:
        query = query.where(table.c.name == name)

    def read(connection: Connection) -> list[StoredPolicy]:
        return [StoredPolicy(**row._mapping) for row in connection.execute(query)]

    return await database.read(read)
