"""PUT of chunks and heartbeats."""

import functools
import json
import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from lossguard.wire.chunk import ChunkId
from lossguard.wire.names import MAX_BYTES, check_name
from lossguard_service.auth import require
from lossguard_service.errors import BadRequest, TooLarge, refusals
from lossguard_service.ingest.accept import Ingest
from lossguard_service.rates import Rates

MEDIA_TYPE = "application/vnd.lossguard.chunk"
Name = Annotated[str, Path(min_length=1, max_length=MAX_BYTES, description="By the rule of `lossguard.wire.names`.")]
Key = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="32 hex digits that the trainer drew.")]
Index = Annotated[int, Path(ge=0, lt=1 << 31, description="0, 1, 2, ... without gaps within the attempt.")]


class AdviceModel(BaseModel):
    """What the trainer should do; see `lossguard.wire.replies.Advice`."""

    action: str
    step: int | None
    reason: str


class ChunkReplyModel(BaseModel):
    """The service has the chunk, durably, once; see `lossguard.wire.replies.ChunkReply`."""

    duplicate: bool
    attempt: int
    next_index: int
    judged_step: int | None
    status: str
    advice: AdviceModel


class Heartbeat(BaseModel):
    """The trainer's side lives."""

    model_config = ConfigDict(extra="ignore", strict=True)

    attempt: str = Field(pattern="^[0-9a-f]{32}$", description="The attempt's key.")
    last_step: int | None = Field(None, ge=0, lt=1 << 53, description="The last step that the trainer handed over.")
    time: float | None = Field(None, description="Unix seconds by the sender's clock; not used to judge silence.")


_KEY: Final = re.compile("[0-9a-f]{32}")
_INDEX: Final = re.compile("[0-9]{1,10}")
# Made once: `json.dumps` with options, and so a response of JSON, makes a new one at each call.
_to_json: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class _ChunkRoute(APIRoute):
    """Documented like every route, but reads its request by hand: FastAPI's way costs two thirds of the HTTP part."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers."""
        return take_chunk


async def take_chunk(request: Request) -> Response:
    """Answer a PUT of a chunk; its address is in the path's parameters."""
    place, state = request.path_params, request.app.state
    project, run, attempt, index = place["project"], place["run"], place["attempt"], place["index"]
    token = await state.guard.check(request, "ingest", project)
    try:
        _check_names(project, run)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    if not _KEY.fullmatch(attempt):
        raise BadRequest(f"attempt: must be 32 hex digits that the trainer drew, got {attempt[:64]!r}")
    if not _INDEX.fullmatch(index) or int(index) >= 1 << 31:
        raise BadRequest(f"index: must be a number from 0 to 2147483647, got {index[:64]!r}")
    data = await _body(request, state.settings.max_chunk_bytes)
    rates: Rates = state.rates
    rates.take("" if token is None else token.id, len(data))
    ingest: Ingest = state.ingest
    reply = await ingest.accept(ChunkId(project, run, attempt, int(index)), data)
    return Response(_to_json(reply.to_json()).encode(), media_type="application/json")


@functools.lru_cache(maxsize=1024)
def _check_names(project: str, run: str) -> None:
    check_name("project", project)
    check_name("run", run)


async def put_chunk(project: Name, run: Name, attempt: Key, index: Index) -> None:
    """Store a chunk. Sending the same again is answered like the first time, with `duplicate` true."""


router = APIRouter(
    prefix="/v1/projects/{project}/runs/{run}", tags=["ingest"], dependencies=[Depends(require("ingest"))]
)
router.add_api_route(
    "/attempts/{attempt}/chunks/{index}",
    put_chunk,
    methods=["PUT"],
    response_model=ChunkReplyModel,
    responses=refusals(401, 403, 409, 413, 422, 429, 503),
    openapi_extra={
        "requestBody": {"required": True, "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
    },
    route_class_override=_ChunkRoute,
)
chunk_route: Final = router.routes[-1]
"""What the metrics call the requests that `lossguard_service.ingest.direct` answers."""


@router.put("/heartbeat", status_code=204, responses=refusals(401, 403, 404, 422, 503))
async def put_heartbeat(project: Name, run: Name, beat: Heartbeat, request: Request) -> None:
    """Say that a run's trainer side lives, and how far its trainer is."""
    ingest: Ingest = request.app.state.ingest
    await ingest.heartbeat(project, run, attempt=beat.attempt, last_step=beat.last_step)


async def _body(request: Request, most: int) -> bytes:
    """The body, of which no more than `most` bytes are ever held."""
    told = next((value for name, value in request.scope["headers"] if name == b"content-length"), b"")
    if told.isdigit() and int(told) > most:
        raise TooLarge(f"the body has {int(told)} bytes, at most {most} are taken: use fewer frames a chunk")
    parts, size, more = [], 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size > most:
            raise TooLarge(f"the body has more than {most} bytes: use fewer frames a chunk")
        parts.append(part)
    return b"".join(parts)
