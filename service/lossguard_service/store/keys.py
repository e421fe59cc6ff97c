"""Signing keys at rest. What a key is good for is the gate's business; here are its rows."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.store import audit, schema
from lossguard_service.store.database import Database
from lossguard_service.store.hot import Hot


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key.

    Attributes:
        id: the first 16 hex digits of the SHA-256 of its public half.
        public: base64 of the public half.
        private: base64 of the private half; None once nothing is signed with it any more.
        created, retired, revoked: Unix seconds. A retired key still verifies, a revoked one does not.
    """

    id: str
    public: str
    private: str | None
    created: float
    retired: float | None = None
    revoked: float | None = None


async def list_keys(database: Database) -> list[SigningKey]:
    """Every key, the oldest first."""
    return await database.read(keys_of)


async def active_key(
    database: Database, fresh: SigningKey, *, rotate: bool, actor: str, reason: str | None = None
) -> SigningKey:
    """The key that signs.

    Args:
        database: where the keys are.
        fresh: stored and used if no key signs yet, or if `rotate`; then those before it are retired.
        rotate: True to sign with `fresh` from now on.
        actor, reason: who and why, for the audit log.
    """

    def write(connection: Connection) -> SigningKey:
        # Two replicas that start at once must not each make a key: the second one waits here and finds the first's.
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("LOCK TABLE signing_keys IN SHARE ROW EXCLUSIVE MODE"))
        active = [key for key in keys_of(connection) if key.private is not None]
        if active and not rotate:
            return active[-1]
        table = schema.signing_keys
        retire = sa.update(table).where(table.c.private.is_not(None)).values(private=None, retired=fresh.created)
        connection.execute(retire)
        connection.execute(sa.insert(table).values(**_row(fresh)))
        told = {"key": fresh.id, "public": fresh.public} | ({"reason": reason} if reason else {})
        audit.append(connection, fresh.created, "key_created", None, actor, told)
        return fresh

    return await database.write(write)


async def revoke_key(database: Database, key_id: str, *, now: float, actor: str, reason: str) -> bool:
    """Nothing that this key signed counts any more; False if there is no such key."""

    def write(connection: Connection) -> bool:
        table = schema.signing_keys
        statement = sa.update(table).where(table.c.id == key_id, table.c.revoked.is_(None))
        done = connection.execute(statement.values(private=None, revoked=now)).rowcount > 0
        if done:
            audit.append(connection, now, "key_revoked", None, actor, {"key": key_id, "reason": reason})
        return done

    return await database.write(write)


_ALL = Hot(
    sa.select(*(schema.signing_keys.c[name] for name in SigningKey.__slots__)).order_by(
        schema.signing_keys.c.created, schema.signing_keys.c.id
    )
)


def keys_of(connection: Connection) -> list[SigningKey]:
    """The same within a transaction."""
    return [SigningKey(*row) for row in _ALL.rows(connection, {})]


def _row(key: SigningKey) -> dict[str, Any]:
    return {name: getattr(key, name) for name in ("id", "public", "private", "created", "retired", "revoked")}
