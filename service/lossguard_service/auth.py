"""Who may do what. Without tokens everybody on this machine may do everything, and nobody else can reach the service.

As soon as an admin token is set or one token exists in the database, every request under `/v1`, `/metrics` and the
pages needs one: `Authorization: Bearer TOKEN`, Basic with the token as the password, or the cookie that the login page
sets. A cookie goes along by itself, so it counts only for reading and for what our own pages send.
Tokens are remembered for a few seconds, so a revoked one is refused everywhere after `REMEMBER_SECONDS`.
"""

import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

from fastapi import Request

from lossguard_service.errors import NotAllowed, NotAuthenticated
from lossguard_service.store.database import Database
from lossguard_service.store.tokens import Scope, Token, digest, find_token, list_tokens

REMEMBER_SECONDS: Final = 5.0
COOKIE: Final = "lossguard_token"
_REMEMBERED: Final = 4096
_CHALLENGE: Final = {"www-authenticate": 'Bearer realm="lossguard", Basic realm="lossguard", charset="UTF-8"'}


class Guard:
    """Checks tokens; one per replica.

    Args:
        database: where the tokens are.
        admin_token: one that is valid besides.
        clock: Unix seconds.
        is_reachable: other machines reach this replica, so that requests need a token even when none is valid any more.
    """

    def __init__(
        self, database: Database, admin_token: str | None, clock: Callable[[], float], *, is_reachable: bool = False
    ) -> None:
        self._database = database
        self._is_reachable = is_reachable
        self._admin = None if admin_token is None else digest(admin_token)
        self._clock = clock
        self._found: dict[str, tuple[float, Token | None]] = {}
        self._closed: tuple[float, bool] | None = None

    async def needs_tokens(self) -> bool:
        """True if requests need a token."""
        if self._admin is not None or self._is_reachable:
            return True
        now = self._clock()
        if self._closed is None or not 0 <= now - self._closed[0] < REMEMBER_SECONDS:
            self._closed = now, any(token.is_valid(now) for token in await list_tokens(self._database))
        return self._closed[1]

    async def check(
        self, request: Request, scope: Scope, project: str | None, *, anywhere: bool = False
    ) -> Token | None:
        """Let the request pass or refuse it.

        Args:
            request: whose Authorization header, or cookie, is read.
            scope: what the request does.
            project: to which project; None for what spans all projects.
            anywhere: the scope on any project is enough.

        Returns:
            The token that let it pass; None if that was the admin token, or none is needed.

        Raises:
            NotAuthenticated: no token, or one that is unknown, expired or revoked.
            NotAllowed: the token does not cover this.
        """
        if not await self.needs_tokens():
            return None
        secret = _presented(request)
        if secret is None:
            raise NotAuthenticated("send a token: Authorization: Bearer TOKEN", headers=_CHALLENGE)
        if self._is_admin(secret):
            return None
        token = await self._find(secret)
        if token is None or not token.is_valid(self._clock()):
            raise NotAuthenticated("the token is unknown, expired or revoked: ask for a new one", headers=_CHALLENGE)
        if not token.allows(scope, token.project if anywhere else project):
            where = "all projects" if project is None else f"project {project}"
            raise NotAllowed(f"token {token.name!r} does not allow {scope!r} on {where}: ask for one that does")
        return token

    async def knows(self, secret: str) -> bool:
        """True if the secret is that of a valid token, whatever it allows."""
        if self._is_admin(secret):
            return True
        token = await self._find(secret)
        return token is not None and token.is_valid(self._clock())

    async def shuts_everybody_out(self, scopes: Sequence[Scope], project: str | None) -> bool:
        """True if such a token must not be the first: with it every request needs one, and nobody could make more."""
        return not await self.needs_tokens() and ("admin" not in scopes or project is not None)

    async def is_last_admin(self, token_id: str) -> bool:
        """True if nobody could make tokens over HTTP once this one is revoked."""
        now = self._clock()
        others = [one for one in await list_tokens(self._database) if one.id != token_id and one.is_valid(now)]
        return self._admin is None and not any(one.allows("admin", None) for one in others)

    def _is_admin(self, secret: str) -> bool:
        return self._admin is not None and hmac.compare_digest(digest(secret), self._admin)

    async def _find(self, secret: str) -> Token | None:
        now, key = self._clock(), digest(secret)
        held = self._found.get(key)
        if held is not None and 0 <= now - held[0] < REMEMBER_SECONDS:
            return held[1]
        token = await find_token(self._database, secret)
        if len(self._found) >= _REMEMBERED:
            self._found.clear()
        self._found[key] = now, token
        return token


def require(scope: Scope) -> Callable[[Request], Awaitable[None]]:
    """A FastAPI dependency: the request needs `scope` on the project in its path or query, if there is one."""

    async def dependency(request: Request) -> None:
        guard: Guard = request.app.state.guard
        project = request.path_params.get("project") or request.query_params.get("project")
        await guard.check(request, scope, project)

    return dependency


def caller(token: Token | None, needs_tokens: bool) -> str:
    """Who asked, as the audit log calls them, by what `Guard.check` returned."""
    if token is not None:
        return f"token {token.name} ({token.id})"
    return "the admin token" if needs_tokens else "somebody on the service's machine"


def is_same_origin(request: Request) -> bool:
    """True if one of our own pages sent this: what browsers say of themselves, which no page can forge."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = urlsplit(request.headers.get("origin", ""))
    return bool(origin.netloc) and origin.netloc.lower() == request.headers.get("host", "").lower()


def to_cookie(secret: str) -> str:
    """A secret as a cookie's value, whatever its characters."""
    return base64.urlsafe_b64encode(secret.encode("utf-8", "surrogateescape")).decode().rstrip("=")


def _presented(request: Request) -> str | None:
    header = request.headers.get("authorization", "")
    if header:
        return _secret(header)
    held = request.cookies.get(COOKIE, "")
    if not held or not (request.method in ("GET", "HEAD") or is_same_origin(request)):
        return None
    try:
        return base64.urlsafe_b64decode(held + "=" * (-len(held) % 4)).decode("utf-8", "surrogateescape") or None
    except (binascii.Error, ValueError):
        return None


def _secret(header: str) -> str | None:
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer" and value.strip():
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None
