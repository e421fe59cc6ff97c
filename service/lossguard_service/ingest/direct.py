"""The short way for chunks: around the framework's middleware and its search for a route, by the same code otherwise.

Guarantees. A request that `put_chunk` would answer gets the same answer, the same refusals and the same place in the
replica's metrics; every other request goes the framework's way. Why: docs/decisions/0405-hot-statements.md.
"""

from collections.abc import Callable

from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from lossguard_service.errors import handle
from lossguard_service.ingest.routes import chunk_route, take_chunk

_WORDS = ("", "v1", "projects", "runs", "attempts", "chunks")


class Direct(FastAPI):
    """The service's application."""

    _short: ASGIApp | None = None

    def shorten(self, around: Callable[[ASGIApp], ASGIApp]) -> None:
        """From now on answer chunks directly; `around` stands in place of all middleware."""
        self._short = around(_answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if self._short is not None and scope["type"] == "http" and scope["method"] == "PUT":
            place = _place(scope["path"].split("/"))
            if place is not None and not scope.get("root_path"):
                scope.update(app=self, route=chunk_route, path_params=place)
                await self._short(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive, send)
    try:
        response = await take_chunk(request)
    except ClientDisconnect:
        return  # it hung up before all of the chunk was here, and will send it again
    except Exception as error:
        response = await handle(request, error)
    await response(scope, receive, send)


def _place(parts: list[str]) -> dict[str, str] | None:
    """The parameters of a chunk's address, if the path's parts make one."""
    if len(parts) != 10 or (*parts[:3], *parts[4:9:2]) != _WORDS:
        return None
    place = {"project": parts[3], "run": parts[5], "attempt": parts[7], "index": parts[9]}
    return place if all(place.values()) else None
