"""Tells webhooks of incidents, for those without Alertmanager: JSON or Slack's form, signed, tried until it arrives.

Guarantees. Ingest never waits: it writes to the outbox, and this sends what lies there. Each incident's state goes to
each address once, whichever replica sends it; only a replica that dies between sending and noting it makes a second
notice, with the same id. A receiver that is down hears of everything when it is back, for `KEEP_SECONDS`; one that
refuses (a redirect, or a 4xx that waiting does not mend) is not asked again.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx

from lossguard.trace.batches import Batch, sentence
from lossguard.wire.incident import Incident
from lossguard_service.incidents.batches import as_json, read_batches
from lossguard_service.settings import Settings
from lossguard_service.store import outbox
from lossguard_service.store.database import Database
from lossguard_service.store.outbox import Notice
from lossguard_service.store.series import columns

log = logging.getLogger(__name__)
ANSWER_SECONDS: Final = 10.0
"""A receiver that has not answered by then has failed."""
CLAIM_SECONDS: Final = 60.0
"""So long a notice belongs to the replica that sends it; well beyond an answer, so that no second one sends it too."""
KEEP_SECONDS: Final = 86_400.0
"""A notice that could not be sent for so long is given up: who reads it then has long heard."""
FIRST_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 300.0
_PASSING: Final = (408, 425, 429)


@dataclass(frozen=True, slots=True)
class Destination:
    """An address.

    Attributes:
        url: where to; may hold a secret, so it is neither logged nor stored.
        is_slack: True for Slack's form, False for the whole document.
    """

    url: str
    is_slack: bool

    @property
    def key(self) -> str:
        """What the database and the log call it: host and a digest, the same on every replica."""
        digest = hashlib.sha256(f"{self.is_slack} {self.url}".encode()).hexdigest()
        return f"{urlsplit(self.url).hostname}-{digest[:16]}"


def destinations(settings: Settings) -> list[Destination]:
    """The addresses that the settings name."""
    forms = ((settings.webhook_urls, False), (settings.slack_webhook_urls, True))
    return [
        Destination(url, is_slack)
        for urls, is_slack in forms
        if urls is not None
        for url in dict.fromkeys(urls.get_secret_value().split())
    ]


class Webhooks:
    """Sends what lies in the outbox; one per replica."""

    def __init__(
        self,
        database: Database,
        destinations: Sequence[Destination],
        clock: Callable[[], float],
        *,
        secret: str | None = None,
        public_url: str | None = None,
        answer_seconds: float = ANSWER_SECONDS,
        uniform: Callable[[float, float], float] = random.uniform,
        heard: Callable[[str, str], None] = lambda destination, outcome: None,
    ) -> None:
        self._database = database
        self._destinations = destinations
        self._clock = clock
        self._secret = secret
        self._public_url = public_url
        self._answer_seconds = answer_seconds
        self._uniform = uniform
        self._heard = heard
        self._failures = dict.fromkeys(destinations, 0)
        self._paused_until = dict.fromkeys(destinations, 0.0)

    async def deliver(self) -> int:
        """Send all that is due; returns how much arrived. A slow address holds up no other."""
        if not self._destinations:
            return 0
        async with httpx.AsyncClient(follow_redirects=False, timeout=self._answer_seconds) as client:
            return sum(await asyncio.gather(*(self._deliver(client, one) for one in self._destinations)))

    async def _deliver(self, client: httpx.AsyncClient, destination: Destination) -> int:
        arrived = 0
        while self._clock() >= self._paused_until[destination]:
            notice = await outbox.claim(self._database, destination.key, now=self._clock(), claim_seconds=CLAIM_SECONDS)
            if notice is None:
                break
            arrived += await self._send(client, destination, notice)
        return arrived

    async def _send(self, client: httpx.AsyncClient, destination: Destination, notice: Notice) -> bool:
        """Send one notice and note what came of it; True if it arrived."""
        body = render(notice, destination, self._public_url, await self._batches(notice))
        headers = headers_of(notice, body, self._secret, self._clock())
        asked: float | None = None
        try:
            # httpx counts each read anew, so a receiver that trickles would hold us for ever.
            async with asyncio.timeout(self._answer_seconds):
                answer = await client.post(destination.url, content=body, headers=headers)
            trouble = None if answer.is_success else f"answered {answer.status_code}"
            is_final = 300 <= answer.status_code < 500 and answer.status_code not in _PASSING
            asked = _seconds(answer.headers.get("retry-after"))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            trouble, is_final = f"did not answer ({type(error).__name__})", isinstance(error, httpx.InvalidURL)
        now = self._clock()
        if trouble is None:
            self._heard(destination.key, "sent")
            self._failures[destination] = 0
            await outbox.settle(self._database, notice, "sent", now=now)
            return True
        if is_final or now - notice.created > KEEP_SECONDS:
            self._heard(destination.key, "given_up")
            log.error("webhook %s %s: notice %d is given up", destination.key, trouble, notice.id)
            await outbox.settle(self._database, notice, f"given up: {trouble}", now=now)
            return False
        self._heard(destination.key, "failed")
        longest = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(self._failures[destination], 30))
        wait = self._uniform(longest / 2, longest) + min(asked or 0.0, LONGEST_SECONDS)
        self._failures[destination] += 1
        self._paused_until[destination] = now + wait
        log.warning("webhook %s %s: notice %d in %.0f s again", destination.key, trouble, notice.id, wait)
        await outbox.postpone(self._database, notice, trouble, until=now + wait)
        return False

    async def _batches(self, notice: Notice) -> tuple[Batch, ...]:
        """The batches at the incident's beginning, as they are known now."""
        told = notice.document["incident"]
        if told["superseded"]:
            # What is stored at its steps is another attempt's.
            return ()
        try:
            names = await columns(self._database, notice.run_id)
            return await read_batches(self._database, notice.run_id, names, Incident.from_json(told))
        except Exception:
            # Whatever is wrong with what is stored, people must hear of the incident.
            log.exception("the batches of notice %d cannot be read; it is sent without them", notice.id)
            return ()


