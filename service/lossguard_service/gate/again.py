"""Answers that are asked for again are given before the framework looks at the request: an ASGI middleware.

Guarantees. What comes from here is what the routes would have said: a verdict by its id as it was given, and a question
that came before in the same bytes only after the database said that nothing has changed (`Gate.again`), both after the
same look at the token. Whatever is unusual (a body in several parts, a refusal, a database that fails) is left to the
routes, which begin anew and find the words.
"""

import hashlib
from typing import Final, NamedTuple

from fastapi import Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lossguard_service.auth import Guard
from lossguard_service.errors import NotAllowed
from lossguard_service.gate.answers import Answer
from lossguard_service.gate.judge import Gate

PATH: Final = "/v1/verdicts"


class _Place(NamedTuple):
    """The route that would have answered, for who counts requests by their route."""

    path: str


_ASK, _FIND = _Place(PATH), _Place(PATH + "/{verdict_id}")


class Again:
    """Stands before the app.

    Args:
        app: what answers everything else.
        gate: of this replica.
        guard: who may ask.
    """

    def __init__(self, app: ASGIApp, gate: Gate, guard: Guard) -> None:
        self._app = app
        self._gate = gate
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        path = scope["path"] if scope["type"] == "http" else ""
        answer, place = None, _ASK
        if path == PATH and scope["method"] == "POST":
            first = await receive()
            receive = _once_more(first, receive)
            if first["type"] == "http.request" and not first.get("more_body"):
                answer = await self._tried(scope, first["body"])
        elif path.startswith(PATH + "/") and scope["method"] == "GET":
            answer, place = await self._tried(scope, path[len(PATH) + 1 :]), _FIND
        if answer is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = place
        await Response(answer.body, media_type="application/json")(scope, receive, send)

    async def _tried(self, scope: Scope, what: bytes | str) -> Answer | None:
        try:
            request = Request(scope)
            if isinstance(what, bytes):
                return await self._asked(request, what)
            return await self._found(request, what)
        except Exception:
            # The routes will meet the same and say it in the one shape that refusals have.
            return None

    async def _asked(self, request: Request, body: bytes) -> Answer | None:
        asked = self._gate.understood(fingerprint(request, body))
        if asked is None:
            return None
        await self._guard.check(request, "gate", asked.project)
        return await self._gate.again(asked)

    async def _found(self, request: Request, verdict_id: str) -> Answer | None:
        answer = self._gate.remembered(verdict_id)
        if answer is not None:
            await may_read(self._guard, request, answer.project)
        return answer


async def may_read(guard: Guard, request: Request, project: str | None) -> None:
    """Whoever may ask for a verdict may read one."""
    try:
        await guard.check(request, "read", project)
    except NotAllowed:
        await guard.check(request, "gate", project)


def fingerprint(request: Request, body: bytes) -> bytes:
    """The same for requests that say the same in the same bytes."""
    kind = request.headers.get("content-type", "")
    return hashlib.sha256(kind.encode() + b"\n" + body).digest()


def _once_more(first: Message, receive: Receive) -> Receive:
    """What `receive` gives, with the message that was taken from it before all others."""
    taken: list[Message] = [first]

    async def again() -> Message:
        return taken.pop() if taken else await receive()

    return again
