"""`/v1/tokens`: make, list and revoke tokens; the scope `admin` on all projects is needed.

Guarantees. A secret is in one answer only, that to the request that made it. Nobody locks themselves out: the first
token must be one for admins, and the last one of these stays. Each change stands in the audit log.
"""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from lossguard_service.auth import Guard, caller, require
from lossguard_service.errors import BadRequest, NotFound, refusals
from lossguard_service.store.tokens import create_token, list_tokens, revoke_token

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
router = APIRouter(prefix="/v1/tokens", tags=["tokens"])


class TokenBody(BaseModel):
    """What a new token allows."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name = Field(description="What people call it.")
    scopes: list[Literal["ingest", "read", "gate", "admin"]] = Field(min_length=1, max_length=4)
    project: Name | None = Field(None, description="The one it is for; all without.")
    seconds: float | None = Field(None, gt=0, le=1e10, description="It expires after so long; never without.")


@router.get("", dependencies=[Depends(require("admin"))], responses=refusals(401, 403, 503))
async def read_tokens(request: Request) -> dict[str, Any]:
    """All tokens, the newest first, those that no longer count too; secrets are not known."""
    return {"tokens": [asdict(one) for one in await list_tokens(request.app.state.database)]}


@router.post("", status_code=201, responses=refusals(401, 403, 422, 503))
async def add_token(body: TokenBody, request: Request) -> dict[str, Any]:
    """A new token; `secret` is shown this once."""
    guard: Guard = request.app.state.guard
    actor = caller(await guard.check(request, "admin", None), await guard.needs_tokens())
    scopes = tuple(dict.fromkeys(body.scopes))
    if await guard.shuts_everybody_out(scopes, body.project):
        raise BadRequest("the first token must have the scope admin on all projects: nobody could make another one")
    now = request.app.state.clock()
    secret, token = await create_token(
        request.app.state.database,
        name=body.name,
        scopes=scopes,
        project=body.project,
        now=now,
        actor=actor,
        expires=None if body.seconds is None else now + body.seconds,
    )
    return asdict(token) | {"secret": secret}


@router.delete("/{token_id}", status_code=204, responses=refusals(401, 403, 404, 422, 503))
async def end_token(token_id: Annotated[str, Path(max_length=100)], request: Request) -> None:
    """The token counts no more, on every replica within five seconds."""
    guard: Guard = request.app.state.guard
    actor = caller(await guard.check(request, "admin", None), await guard.needs_tokens())
    database, now = request.app.state.database, request.app.state.clock()
    known = any(one.id == token_id and one.revoked is None for one in await list_tokens(database))
    if known and await guard.is_last_admin(token_id):
        raise BadRequest("this is the last token with the scope admin on all projects: make another one first")
    if not known or not await revoke_token(database, token_id, now, actor=actor):
        raise NotFound("no token of this id counts; GET /v1/tokens lists them")
