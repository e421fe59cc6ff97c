"""Who may see a page. A browser without a valid token is sent to the login page, one with too small a token is told.

Guarantees. Programs, which do not ask for HTML, get the same 401 and 403 as from `/v1`. A token for one project sees
that project and nothing of others, the list of runs and comparisons included.
"""

from dataclasses import dataclass
from urllib.parse import quote, urlencode

from starlette.requests import Request

from lossguard_service.auth import COOKIE, Guard, caller
from lossguard_service.errors import NotAllowed, NotAuthenticated
from lossguard_service.store.tokens import Scope


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks at a page.

    Attributes:
        project: the only one that the token is for; None for all.
        is_admin: the admin pages are open to them.
        by_cookie: they logged in, so they can log out.
        name: what the audit log calls them.
    """

    project: str | None
    is_admin: bool
    by_cookie: bool
    name: str = ""


class Elsewhere(Exception):
    """The browser should go to `location` instead."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.location = location


class Forbidden(Exception):
    """The token is valid, but not for this page; the message says so in a sentence."""


def viewer_of(request: Request) -> Viewer:
    """Who looks; known after `admit`."""
    viewer: Viewer = request.state.viewer
    return viewer


async def admit(request: Request, scope: Scope, project: str | None, *, anywhere: bool = False) -> None:
    """Let a browser see a page, or say where it should go.

    Raises:
        Elsewhere, Forbidden: to a browser.
        NotAuthenticated, NotAllowed: to a program.
    """
    guard: Guard = request.app.state.guard
    by_cookie = COOKIE in request.cookies and "authorization" not in request.headers
    wants_page = "text/html" in request.headers.get("accept", "")
    try:
        token = await guard.check(request, scope, project, anywhere=anywhere)
    except NotAuthenticated as error:
        if not wants_page:
            # Who logged in shall not be asked by the browser's own dialog when the token has expired.
            raise NotAuthenticated(error.detail, headers={} if by_cookie else error.headers) from None
        back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        to = f"/login?next={quote(back, safe='')}" if request.method == "GET" and back != "/" else "/login"
        raise Elsewhere(to) from None
    except NotAllowed as error:
        if not wants_page:
            raise
        request.state.viewer = Viewer(None, is_admin=False, by_cookie=by_cookie)
        raise Forbidden(error.detail) from None
    only = None if token is None else token.project
    is_admin = token is None or token.allows("admin", None)
    needs_tokens = await guard.needs_tokens()
    request.state.viewer = Viewer(only, is_admin, by_cookie and needs_tokens, caller(token, needs_tokens))


async def reader(request: Request) -> None:
    """A FastAPI dependency: the page is about the project in its path."""
    await admit(request, "read", request.path_params["project"])


async def anybody(request: Request) -> None:
    """A FastAPI dependency: the page shows nothing of any project."""
    await admit(request, "read", None, anywhere=True)


async def home(request: Request) -> None:
    """A FastAPI dependency for the list of runs: a token for one project sees the list of that project."""
    asked = request.query_params.get("project") or None
    if "text/html" not in request.headers.get("accept", ""):
        await admit(request, "read", asked)
        return
    await anybody(request)
    only = viewer_of(request).project
    if only is not None and asked != only:
        raise Elsewhere(f"/?{urlencode({'project': only})}")


async def admin(request: Request) -> None:
    """A FastAPI dependency: the page is for admins of the whole service."""
    await admit(request, "admin", None)
