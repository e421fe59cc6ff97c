"""The gate's routes: ask for a verdict, read verdicts and policies.

Guarantees. A question that can be read gets a verdict, also about a run that nobody knows (`insufficient_data`). What
cannot be read is refused with the field and a sentence, before anything is stored.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from lossguard.wire.numbers import from_json_number, to_json
from lossguard_service.auth import Guard, require
from lossguard_service.errors import PROBLEM_SCHEMA, BadRequest, NotFound
from lossguard_service.gate.again import fingerprint, may_read
from lossguard_service.gate.facts import Canary, Norm, Scan
from lossguard_service.gate.gather import Question, UnknownPolicy
from lossguard_service.gate.judge import Gate
from lossguard_service.gate.policy import Policy
from lossguard_service.store.tokens import Scope

MAX_METRICS = 1_000
MAX_NORMS = 4_000
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]


class Body(BaseModel):
    """What all bodies have in common: nothing unknown in them, and no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NormBody(Body):
    """One tensor of the artifact."""

    norm: float = Field(ge=0, allow_inf_nan=False)
    values: int = Field(ge=0)
    bits: int = Field(ge=1, le=64)


class ScanBody(Body):
    """What the agent found in the artifact's tensors."""

    kind: str = Field(max_length=50)
    tensors: int = Field(ge=0)
    values: int = Field(ge=0)
    nonfinite: dict[str, int] = Field(default_factory=dict, max_length=1_000)
    slots: int = Field(0, ge=0)
    nonfinite_slots: dict[str, int] = Field(default_factory=dict, max_length=1_000)
    complete: bool
    note: str = Field("", max_length=2_000)
    norms: dict[Annotated[str, Field(max_length=200)], NormBody] = Field(default_factory=dict, max_length=MAX_NORMS)


class CanaryBody(Body):
    """What the exported model answered on the user's canary rows."""

    rows: int = Field(ge=0)
    nonfinite: int = Field(ge=0)
    spread: float | str
    error: str | None = Field(None, max_length=2_000)

    @field_validator("spread")
    @classmethod
    def _number(cls, value: float | str) -> float:
        return from_json_number(value)


class VerdictRequest(Body):
    """The question: may this export be served?"""

    project: Name
    run: Name
    step: int = Field(ge=-(2**62), le=2**62, description="The last step trained into the export, counted from 1.")
    artifact_digest: str = Field(max_length=200, description="`sha256:` and 64 hex digits, of lossguard.gate.digest.")
    policy: Name = "default"
    attempt: str | None = Field(None, max_length=64, description="The attempt that exported, where it is known.")
    metrics: dict[Name, float | int | str] = Field(default_factory=dict, max_length=MAX_METRICS)
    scan: ScanBody | None = None
    canary: CanaryBody | None = None

    @field_validator("metrics")
    @classmethod
    def _numbers(cls, metrics: dict[str, float | int | str]) -> dict[str, float]:
        try:
            return {name: from_json_number(value) for name, value in metrics.items()}
        except OverflowError:
            raise ValueError("a metric is too large for a float") from None


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses for problem documents."""
    content = {"application/problem+json": {"schema": PROBLEM_SCHEMA}}
    return {status: {"description": "Refused; the document says why.", "content": content} for status in statuses}


router = APIRouter(prefix="/v1", tags=["gate"])


@router.post("/verdicts", responses=refusals(401, 403, 422, 503), response_model=dict[str, Any])
async def ask(body: VerdictRequest, request: Request) -> Response:
    """Judge one export and store the verdict; a run that nobody knows gets one too, `insufficient_data`.

    The same question gets the same verdict again, while nothing that it follows from has changed.
    """
    values = {name: getattr(body, name) for name in VerdictRequest.model_fields}
    values["scan"] = None if body.scan is None else _scan(body.scan)
    values["canary"] = None if body.canary is None else Canary(**body.canary.model_dump())
    question = Question(**values)
    await guard(request, "gate", question.project)
    try:
        answer = await gate(request).judge(question)
    except UnknownPolicy as error:
        raise BadRequest(f"policy: {error}") from None
    gate(request).understand(fingerprint(request, await request.body()), question)
    return Response(answer.body, media_type="application/json")


@router.get("/verdicts/{verdict_id}", responses=refusals(401, 403, 404, 503), response_model=dict[str, Any])
async def find(verdict_id: Annotated[str, Path(max_length=100)], request: Request) -> Response:
    """The verdict as it was given."""
    found = await gate(request).find(verdict_id)
    await may_read(request.app.state.guard, request, None if found is None else found.project)
    if found is None:
        raise NotFound(
            "no verdict has this id; every answer of the gate ends with one, and `lossguard gate audit` lists them"
        )
    return Response(found.body, media_type="application/json")


@router.get("/policies", dependencies=[Depends(require("read"))], responses=refusals(401, 403, 503))
async def list_policies(request: Request) -> dict[str, list[dict[str, Any]]]:
    """Every version of every policy."""
    return {"policies": [_policy(policy) for policy in await gate(request).policies()]}


@router.get("/policies/{name}", dependencies=[Depends(require("read"))], responses=refusals(401, 403, 404, 503))
async def find_policy(name: Annotated[str, Path(max_length=200)], request: Request) -> dict[str, Any]:
    """The newest version of a policy."""
    try:
        return _policy(await gate(request).policy(name))
    except UnknownPolicy as error:
        raise NotFound(str(error)) from None


def gate(request: Request) -> Gate:
    """The app's gate."""
    found: Gate = request.app.state.gate
    return found


async def guard(request: Request, scope: Scope, project: str | None) -> None:
    """Let the request pass or refuse it; for routes whose project stands in the body."""
    found: Guard = request.app.state.guard
    await found.check(request, scope, project)


def _scan(body: ScanBody) -> Scan:
    norms = {name: Norm(one.norm, one.values, one.bits) for name, one in body.norms.items()}
    return Scan(**{**body.model_dump(exclude={"norms"}), "norms": norms})


def _policy(policy: Policy) -> dict[str, Any]:
    return dict(to_json(policy.to_json()))
