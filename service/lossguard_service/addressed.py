"""A service that needs no token is for this machine's programs, and not for the web pages in its browser.

Guarantees. While no token is needed, a request must name this machine in its Host header: a loopback address,
`localhost`, or one of the setting `allowed_hosts`. A page whose own name was made to point at 127.0.0.1 (DNS rebinding)
would name itself there, and gets 421. What writes must not come from another origin's page, which a browser sends
without asking wherever the body looks like a form's or plain text, and gets 403. Programs send neither `Origin` nor
`Sec-Fetch-Site`, so that nothing changes for them. With tokens neither is checked: such pages know none.

Source: the Fetch standard (CORS-safelisted requests), Fetch Metadata Request Headers, RFC 9110 section 15.5.20.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from lossguard_service.errors import CrossOrigin, Misdirected, handle
from lossguard_service.settings import is_loopback

_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_REMEMBERED: Final = 64


class Addressed:
    """An ASGI application around another one's requests.

    Args:
        app: the service.
        needs_tokens: whether requests need a token at the moment.
        allowed: names by which the machine may be called too, without ports.
    """

    def __init__(self, app: ASGIApp, needs_tokens: Callable[[], Awaitable[bool]], allowed: frozenset[str]) -> None:
        self._app = app
        self._needs_tokens = needs_tokens
        self._allowed = allowed
        self._known: set[bytes] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            request = Request(scope, receive)
            try:
                said = None if await self._needs_tokens() else refusal
            except Exception as error:
                await (await handle(request, error))(scope, receive, send)
                return
            if said is not None:
                await (await handle(request, said))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Misdirected | CrossOrigin | None:
        host = origin = site = b""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
                if host not in self._known and not self._is_ours(host):
                    return Misdirected(
                        f"this service needs no token, so it answers to names of this machine only, not to "
                        f"{host.decode('latin-1')[:200]!r}: use http://127.0.0.1 or http://localhost, name it in "
                        "LOSSGUARD_ALLOWED_HOSTS, or set LOSSGUARD_ADMIN_TOKEN"
                    )
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
        if scope["method"] in _READING:
            return None
        if site not in (b"", b"same-origin", b"none") or (
            origin and origin.lower().partition(b"://")[2] != host.lower()
        ):
            who = origin.decode("latin-1")[:200] or "another origin"
            return CrossOrigin(
                f"a page of {who} asked for this, and this service needs no token: send it from a program or from the "
                "service's own pages, or set LOSSGUARD_ADMIN_TOKEN"
            )
        return None

    def _is_ours(self, host: bytes) -> bool:
        name = name_of(host.decode("latin-1"))
        if name not in self._allowed and not (is_loopback(name) or name.endswith(".localhost")):
            return False
        if len(self._known) < _REMEMBERED:
            self._known.add(host)
        return True


def name_of(host: str) -> str:
    """A Host header without port, brackets and the dot at its end, in small letters.

    >>> name_of("LocalHost:8080"), name_of("[::1]:8080"), name_of("example.com."), name_of("::1")
    ('localhost', '::1', 'example.com', '::1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name, colon, port = host.rpartition(":")
    if colon and ":" not in name and (port.isdecimal() or not port):
        host = name
    return host.lower().removesuffix(".")
