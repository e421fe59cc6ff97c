"""The pages for admins: who may do what, what the gate's rules are, who made exceptions, and what was done.

Guarantees. A token's secret is shown once, in the answer to the form that made it, and is in no address. What changes
something is taken from these pages only (`is_same_origin`). Nobody can lock themselves out or open the service by
accident here: the first token must be one for admins, and the last one stays.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from lossguard_service.auth import Guard, is_same_origin
from lossguard_service.store.audit import Entry, newest_entries
from lossguard_service.store.database import Database
from lossguard_service.store.tokens import SCOPES, Scope, Token, create_token, list_tokens, revoke_token
from lossguard_service.store.waivers import Waiver, list_waivers
from lossguard_service.web import admit
from lossguard_service.web.login import FOREIGN, go, read_form
from lossguard_service.web.render import Renderer
from lossguard_service.web.words import run_path

AUDIT_ROWS: Final = 100
_NAME: Final = 200
AUDIT_KINDS: Final = {
    "verdict": "Verdict",
    "waiver_created": "Waiver made",
    "waiver_revoked": "Waiver revoked",
    "key_created": "Signing key made",
    "key_revoked": "Signing key revoked",
    "policy_created": "Policy stored",
    "token_created": "Token made",
    "token_revoked": "Token revoked",
}
SCOPE_MEANING: Final[Mapping[Scope, str]] = {
    "ingest": "trainers and sidecars: send chunks",
    "read": "people, Prometheus and Grafana: pages, API, metrics",
    "gate": "release pipelines: ask for verdicts",
    "admin": "everything, these pages included",
}


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One token and whether it still counts."""

    token: Token
    state: str
    tone: str


