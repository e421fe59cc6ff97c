"""PUT of chunks and heartbeats."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from lossguard.wire.chunk import ChunkId
from lossguard.wire.names import MAX_BYTES, check_name
from lossguard_service.auth import require
from lossguard_service.errors import BadRequest, TooLarge, refusals
from lossguard_service.ingest.accept import Ingest

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


router = APIRouter(
    prefix="/v1/projects/{project}/runs/{run}", tags=["ingest"], dependencies=[Depends(require("ingest"))]
)


@router.put(
    "/attempts/{attempt}/chunks/{index}",
    response_model=ChunkReplyModel,
    responses=refusals(401, 403, 409, 413, 422, 503),
    openapi_extra={
        "requestBody": {"required": True, "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
    },
)
async def put_chunk(project: Name, run: Name, attempt: Key, index: Index, request: Request) -> Response:
    """Store a chunk. Sending the same again is answered like the first time, with `duplicate` true."""
    ingest: Ingest = request.app.state.ingest
    try:
        check_name("project", project)
        check_name("run", run)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    data = await _body(request, request.app.state.settings.max_chunk_bytes)
    reply = await ingest.accept(ChunkId(project, run, attempt, index), data)
    return JSONResponse(reply.to_json())


@router.put("/heartbeat", status_code=204, responses=refusals(401, 403, 404, 422, 503))
async def put_heartbeat(project: Name, run: Name, beat: Heartbeat, request: Request) -> None:
    """Say that a run's trainer side lives, and how far its trainer is."""
    ingest: Ingest = request.app.state.ingest
    await ingest.heartbeat(project, run, attempt=beat.attempt, last_step=beat.last_step)


async def _body(request: Request, most: int) -> bytes:
    """The body, of which no more than `most` bytes are ever held."""
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > most:
        raise TooLarge(f"the body has {told} bytes, at most {most} are taken: use fewer frames a chunk")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise TooLarge(f"the body has more than {most} bytes: use fewer frames a chunk")
        parts.append(part)
    return b"".join(parts)
