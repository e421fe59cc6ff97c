"""The gate's routes for those who answer for it: policies, waivers, signing keys, the audit log.

Guarantees. Everything that changes a rule needs the scope `admin` (a waiver: on its project), names who did it, and
stands in the audit log in the same transaction. Private keys never leave the service.
"""

import secrets
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import Field

from lossguard.wire.numbers import to_json
from lossguard_service.auth import Guard, require
from lossguard_service.errors import BadRequest, NotAllowed, NotFound
from lossguard_service.gate.policy import PolicyError
from lossguard_service.gate.routes import Body, Name, gate, guard, refusals
from lossguard_service.gate.waive import WaiverError
from lossguard_service.store import audit, waivers
from lossguard_service.store.keys import SigningKey
from lossguard_service.store.waivers import Waiver

router = APIRouter(prefix="/v1", tags=["gate"])
Author = Annotated[str, Field(min_length=1, max_length=200, description="Who answers for it.")]
Reason = Annotated[str, Field(min_length=1, max_length=2_000, description="Why, in a sentence.")]


class PolicyBody(Body):
    """A policy's rules; what is not given keeps its default."""

    rules: dict[str, Any] = Field(description="`name` and the rules that differ from the default.")
    author: Author


class WaiverBody(Body):
    """Lets named checks of a run's exports pass for a while."""

    project: Name
    run: Name
    checks: list[Annotated[str, Field(max_length=500)]] = Field(max_length=100)
    author: Author
    reason: Reason
    seconds: float = Field(gt=0, description="For how long.")
    first_step: int | None = Field(None, ge=1, le=2**62)
    last_step: int | None = Field(None, ge=1, le=2**62)


class ActorBody(Body):
    """Who does it, and why."""

    author: Author
    reason: Reason


@router.post("/policies", dependencies=[Depends(require("admin"))], responses=refusals(401, 403, 422, 503))
async def add_policy(body: PolicyBody, request: Request) -> dict[str, Any]:
    """Store a new version of a policy."""
    try:
        return dict(to_json((await gate(request).add_policy(body.rules, body.author)).to_json()))
    except PolicyError as error:
        raise BadRequest(str(error)) from None


@router.post("/waivers", responses=refusals(401, 403, 422, 503))
async def add_waiver(body: WaiverBody, request: Request) -> dict[str, Any]:
    """Store a waiver; verdicts from now on say so where they use it."""
    await guard(request, "admin", body.project)
    now = request.app.state.clock()
    waiver = Waiver(
        id=secrets.token_hex(16),
        project=body.project,
        run=body.run,
        first_step=body.first_step,
        last_step=body.last_step,
        checks=tuple(body.checks),
        author=body.author,
        reason=body.reason,
        created=now,
        expires=now + body.seconds,
    )
    try:
        return asdict(await gate(request).add_waiver(waiver))
    except WaiverError as error:
        raise BadRequest(str(error)) from None


@router.get("/waivers", dependencies=[Depends(require("read"))], responses=refusals(401, 403, 503))
async def list_waivers(request: Request, project: str | None = None, run: str | None = None) -> dict[str, Any]:
    """Waivers, the newest first; those that no longer count too."""
    found = await waivers.list_waivers(request.app.state.database, project=project, run=run)
    return {"waivers": [asdict(one) for one in found]}


@router.delete("/waivers/{waiver_id}", status_code=204, responses=refusals(401, 403, 404, 503))
async def revoke_waiver(
    waiver_id: Annotated[str, Path(max_length=100)], author: Annotated[str, Query(max_length=200)], request: Request
) -> None:
    """The waiver counts no more."""
    database, now = request.app.state.database, request.app.state.clock()
    waiver = await waivers.find_waiver(database, waiver_id)
    await guard(request, "admin", None if waiver is None else waiver.project)
    if waiver is None or not await waivers.revoke_waiver(database, waiver_id, now=now, actor=author):
        raise NotFound("no waiver of this id counts; GET /v1/waivers lists them")


async def _reader(request: Request) -> None:
    """Public keys are of no project: whoever may read, or ask for verdicts, in one of them needs them to verify."""
    may: Guard = request.app.state.guard
    try:
        await may.check(request, "read", None, anywhere=True)
    except NotAllowed:
        await may.check(request, "gate", None, anywhere=True)


@router.get("/keys", dependencies=[Depends(_reader)], responses=refusals(401, 403, 503))
async def list_keys(request: Request) -> dict[str, Any]:
    """The public halves of the signing keys, the one in use last."""
    return {"keys": [_public(key) for key in await gate(request).keys()]}


@router.post("/keys/rotate", dependencies=[Depends(require("admin"))], responses=refusals(401, 403, 503))
async def rotate_key(body: ActorBody, request: Request) -> dict[str, Any]:
    """Sign with a new key from now on; what the old ones signed stays valid."""
    return _public(await gate(request).rotate_key(body.author, body.reason))


@router.post("/keys/{key_id}/revoke", dependencies=[Depends(require("admin"))], responses=refusals(401, 403, 404, 503))
async def revoke_key(key_id: Annotated[str, Path(max_length=100)], body: ActorBody, request: Request) -> dict[str, Any]:
    """What this key signed counts no more."""
    if not await gate(request).revoke_key(key_id, body.author, body.reason):
        raise NotFound("no key of this id counts; `lossguard gate keys` (GET /v1/keys) lists them")
    return await list_keys(request)


@router.get("/audit", dependencies=[Depends(require("admin"))], responses=refusals(401, 403, 422, 503))
async def read_audit(
    request: Request,
    project: str | None = None,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
) -> dict[str, Any]:
    """The audit log in order; ask again with `after` set to the last sequence to export all of it."""
    entries = await audit.list_entries(request.app.state.database, project=project, after=after, limit=limit)
    return {"entries": [asdict(entry) for entry in entries]}


def _public(key: SigningKey) -> dict[str, Any]:
    state = "revoked" if key.revoked is not None else "retired" if key.private is None else "active"
    return {
        "key": key.id,
        "public": f"ed25519:{key.public}",
        "state": state,
        "created": key.created,
        "retired": key.retired,
        "revoked": key.revoked,
    }
