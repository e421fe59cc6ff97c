"""Asks the service for a verdict.

Guarantees. A verdict comes back only if the service gave it about exactly what was asked: this project, run, step,
digest and policy. No answer, a late one, a redirect, a half one or one about something else is an error, never a pass.
Every wait is bounded.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx

from lossguard.gate.canary import run_canary
from lossguard.gate.digest import digest_of, list_files
from lossguard.gate.errors import ArtifactChanged, GateRefused, GateUnreachable
from lossguard.gate.scan import scan_artifact
from lossguard.wire.numbers import to_json
from lossguard.wire.verdict import Verdict

TIMEOUT: Final = httpx.Timeout(30.0, connect=5.0)
_TRIES: Final = 3
_PAUSE_SECONDS: Final = 0.5
_MAX_ANSWER_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Question:
    """What the service is asked.

    Attributes:
        project, run, step: whose export it is, and the last step trained into it.
        artifact_digest: of `lossguard.gate.digest`.
        policy: by what to judge.
        metrics: from held-out data, by name (`auc/click`).
        attempt: the 32 hex digits of the attempt that exported, where known.
        scan: what `lossguard.gate.scan` found in the artifact, as JSON.
        canary: what the exported model answered on canary rows, as JSON.
    """

    project: str
    run: str
    step: int
    artifact_digest: str
    policy: str = "default"
    metrics: Mapping[str, float] = field(default_factory=dict)
    attempt: str | None = None
    scan: Mapping[str, Any] | None = None
    canary: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The request's body."""
        body = {
            "project": self.project, "run": self.run, "step": self.step, "artifact_digest": self.artifact_digest,
            "policy": self.policy, "metrics": dict(self.metrics),
        }  # fmt: skip
        for name in ("attempt", "scan", "canary"):
            if getattr(self, name) is not None:
                body[name] = getattr(self, name)
        return dict(to_json(body))


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict as it came.

    Attributes:
        verdict: what the service said.
        document: the whole JSON of it, signature included: what is written beside the model.
    """

    verdict: Verdict
    document: dict[str, Any]


def check(
    service: str,
    project: str,
    run: str,
    step: int,
    artifact: str | Path,
    *,
    policy: str = "default",
    metrics: Mapping[str, float] | None = None,
    attempt: str | None = None,
    token: str | None = None,
) -> Verdict:
    """The service's verdict about one export, which lies at the path `artifact`.

    Raises:
        NotAModel, ArtifactUnreadable, ArtifactChanged: see `lossguard.gate.errors`.
        GateUnreachable: there was no usable answer; treat the export as blocked.
        GateRefused: the question is wrong (unknown policy, no right to ask).
    """
    question = question_about(artifact, project, run, step, policy=policy, metrics=metrics, attempt=attempt)
    with open_client(service, token=token) as client:
        return ask(client, question).verdict


def question_about(
    artifact: str | Path,
    project: str,
    run: str,
    step: int,
    *,
    policy: str = "default",
    metrics: Mapping[str, float] | None = None,
    attempt: str | None = None,
    canary_rows: str | Path | None = None,
) -> Question:
    """The question about an export, with its digest, what a scan finds in its tensors, and what a canary answers.

    Raises:
        NotAModel, ArtifactUnreadable, ArtifactChanged: see `lossguard.gate.errors`.
    """
    files = list_files(Path(artifact)) if Path(artifact).exists() else []
    scan = scan_artifact(artifact)
    canary = None if canary_rows is None else run_canary(artifact, canary_rows)
    digest = digest_of(files)
    # What was scanned must be what was hashed.
    if list_files(Path(artifact)) != files:
        raise ArtifactChanged(f"{artifact} changed while it was read: wait until the export is done, then ask again")
    return Question(project, run, step, digest, policy, dict(metrics or {}), attempt, scan.to_json(), canary)


def open_client(
    service: str, *, token: str | None = None, transport: httpx.BaseTransport | None = None
) -> httpx.Client:
    """A client of the service at a URL; close it after use. Without `token` it sends `LOSSGUARD_TOKEN`, if that is set.

    Raises:
        GateRefused: the URL is not one.
    """
    url = service.strip().rstrip("/")
    if not url.startswith(("http://", "https://")) or not httpx.URL(url).host:
        raise GateRefused(f"--service: {service!r} is not a URL; write for example http://127.0.0.1:8080")
    headers = {"accept": "application/json"}
    token = token or os.environ.get("LOSSGUARD_TOKEN")
    if token:
        headers["authorization"] = f"Bearer {token}"
    return httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT, follow_redirects=False, transport=transport)


def ask(client: httpx.Client, question: Question, *, sleep: Callable[[float], None] = time.sleep) -> Answer:
    """Ask once, with a few tries where the network fails.

    Raises:
        GateUnreachable, GateRefused: see `check`.
    """
    document = call(client, "POST", "/v1/verdicts", json=question.to_json(), sleep=sleep)
    answer = read_answer(document)
    verdict = answer.verdict
    asked = (question.project, question.run, question.step, question.artifact_digest, question.policy)
    if (verdict.project, verdict.run, verdict.step, verdict.artifact_digest, verdict.policy) != asked:
        raise GateUnreachable(
            f"the service answered about {verdict.project}/{verdict.run} step {verdict.step}, which is not what was "
            "asked: look for a proxy or cache between here and the service"
        )
    return answer


def wait(
    client: httpx.Client,
    question: Question,
    seconds: float,
    *,
    pause_seconds: float = 5.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    said: Callable[[Answer], None] | None = None,
) -> Answer:
    """Ask until the answer is no longer `insufficient_data`, or the time is up; then the last answer stands.

    Args:
        client, question: as in `ask`.
        seconds: how long at most.
        pause_seconds: between two questions.
        clock, sleep: so that tests need neither.
        said: is told every answer but the last.

    Raises:
        GateUnreachable: the service did not answer to the end.
        GateRefused: the question is wrong.
    """
    end = clock() + seconds
    while True:
        answer: Answer | None = None
        failure: GateUnreachable | None = None
        try:
            answer = ask(client, question, sleep=sleep)
        except GateUnreachable as error:
            failure = error
        if answer is not None and answer.verdict.outcome != "insufficient_data":
            return answer
        if clock() + pause_seconds > end:
            if failure is not None:
                raise failure
            assert answer is not None
            return answer
        if answer is not None and said is not None:
            said(answer)
        sleep(pause_seconds)


def find(client: httpx.Client, verdict_id: str) -> Answer:
    """The verdict of that id.

    Raises:
        GateUnreachable, GateRefused: see `check`.
    """
    if len(verdict_id) != 32 or not set(verdict_id) <= set("0123456789abcdef"):
        raise GateRefused(
            f"{verdict_id!r} is neither a published model's folder nor a verdict's id: that has 32 hex digits, and "
            "every answer of the gate ends with it"
        )
    answer = read_answer(call(client, "GET", f"/v1/verdicts/{verdict_id}"))
    if answer.verdict.id != verdict_id:
        raise GateUnreachable(f"the service answered with verdict {answer.verdict.id}, which is not what was asked")
    return answer


def entries(client: httpx.Client, project: str | None = None) -> Iterator[dict[str, Any]]:
    """The audit log from its beginning, of one project or of all.

    Raises:
        GateUnreachable, GateRefused: see `check`.
    """
    after = 0
    while True:
        where = f"/v1/audit?after={after}" + (f"&project={quote(project, safe='')}" if project else "")
        document = call(client, "GET", where)
        found = document.get("entries") if isinstance(document, dict) else None
        if not isinstance(found, list):
            raise GateUnreachable("the service's answer is no audit log: is this address a Lossguard service?")
        if not found:
            return
        yield from found
        after = found[-1]["sequence"]


def read_answer(document: Any) -> Answer:
    """The verdict in a JSON document.

    Raises:
        GateUnreachable: it is not one.
    """
    if not isinstance(document, dict):
        raise GateUnreachable("the service's answer is not a verdict: is this address a Lossguard service?")
    try:
        return Answer(Verdict.from_json(document), document)
    except (ValueError, TypeError) as error:
        raise GateUnreachable(f"the service's answer is not a verdict: {error}") from None


def call(
    client: httpx.Client,
    method: str,
    path: str,
    *,
    json: Any = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Any:
    """One request; its JSON answer.

    Raises:
        GateUnreachable, GateRefused: see `check`.
    """
    failure = ""
    for attempt in range(_TRIES):
        if attempt:
            sleep(_PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            response = client.request(method, path, json=json)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            failure = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            continue
        if response.status_code in (429, 500, 502, 503, 504):
            failure = f"it answered {response.status_code} {_detail(response)}"
            continue
        return _read(response)
    raise GateUnreachable(
        f"the service at {client.base_url} gave no answer ({failure}). Without a verdict nothing is published; start "
        "the service or correct --service, and ask again."
    )


def _read(response: httpx.Response) -> Any:
    if 400 <= response.status_code < 500:
        said = f"the service refused ({response.status_code}): {_detail(response)}"
        if response.status_code == 401:
            said += ". Pass one with --token, or set LOSSGUARD_TOKEN"
        elif response.status_code == 404 and "there is nothing at" in said:
            said += ". Correct --service: the address ends where /v1 begins"
        raise GateRefused(said, response.status_code)
    if not response.is_success or len(response.content) > _MAX_ANSWER_BYTES:
        raise GateUnreachable(
            f"the service at {response.url} answered {response.status_code}, which is no verdict: correct --service"
        )
    try:
        return response.json()
    except ValueError:
        raise GateUnreachable(
            f"the answer of {response.url} is not JSON: is this address a Lossguard service?"
        ) from None


def _detail(response: httpx.Response) -> str:
    try:
        document = response.json()
    except ValueError:
        return response.text[:200].strip()
    if isinstance(document, dict):
        return str(document.get("detail") or document.get("title") or "")[:1000]
    return str(document)[:200]
