"""Login by token: a form, a cookie that scripts cannot read and other sites cannot make use of, and a logout.

The cookie holds the token itself, so that a token revoked is a login ended, on every replica and with no table of
sessions. What changes something is taken from our own pages only. After `MOST_FAILURES` wrong tokens from one address
the next must wait; headers are not held up by it, and who is logged in stays so.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import parse_qs

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from lossguard_service.auth import COOKIE, Guard, is_same_origin, to_cookie
from lossguard_service.web.render import SECURITY, Renderer

COOKIE_SECONDS: Final = 7 * 86_400
MOST_FAILURES: Final = 10
FAILURE_SECONDS: Final = 60.0
_ADDRESSES: Final = 4096
_FORM_BYTES: Final = 16 << 10
WRONG: Final = (
    "This token is unknown, expired or revoked: check that all of it was copied, or ask an admin for a new one "
    "(lossguard token create)."
)
FOREIGN: Final = "This form was not sent from this service's own page: open the page here and send it again."


class Throttle:
    """How often each address failed of late."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: dict[str, tuple[float, int]] = {}

    def wait_seconds(self, address: str) -> int:
        """How long it must wait before the next try; 0 if it need not."""
        since, failures = self._failures.get(address, (0.0, 0))
        left = since + FAILURE_SECONDS - self._clock()
        return max(1, math.ceil(left)) if failures >= MOST_FAILURES and 0 < left <= FAILURE_SECONDS else 0

    def failed(self, address: str) -> None:
        """Count one failure."""
        now = self._clock()
        since, failures = self._failures.get(address, (now, 0))
        if not 0 <= now - since < FAILURE_SECONDS:
            since, failures = now, 0
        if len(self._failures) >= _ADDRESSES:
            self._failures.clear()
        self._failures[address] = since, failures + 1


class Login:
    """The login page."""

    def __init__(self, guard: Guard, renderer: Renderer, clock: Callable[[], float]) -> None:
        self._guard = guard
        self._renderer = renderer
        self._throttle = Throttle(clock)

    async def show(self, request: Request) -> Response:
        """The form; where no token is needed, the runs."""
        if not await self._guard.needs_tokens():
            return go("/")
        return self._page(request, request.query_params.get("next", "/"))

    async def enter(self, request: Request) -> Response:
        """Take a token and set the cookie."""
        form = await read_form(request)
        to = form.get("next", ["/"])[0]
        if not is_same_origin(request):
            return self._page(request, to, 403, FOREIGN)
        if not await self._guard.needs_tokens():
            return go("/")
        address = request.client.host if request.client else ""
        wait = self._throttle.wait_seconds(address)
        if wait:
            answer = self._page(request, to, 429, f"Too many wrong tokens came from your address: wait {wait} s.")
            answer.headers["Retry-After"] = str(wait)
            return answer
        secret = form.get("token", [""])[0].strip()
        if not secret or not await self._guard.knows(secret):
            self._throttle.failed(address)
            return self._page(request, to, 401, WRONG if secret else "Paste a token into the field.")
        answer = go(inside(to))
        answer.set_cookie(
            COOKIE,
            to_cookie(secret),
            max_age=COOKIE_SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    async def leave(self, request: Request) -> Response:
        """Forget the cookie."""
        if not is_same_origin(request):
            return self._page(request, "/", 403, FOREIGN)
        answer = go("/login")
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return answer

    def _page(self, request: Request, to: str, status: int = 200, problem: str = "") -> Response:
        return self._renderer.render(request, "login.html", status, page="login", to=inside(to), problem=problem)


def router(login: Login) -> APIRouter:
    """The routes, open to everybody."""
    routes = APIRouter(include_in_schema=False)
    routes.add_api_route("/login", login.show, methods=["GET"])
    routes.add_api_route("/login", login.enter, methods=["POST"])
    routes.add_api_route("/logout", login.leave, methods=["POST"])
    return routes


def go(location: str) -> Response:
    """Send the browser to another page with GET."""
    return RedirectResponse(location, 303, headers=SECURITY)


def inside(path: str) -> str:
    """A path of this service; the list of runs for anything that may lead elsewhere.

    >>> inside("/runs/a/b?x=1"), inside("//evil.example"), inside("https://evil.example"), inside("/\\\\evil.example")
    ('/runs/a/b?x=1', '/', '/', '/')
    """
    plain = path.isascii() and path.isprintable() and path.startswith("/")
    return path if plain and not path.startswith("//") and "\\" not in path else "/"


async def read_form(request: Request) -> Mapping[str, list[str]]:
    """A form's fields as browsers send them; none if it is too large or no form."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _FORM_BYTES:
            return {}
    try:
        return parse_qs(body.decode(), keep_blank_values=True, max_num_fields=50)
    except ValueError:
        return {}