def render(notice: Notice, destination: Destination, public_url: str | None, batches: Sequence[Batch] = ()) -> bytes:
    """The body that an address gets: the document with its links and batches, or Slack's `text`."""
    document = {"version": 1, "id": notice.id, "created": notice.created, **notice.document}
    document["batches"] = as_json(batches)
    if public_url is not None:
        project, run = quote(document["project"], safe=""), quote(document["run"], safe="")
        place = f"{public_url.rstrip('/')}/runs/{project}/{run}"
        document["url"] = f"{place}/incidents/{document['incident']['sequence']}"
    shown = {"text": _slack(document, sentence(batches))} if destination.is_slack else document
    return json.dumps(shown, allow_nan=False).encode()


def headers_of(notice: Notice, body: bytes, secret: str | None, now: float) -> Mapping[str, str]:
    """The headers: the notice's id and, with a secret, when it was signed and the signature."""
    headers = {
        "content-type": "application/json",
        "user-agent": "lossguard-webhook",
        "lossguard-notice": str(notice.id),
    }
    if secret is not None:
        timestamp = str(int(now))
        headers |= {"lossguard-timestamp": timestamp, "lossguard-signature": signature(secret, timestamp, body)}
    return headers


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """`v1=` and HMAC-SHA256 in hex over timestamp, a dot and the body: who replays it later shows an old timestamp.

    >>> signature("secret", "1700000000", b"{}")[:14]
    'v1=b8569b78799'
    """
    return "v1=" + hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def _slack(document: Mapping[str, Any], batches: str) -> str:
    incident = document["incident"]
    mark = {"open": ":warning:", "full": ":rotating_light:", "resolved": ":white_check_mark:"}[document["state"]]
    kind = incident["kind"].replace("_", " ")
    told = {
        "open": f"{kind} since step {incident['onset_step']}",
        "full": f"{kind} since step {incident['onset_step']}",
        "resolved": f"{kind} of step {incident['onset_step']} is over"
        + (": a new attempt took the run back to before it" if incident["superseded"] else ""),
    }[document["state"]]
    lines = [f"{mark} *{_escape(document['project'])}/{_escape(document['run'])}*: {told}"]
    if document["state"] != "resolved":
        where = [f"task {task}" for task in incident["tasks"][:1]]
        where += [f"layer {incident['first_layer']} moved first"] if incident["first_layer"] else []
        lines += [_escape(", ".join(where))] if where else []
        lines += [_escape(incident["explanation"]), _escape(incident["advice"])]
        lines += [f"Batches: {_escape(batches)}"] if batches else []
    if "url" in document:
        lines.append(f"<{document['url']}|What happened>")
    return "\n".join(line for line in lines if line)


def _escape(text: str) -> str:
    """As Slack asks; also keeps a run's name from calling a whole channel."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _seconds(value: str | None) -> float | None:
    """A Retry-After in seconds; the form with a date is passed over."""
    return float(value) if value is not None and value.isdecimal() else None
