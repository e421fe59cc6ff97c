"""Composes the pages: what everybody may read, what admins may, and the door."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from lossguard_service.auth import Guard
from lossguard_service.store.database import Database
from lossguard_service.web import admin, login, pages
from lossguard_service.web.admit import Elsewhere, Forbidden
from lossguard_service.web.render import Renderer


class Rules(Protocol):
    """A policy, as far as a page shows it."""

    def to_json(self) -> Mapping[str, Any]:
        """Its name, version, description and rules."""
        ...


def install(
    app: FastAPI,
    database: Database,
    guard: Guard,
    policies: Callable[[], Awaitable[Sequence[Rules]]],
    stalled_seconds: float,
    clock: Callable[[], float],
) -> None:
    """Add the pages to the application.

    Args:
        app: gets the routes, and the answers to browsers that may not see a page.
        database: what the pages read.
        guard: checks tokens.
        policies: every version of every policy of the gate.
        stalled_seconds: how long a run may be silent.
        clock: Unix seconds.
    """
    renderer = Renderer()

    async def documents() -> list[Mapping[str, Any]]:
        return [policy.to_json() for policy in await policies()]

    async def elsewhere(_request: Request, error: Exception) -> Response:
        assert isinstance(error, Elsewhere)
        return login.go(error.location)

    async def forbidden(request: Request, error: Exception) -> Response:
        title = "This token does not open this page"
        return renderer.render(request, "error.html", 403, page="error", title=title, detail=f"{error}.".capitalize())

    app.include_router(pages.router(pages.Pages(database, renderer, stalled_seconds=stalled_seconds, clock=clock)))
    app.include_router(admin.router(admin.Admin(database, guard, renderer, documents, clock)))
    app.include_router(login.router(login.Login(guard, renderer, clock)))
    app.add_exception_handler(Elsewhere, elsewhere)
    app.add_exception_handler(Forbidden, forbidden)
