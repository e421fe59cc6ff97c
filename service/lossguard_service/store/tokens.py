"""Tokens at rest: only the SHA-256 of each. A token is 256 random bits, which needs no slow hash.

Whoever makes or revokes one, by page, API or command line, stands in the audit log in the same transaction.
"""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.store import audit, schema
from lossguard_service.store.database import Database

Scope = Literal["ingest", "read", "gate", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("ingest", "read", "gate", "admin")
PREFIX: Final = "lg_"


@dataclass(frozen=True, slots=True)
class Token:
    """What is known about a token; not the token itself.

    Attributes:
        id: 16 hex digits, its public name.
        project: the project it is for; None for all.
        name: what people call it.
        scopes: what it allows; `admin` allows everything.
        created, expires, revoked: Unix seconds, None where not.
    """

    id: str
    project: str | None
    name: str
    scopes: tuple[Scope, ...]
    created: float
    expires: float | None
    revoked: float | None

    def is_valid(self, now: float) -> bool:
        """True unless it is revoked or expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)

    def allows(self, scope: Scope, project: str | None) -> bool:
        """True if it covers `scope` on `project` (None: on all projects)."""
        covers = scope in self.scopes or "admin" in self.scopes
        return covers and (self.project is None or self.project == project)


def digest(secret: str) -> str:
    """What is stored of a token."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


async def create_token(
    database: Database,
    *,
    name: str,
    scopes: tuple[Scope, ...],
    project: str | None,
    now: float,
    actor: str = "service",
    expires: float | None = None,
) -> tuple[str, Token]:
    """A new token: the secret, which is shown once, and what is stored of it.

    Args:
        database: where to.
        name: what people call it.
        scopes: what it allows.
        project: the one it is for; None for all.
        now: Unix seconds.
        actor: who makes it, for the audit log.
        expires: when it ends; None for never.

    Raises:
        ValueError: no scope, or one that does not exist.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise ValueError(f"scopes: expected some of {', '.join(SCOPES)}, got {', '.join(unknown) or 'none'}")
    secret = PREFIX + secrets.token_urlsafe(32)
    token = Token(secrets.token_hex(8), project, name, tuple(scopes), now, expires, None)

    def write(connection: Connection) -> None:
        connection.execute(
            sa.insert(schema.tokens).values(
                id=token.id,
                project=project,
                name=name,
                scopes=list(scopes),
                sha256=digest(secret),
                created=now,
                expires=expires,
            )
        )
        told = {"token": token.id, "name": name, "scopes": list(scopes), "expires": expires}
        audit.append(connection, now, "token_created", project, actor, told)

    await database.write(write)
    return secret, token


async def find_token(database: Database, secret: str) -> Token | None:
    """The token behind a secret, valid or not; None if there is none."""
    query = _select().where(schema.tokens.c.sha256 == digest(secret))

    def read(connection: Connection) -> Token | None:
        row = connection.execute(query).one_or_none()
        return None if row is None else Token(**{**row._mapping, "scopes": tuple(row.scopes)})

    return await database.read(read)


async def list_tokens(database: Database) -> list[Token]:
    """All tokens, the newest first."""
    query = _select().order_by(schema.tokens.c.created.desc(), schema.tokens.c.id)

    def read(connection: Connection) -> list[Token]:
        return [Token(**{**row._mapping, "scopes": tuple(row.scopes)}) for row in connection.execute(query)]

    return await database.read(read)


async def revoke_token(database: Database, token_id: str, now: float, *, actor: str) -> bool:
    """Revoke a token for ever; False if there is none with this id that still was valid.

    Args:
        database: where it is.
        token_id: which.
        now: Unix seconds.
        actor: who revokes it, for the audit log.
    """
    table = schema.tokens

    def write(connection: Connection) -> bool:
        row = connection.execute(_select().where(table.c.id == token_id, table.c.revoked.is_(None))).one_or_none()
        statement = sa.update(table).where(table.c.id == token_id, table.c.revoked.is_(None)).values(revoked=now)
        if row is None or not connection.execute(statement).rowcount:
            return False
        told = {"token": token_id, "name": row.name, "scopes": row.scopes}
        audit.append(connection, now, "token_revoked", row.project, actor, told)
        return True

    return await database.write(write)


def _select() -> sa.Select[Any]:
    return sa.select(*(schema.tokens.c[name] for name in Token.__slots__))
