"""The sidecar's HTTP client: one chunk or heartbeat in, one named outcome out.

Guarantees. Never raises for what a network or a server does. Only a 200 with a chunk reply in it counts as
acknowledged: a proxy's or a captive portal's friendly page does not.

    Outcome
    ├── Accepted    the service has it
    ├── Refused     it will never take this chunk: set it aside
    └── Failed      try again later
"""

import email.utils
import functools
import http.client
import json
import re
import ssl
import time
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

from lossguard import __version__
from lossguard.sidecar.connections import Connections
from lossguard.sidecar.exchange import Answer
from lossguard.wire.chunk import ChunkId
from lossguard.wire.replies import ChunkReply

CONTENT_TYPE: Final = "application/vnd.lossguard.chunk"
RETRIED: Final = frozenset({401, 403, 404, 405, 407, 408, 421, 425, 429})
"""4xx that say nothing about the chunk. 404 and 405 come from a wrong URL: the service never answers a chunk so."""
_REASON_LENGTH: Final = 500
_UNKNOWN_AUTHORITY: Final = (
    "name the PEM file of its authority (--ca, or SSL_CERT_FILE), or correct the service's certificate"
)
_OTHER_NAME: Final = "call the service by a name that its certificate holds, or correct the certificate"
_UNTRUSTED: Final = {
    9: "set this machine's clock, or correct the service's certificate",
    10: "renew the service's certificate, or set this machine's clock",
    62: _OTHER_NAME,
    64: _OTHER_NAME,
}
"""What to do, by OpenSSL's X509_V_ERR_: not yet valid, expired, name mismatch, address mismatch."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The service has the chunk."""

    reply: ChunkReply


@dataclass(frozen=True, slots=True)
class Refused:
    """The service will never take this chunk; `reason` is its sentence."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Not now.

    Attributes:
        reason: a sentence for the log.
        retry_after_seconds: what the service asked for.
        status: the HTTP status; None if there was no answer.
    """

    reason: str
    retry_after_seconds: float | None = None
    status: int | None = None


Outcome = Accepted | Refused | Failed


def check_service(service: str) -> str:
    """The service's URL without a slash at its end.

    Raises:
        ValueError: it is no http(s) URL.

    >>> check_service("http://127.0.0.1:8080/")
    'http://127.0.0.1:8080'
    """
    try:
        parts = urlsplit(service)
        _ = parts.port, (parts.hostname or "").encode("idna")
    except ValueError as error:
        raise ValueError(f"service: must be a URL such as http://127.0.0.1:8080, got {service!r}: {error}") from None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not re.fullmatch(r"[^\s\x00-\x1f]+", parts.netloc)
    ):
        raise ValueError(f"service: must be a URL such as http://127.0.0.1:8080, got {service!r}")
    if "@" in parts.netloc:
        raise ValueError("service: must have no user and password in it: give a token")
    if parts.query or parts.fragment:
        raise ValueError(f"service: must have no ? or # in it, got {service!r}")
    if not re.fullmatch("[!-~]*", parts.path):
        raise ValueError(f"service: its path must be ASCII without spaces, quoted where it must be, got {service!r}")
    return service.rstrip("/")


class Client:
    """Talks to one service; safe from several threads.

    Args:
        service: its URL.
        token: bearer token.
        ca_file: PEM file of the authorities to trust in place of the system's.

    Raises:
        ValueError: an argument is wrong; the message names it.
    """

    def __init__(self, service: str, *, token: str | None = None, ca_file: str | None = None) -> None:
        self.service = check_service(service)
        headers = {"user-agent": f"lossguard-sidecar/{__version__}"}
        if token is not None:
            if not token.isascii() or not token.isprintable() or not token:
                raise ValueError("token: must be printable ASCII")
            headers["authorization"] = f"Bearer {token}"
        self._connections = Connections(self.service, headers, _trust(self.service, ca_file))

    def put_chunk(self, identity: ChunkId, data: bytes) -> Outcome:
        """Send a chunk."""
        path = f"{_run_path(identity.project, identity.run)}/attempts/{identity.attempt}/chunks/{identity.index}"
        try:
            answer = self._connections.put(path, data, CONTENT_TYPE)
        except ssl.SSLCertVerificationError as error:
            advice = _UNTRUSTED.get(error.verify_code, _UNKNOWN_AUTHORITY)
            return Failed(f"{self.service} is not trusted: {error.verify_message.rstrip('.')}: {advice}")
        except OSError as error:
            return Failed(
                f"{self.service} does not answer: {error or type(error).__name__}{_other_scheme(self.service, error)}"
            )
        if answer.status == 200:
            return _accepted(answer)
        reason = f"{answer.status} {_detail(answer)}"
        if 400 <= answer.status < 500 and answer.status not in RETRIED:
            return Refused(reason)
        return Failed(reason, _retry_after(answer, time.time()), answer.status)

    def put_heartbeat(self, project: str, run: str, document: dict[str, object]) -> bool:
        """Say that a run's trainer lives; a lost heartbeat is followed by the next one."""
        try:
            answer = self._connections.put(
                f"{_run_path(project, run)}/heartbeat", json.dumps(document).encode(), "application/json"
            )
        except OSError:
            return False
        return 200 <= answer.status < 300

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()


def _other_scheme(service: str, error: OSError) -> str:
    """What to try where the URL's scheme may be the wrong one."""
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return " (it speaks no TLS there: should the URL begin with http://?)"
    if service.startswith("http:") and isinstance(error.__cause__, http.client.RemoteDisconnected):
        return " (if that stays so: should the URL begin with https://?)"
    return ""


@functools.lru_cache(maxsize=256)
def _run_path(project: str, run: str) -> str:
    return f"/v1/projects/{quote(project, safe='')}/runs/{quote(run, safe='')}"


def _trust(service: str, ca_file: str | None) -> ssl.SSLContext | None:
    if ca_file is not None:
        try:
            return ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"ca: cannot read certificates from {ca_file}: {error}") from None
    if not service.startswith("https:"):
        return None
    from httpx import create_ssl_context  # the authorities that the rest of Lossguard trusts

    return create_ssl_context()


def _accepted(answer: Answer) -> Outcome:
    try:
        return Accepted(ChunkReply.from_json(json.loads(answer.content)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return Failed(
            f"the answer 200 holds no chunk reply ({error}): is this the URL of a Lossguard service?", None, 200
        )


def _detail(answer: Answer) -> str:
    try:
        problem = json.loads(answer.content)
        text = problem.get("detail") or problem.get("title")
        if isinstance(text, str):
            return text[:_REASON_LENGTH]
    except (ValueError, AttributeError, RecursionError):
        pass
    if answer.status in (404, 405):
        return "from something that is not a Lossguard service: check the URL"
    return answer.reason[:_REASON_LENGTH]


def _retry_after(answer: Answer, now: float) -> float | None:
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None
