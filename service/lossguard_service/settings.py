"""The service's one settings object: frozen, built once; arguments over environment (`LOSSGUARD_*`) over defaults.

The service starts with none of them set. `docs/service.md` holds the table of them, which a test compares.
"""

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What can be set; every field's description says its unit and meaning."""

    model_config = SettingsConfigDict(env_prefix="LOSSGUARD_", frozen=True, extra="ignore", hide_input_in_errors=True)

    database: str = Field(
        default="sqlite:///.lossguard/lossguard.db",
        description="Where everything is kept: `sqlite:///path` or `postgresql://user:password@host/name`.",
    )
    bytes_url: str | None = Field(
        default=None,
        description=(
            "Object storage for the bytes of chunks and segments: `s3://bucket/folder`, `gs://...`, "
            "`az://container/...` or `file:///folder`; unset keeps them in the database."
        ),
    )
    bytes_keep_hours: float = Field(
        default=24.0,
        ge=1,
        description=(
            "Objects that the database names no more are deleted after so many hours: a backup of the database that is "
            "younger finds all of its own."
        ),
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on; other than loopback only with tokens.")
    allowed_hosts: str | None = Field(
        default=None,
        description=(
            "Names, with spaces between, by which a service without tokens may be called besides loopback addresses "
            "and `localhost`: that of a proxy on this machine, say."
        ),
    )
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    address_file: Path | None = Field(
        default=None, description="File into which the URL is written once the service listens."
    )
    admin_token: SecretStr | None = Field(
        default=None, description="A token with every scope on every project; with it, every request needs a token."
    )
    connections: int = Field(
        default=8,
        ge=1,
        le=256,
        description="Connections to PostgreSQL per replica, as many again for chunks, two for repeated questions.",
    )
    max_chunk_bytes: int = Field(default=64 << 20, ge=1 << 10, description="Largest chunk that is accepted, in bytes.")
    token_chunks_per_second: float | None = Field(
        default=None,
        gt=0,
        description="Chunks a second that a replica takes from each token; beyond ten seconds of it the answer is 429.",
    )
    token_bytes_per_second: float | None = Field(
        default=None, gt=0, description="The same for the bytes of chunks; unset limits neither."
    )
    max_pending_chunks: int = Field(
        default=256,
        ge=1,
        description="Chunks in work at once per replica; beyond it the answer is 503 with Retry-After.",
    )
    detector_runs: int = Field(default=2000, ge=1, description="Runs whose detector state a replica keeps in memory.")
    stalled_seconds: float = Field(
        default=300.0,
        gt=0,
        description="A run without a new step for so many seconds, and without a goodbye, is stalled.",
    )
    sweep_seconds: float = Field(default=15.0, gt=0, description="How often silent runs are looked for, in seconds.")
    active_seconds: float = Field(
        default=86_400.0, gt=0, description="Runs that were not heard of for so many seconds leave `/metrics`."
    )
    compact_seconds: float = Field(
        default=60.0, gt=0, description="How often chunks are compacted into segments, in seconds."
    )
    full_days: float | None = Field(
        default=None,
        gt=0,
        description=(
            "Frames of runs that ended are kept for so many days, then only their minima, maxima and means, and what "
            "lies within 500 steps of an incident; unset keeps everything."
        ),
    )
    project_full_days: str | None = Field(
        default=None,
        description="`full_days` of projects that have their own: `video=30 ads=7`, with spaces between.",
    )
    webhook_urls: SecretStr | None = Field(
        default=None, description="Where incidents are sent to as JSON; several with spaces between; see Webhooks."
    )
    slack_webhook_urls: SecretStr | None = Field(
        default=None, description="Where incidents are sent to in the form of Slack's incoming webhooks."
    )
    webhook_secret: SecretStr | None = Field(
        default=None, description="Webhooks are signed with it: HMAC-SHA256 with a timestamp."
    )
    webhook_seconds: float = Field(
        default=2.0, gt=0, description="How often the outbox of webhooks is looked into, in seconds."
    )
    public_url: str | None = Field(
        default=None, description="Where people reach this service, for the links in webhooks."
    )
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$", description="What is logged.")

    @field_validator("webhook_urls", "slack_webhook_urls")
    @classmethod
    def _are_urls(cls, value: SecretStr | None) -> SecretStr | None:
        for url in value.get_secret_value().split() if value else ():
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                # The address itself may be a secret, so the sentence does not repeat it.
                raise ValueError("write addresses that begin with https:// or http://, with spaces between them")
        return value

    @field_validator("project_full_days")
    @classmethod
    def _are_days(cls, value: str | None) -> str | None:
        _days(value)
        return value

    def days_of_projects(self) -> dict[str, float]:
        """`project_full_days`, parsed."""
        return _days(self.project_full_days)


def _days(text: str | None) -> dict[str, float]:
    found = {}
    for one in (text or "").split():
        project, _, days = one.rpartition("=")
        try:
            found[project] = float(days)
        except ValueError:
            found[project] = 0.0
        if not project or not 0 < found[project] < float("inf"):
            raise ValueError(f"write each as project=days, days above 0, with spaces between; got {one!r}")
    return found


def is_loopback(host: str) -> bool:
    """True if only this machine can reach a socket bound to `host`.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
