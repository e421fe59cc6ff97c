"""Every refusal of the service, in one shape: RFC 9457 problem details, made in one handler.

Refusal                      carries status, title and detail
├── UnreadableChunk   422    the bytes are not a chunk we can read
├── WrongIdentity     422    a chunk was sent to another chunk's address
├── ChunkConflict     409    another chunk has this identity
├── TooLarge          413    more bytes than `max_chunk_bytes`
├── NotFound          404    no such run, series, verdict, policy
├── BadRequest        422    a parameter makes no sense, with what would
├── NotAuthenticated  401    no token, or one that is not valid
├── NotAllowed        403    a valid token for something else
├── CrossOrigin       403    another site's page would have a service without tokens do something
├── Misdirected       421    the Host header is none by which a service without tokens may be called
├── TooMany           429    more than the token's rate; later, after `retry_after` seconds
├── Busy              503    try again after `retry_after` seconds; nothing was stored
├── NewerVersion      503    a later version wrote this: another replica, or this one once it is updated, reads it
└── BytesGone         500    an object that holds a run's bytes was deleted from the object store

A client that gets 409, 413 or 422 must not send the same again; 429 and 5xx say "later".
"""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from lossguard.wire.errors import UnsupportedVersion
from lossguard.wire.numbers import to_json
from lossguard_service.store.bytes import AnotherStore, BytesLost, BytesUnavailable
from lossguard_service.store.layout import NewerSegment
from lossguard_service.store.opened_file import DatabaseMoved

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:lossguard:problem:"