@dataclass(frozen=True, slots=True)
class WaiverRow:
    """One waiver and whether it still counts."""

    waiver: Waiver
    state: str
    tone: str
    href: str


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One version of a policy; `changed` are the rules that differ from the version, or the default, before it."""

    name: str
    version: int
    description: str
    is_newest: bool
    rules: tuple[tuple[str, Any], ...]
    changed: frozenset[str]


class Admin:
    """The pages over one database."""

    def __init__(
        self,
        database: Database,
        guard: Guard,
        renderer: Renderer,
        policies: Callable[[], Awaitable[Sequence[Mapping[str, Any]]]],
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._guard = guard
        self._renderer = renderer
        self._policies = policies
        self._clock = clock

    async def tokens(self, request: Request) -> Response:
        """All tokens, and a form for one more."""
        return await self._token_page(request)

    async def create(self, request: Request) -> Response:
        """Make a token and show its secret, this once."""
        form = await read_form(request)
        if not is_same_origin(request):
            return await self._token_page(request, 403, problem=FOREIGN)
        try:
            name, scopes, project, expires = _asked(form, self._clock())
            if await self._guard.shuts_everybody_out(scopes, project):
                raise ValueError(
                    "The first token must have the scope admin on all projects: with it the service asks everybody for "
                    "a token, and without an admin nobody could make the next one here."
                )
        except ValueError as error:
            return await self._token_page(request, 422, problem=str(error))
        secret, token = await create_token(
            self._database,
            name=name,
            scopes=scopes,
            project=project,
            now=self._clock(),
            actor=admit.viewer_of(request).name,
            expires=expires,
        )
        return await self._token_page(request, secret=secret, made=token)

    async def revoke(self, request: Request, token_id: str) -> Response:
        """Revoke a token for ever."""
        if not is_same_origin(request):
            return await self._token_page(request, 403, problem=FOREIGN)
        now = self._clock()
        if await self._guard.is_last_admin(token_id):
            problem = (
                "This is the last admin token: without it nobody could make another one here. Make a new one first, "
                "or use lossguard token revoke on the machine of the database."
            )
            return await self._token_page(request, 422, problem=problem)
        if not await revoke_token(self._database, token_id, now, actor=admit.viewer_of(request).name):
            return await self._token_page(request, 404, problem="No token of this id counts: it was revoked before.")
        return go("/admin/tokens")

    async def policies(self, request: Request) -> Response:
        """Every version of every policy, with all rules."""
        rows = policy_rows(await self._policies())
        return self._renderer.render(request, "policies.html", page="policies", rows=rows)

    async def waivers(self, request: Request) -> Response:
        """Who let what pass."""
        now = self._clock()
        rows = [_waiver(one, now) for one in await list_waivers(self._database)]
        return self._renderer.render(request, "waivers.html", page="waivers", rows=rows)

    async def audit(self, request: Request) -> Response:
        """What was done, the newest first."""
        query = request.query_params
        kind = query.get("kind", "") if query.get("kind", "") in AUDIT_KINDS else ""
        text = query.get("before", "")
        before = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None
        found = await newest_entries(
            self._database,
            project=query.get("project") or None,
            kind=kind or None,
            before=before,
            limit=AUDIT_ROWS + 1,
        )
        shown = found[:AUDIT_ROWS]
        filters = {name: value for name, value in (("project", query.get("project", "")), ("kind", kind)) if value}
        older = urlencode({**filters, "before": shown[-1].sequence}) if len(found) > AUDIT_ROWS else ""
        return self._renderer.render(
            request,
            "audit.html",
            page="audit",
            rows=[(entry, AUDIT_KINDS.get(entry.kind, entry.kind), _particulars(entry)) for entry in shown],
            kinds=AUDIT_KINDS,
            kind=kind,
            project=query.get("project", ""),
            older=f"/admin/audit?{older}" if older else "",
            is_first=before is None,
        )

    async def _token_page(
        self, request: Request, status: int = 200, *, problem: str = "", secret: str = "", made: Token | None = None
    ) -> Response:
        now = self._clock()
        rows = [_token(token, now) for token in await list_tokens(self._database)]
        return self._renderer.render(
            request,
            "tokens.html",
            status,
            page="tokens",
            rows=rows,
            scopes=SCOPE_MEANING,
            problem=problem,
            secret=secret,
            made=made,
            is_open=not await self._guard.needs_tokens() and made is None,
        )


def router(pages: Admin) -> APIRouter:
    """The routes, for admins of the whole service."""
    routes = APIRouter(prefix="/admin", include_in_schema=False, dependencies=[Depends(admit.admin)])
    routes.add_api_route("/audit", pages.audit, methods=["GET"])
    routes.add_api_route("/policies", pages.policies, methods=["GET"])
    routes.add_api_route("/tokens", pages.tokens, methods=["GET"])
    routes.add_api_route("/tokens", pages.create, methods=["POST"])
    routes.add_api_route("/tokens/{token_id}/revoke", pages.revoke, methods=["POST"])
    routes.add_api_route("/waivers", pages.waivers, methods=["GET"])
    return routes


def policy_rows(documents: Sequence[Mapping[str, Any]]) -> list[PolicyRow]:
    """Policies for reading: by name, the newest version first, each with what changed."""
    default = next((one for one in documents if one["name"] == "default"), {})
    rows: list[PolicyRow] = []
    for name in dict.fromkeys(one["name"] for one in documents):
        before, found = default, []
        versions = sorted((one for one in documents if one["name"] == name), key=lambda one: int(one["version"]))
        for one in versions:
            rules = tuple((key, value) for key, value in one.items() if key not in ("name", "version", "description"))
            changed = frozenset(key for key, value in rules if before and value != before.get(key))
            is_newest = one is versions[-1]
            found.append(PolicyRow(name, one["version"], one.get("description", ""), is_newest, rules, changed))
            before = one
        rows += reversed(found)
    return rows


def _asked(form: Mapping[str, list[str]], now: float) -> tuple[str, tuple[Scope, ...], str | None, float | None]:
    name = form.get("name", [""])[0].strip()
    if not 0 < len(name) <= _NAME:
        raise ValueError(f"Name: say who or what will use the token, in at most {_NAME} characters.")
    scopes = tuple(scope for scope in SCOPES if scope in form.get("scope", []))
    if not scopes:
        raise ValueError("Scopes: tick at least one; a token without any opens nothing.")
    project = form.get("project", [""])[0].strip()
    if len(project) > 512:
        raise ValueError("Project: at most 512 characters.")
    text = form.get("days", [""])[0].strip()
    try:
        days = float(text) if text else None
    except ValueError:
        days = math.nan
    if days is not None and not 0 < days <= 36_500:
        raise ValueError("Days: a number above 0, or nothing for a token that does not expire.")
    return name, scopes, project or None, None if days is None else now + 86_400 * days


def _token(token: Token, now: float) -> TokenRow:
    if token.revoked is not None:
        return TokenRow(token, "Revoked", "quiet")
    return TokenRow(token, "Valid", "good") if token.is_valid(now) else TokenRow(token, "Expired", "quiet")


def _waiver(waiver: Waiver, now: float) -> WaiverRow:
    state, tone = ("Revoked", "quiet") if waiver.revoked is not None else ("Counts", "warning")
    if waiver.revoked is None and now >= waiver.expires:
        state, tone = "Expired", "quiet"
    return WaiverRow(waiver, state, tone, run_path(waiver.project, waiver.run))


def _particulars(entry: Entry) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in entry.document.items() if value is not None]