class Refusal(Exception):
    """The request was understood and refused; nothing was stored.

    Attributes:
        detail: one sentence about this request, which says what to do.
        headers: to send with the answer.
        extra: further members of the problem document.
    """

    status: int = 500
    kind: str = "internal"
    title: str = "Internal error"

    def __init__(self, detail: str, *, headers: dict[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = headers or {}
        self.extra = extra


class UnreadableChunk(Refusal):
    """The bytes are not a chunk we can read."""

    status, kind, title = 422, "unreadable-chunk", "The bytes are not a readable chunk"


class WrongIdentity(Refusal):
    """The chunk says that it is another one than the URL says."""

    status, kind, title = 422, "wrong-identity", "The chunk belongs elsewhere"


class ChunkConflict(Refusal):
    """A chunk with this identity and other bytes is stored already."""

    status, kind, title = 409, "chunk-conflict", "Another chunk has this identity"


class TooLarge(Refusal):
    """The body is larger than the service takes."""

    status, kind, title = 413, "too-large", "The body is too large"


class NotFound(Refusal):
    """There is no such thing."""

    status, kind, title = 404, "not-found", "Not found"


class BadRequest(Refusal):
    """A parameter makes no sense."""

    status, kind, title = 422, "bad-request", "The request makes no sense"


class NotAuthenticated(Refusal):
    """No token came, or one that is unknown, expired or revoked."""

    status, kind, title = 401, "not-authenticated", "A token is needed"


class NotAllowed(Refusal):
    """The token is valid, but not for this."""

    status, kind, title = 403, "not-allowed", "The token does not allow this"


class CrossOrigin(Refusal):
    """A web page of another origin would have a service without tokens do something."""

    status, kind, title = 403, "cross-origin", "Another site's page asked for this"


class Misdirected(Refusal):
    """The Host header is none of the names by which a service without tokens may be called."""

    status, kind, title = 421, "misdirected", "This service is not called so"


class TooMany(Refusal):
    """The token's rate is used up; nothing was stored."""

    status, kind, title = 429, "too-many", "More than the token's rate"

    def __init__(self, detail: str, *, retry_after: int = 1) -> None:
        super().__init__(detail, headers={"retry-after": str(retry_after)})


class Busy(Refusal):
    """More work is waiting than fits, or the database does not answer; the same request may succeed later."""

    status, kind, title = 503, "busy", "Try again later"

    def __init__(self, detail: str, *, retry_after: int = 1) -> None:
        super().__init__(detail, headers={"retry-after": str(retry_after)})


class NewerVersion(Refusal):
    """A later version wrote what this replica would have to read; another one may be able to: worth a retry."""

    status, kind, title = 503, "newer-version", "Written by a later version"

    def __init__(self, detail: str, *, retry_after: int = 5) -> None:
        super().__init__(detail, headers={"retry-after": str(retry_after)})


class BytesGone(Refusal):
    """An object that a row names is not in the object store any more."""

    status, kind, title = 500, "bytes-gone", "Stored bytes are gone"


PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of a route that may refuse so."""
    content = {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}}
    return {status: {"description": "Refused; the document says why.", "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Make `app` answer every failure as a problem document, and say so in its OpenAPI document."""
    for kind in (
        *(Refusal, HTTPException, RequestValidationError, DBAPIError, PoolTimeoutError, OSError),
        *(BytesUnavailable, BytesLost, NewerSegment, UnsupportedVersion, Exception),
    ):
        app.add_exception_handler(kind, handle)
    plain = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            _describe(plain())
        return plain()

    app.openapi = described  # type: ignore[method-assign]


def _describe(document: dict[str, Any]) -> None:
    """Every operation may refuse what it cannot read, and every refusal is a problem document."""
    schemas = document.get("components", {}).get("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    content = {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}}
    for operations in document["paths"].values():
        for operation in operations.values():
            responses = operation["responses"]
            for status in {*responses, "422"}:
                if int(status) >= 400:
                    said = responses.get(status, {}).get("description")
                    responses[status] = {"description": said or "Refused; the document says why.", "content": content}


def _allowed(app: FastAPI, path: str) -> str:
    """The methods that some route has at a path: the framework's own answer names those of the first route only."""
    found = {
        method.upper()
        for template, operations in app.openapi()["paths"].items()
        if compile_path(template)[0].match(path)
        for method in operations
    }
    return ", ".join(sorted(found))


async def handle(request: Request, error: Exception) -> JSONResponse:
    """The one handler."""
    refusal = error if isinstance(error, Refusal) else _refusal(request, error)
    if refusal.status == 405 and (methods := _allowed(request.app, request.url.path)):
        refusal.headers["allow"] = methods
    document = {
        "type": TYPE_PREFIX + refusal.kind,
        "title": refusal.title,
        "status": refusal.status,
        "detail": refusal.detail,
        **to_json(refusal.extra),
    }
    return JSONResponse(document, refusal.status, headers=refusal.headers, media_type=MEDIA_TYPE)


def _refusal(request: Request, error: Exception) -> Refusal:
    if isinstance(error, HTTPException):
        return _plain(request, error)
    if isinstance(error, RequestValidationError):
        errors = [
            {"where": ".".join(str(part) for part in one["loc"]), "problem": one["msg"]} for one in error.errors()
        ]
        listed = "; ".join(f"{one['where']}: {one['problem']}" for one in errors)
        return BadRequest(listed, errors=errors)
    if isinstance(error, (DBAPIError, PoolTimeoutError, OSError)):
        log.error("the database failed at %s %s: %s", request.method, request.url.path, error)
        said = str(error) if isinstance(error, DatabaseMoved) else "the database did not answer"
        return Busy(f"{said}; nothing was stored", retry_after=2)
    if isinstance(error, BytesUnavailable):
        log.error("%s %s: %s", request.method, request.url.path, error)
        said = str(error) if isinstance(error, AnotherStore) else "the object store did not answer"
        return Busy(f"{said}; nothing was stored", retry_after=5)
    if isinstance(error, (NewerSegment, UnsupportedVersion)):
        log.error("%s %s: %s", request.method, request.url.path, error)
        return NewerVersion(f"{error}; replicas of a later version read it already")
    if isinstance(error, BytesLost):
        log.error("%s %s: %s", request.method, request.url.path, error)
        return BytesGone(str(error))
    log.exception("a bug at %s %s", request.method, request.url.path, exc_info=error)
    return Refusal("the service failed at this request; its log says more")


def _plain(request: Request, error: HTTPException) -> Refusal:
    """A refusal that the framework, or a room without a class for it, made from a status and a sentence."""
    phrase = HTTPStatus(error.status_code).phrase
    if str(error.detail) != phrase:
        detail = str(error.detail)
    elif error.status_code == 404:
        detail = f"there is nothing at {request.url.path}"
    else:
        detail = f"{request.method} {request.url.path}: {phrase.lower()}"
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    named = {kind.status: kind for kind in (NotFound, TooLarge, BadRequest, NotAllowed)}
    if error.status_code == 400:  # a body that is not JSON: the same situation as JSON that is not what is asked for
        return BadRequest(detail)
    if error.status_code in named:
        return named[error.status_code](detail, headers=headers)
    refusal = Refusal(detail, headers=headers)
    refusal.status, refusal.title = error.status_code, phrase
    refusal.kind = phrase.lower().replace(" ", "-")
    return refusal
