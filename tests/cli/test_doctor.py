"""`lossguard doctor` against a real service, a service that wants a token, one that is away, and broken journals."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from lossguard.cli.doctor import Finding, of_journal, of_service
from lossguard.cli.main import app

sys.path.append(str(Path(__file__).resolve().parents[1] / "web"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from pages_service import serve

    for running in serve(tmp_path_factory.mktemp("doctor")):
        yield running.url


def ask(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["doctor", *arguments, "--format", "json"], env={"LOSSGUARD_SERVICE": ""})
    assert result.stdout, result.output
    found = json.loads(result.stdout)["findings"]
    return result.exit_code, {one["name"]: one for one in found}


def test_where_all_is_well_it_says_so(service: str, tmp_path: Path) -> None:
    code, found = ask("--service", service, "--journal", str(tmp_path))
    assert code == 0
    assert {name for name, one in found.items() if one["state"] == "ok"} >= {
        "python", "lossguard", "service", "clock", "database", "token", "journal"
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_service_that_is_away_is_exit_code_4_with_what_to_do() -> None:
    code, found = ask("--service", "http://127.0.0.1:9")
    assert code == 4
    assert "lossguard serve" in found["service"]["advice"]


def test_a_wrong_url_is_wrong_use() -> None:
    result = CliRunner().invoke(app, ["doctor", "--service", "localhost:8080"])
    assert result.exit_code == 2
    assert "http://" in result.output


def test_another_program_on_the_port_is_recognized(service: str) -> None:
    (finding,) = of_service(f"{service}/v1", None, None, lambda: 0.0)
    assert finding.state == "error"
    assert "is not Lossguard" in finding.seen


def test_a_clock_that_is_wrong_is_told_by_how_much(service: str) -> None:
    now = httpx.get(f"{service}/healthz", timeout=60).headers["date"]
    from email.utils import parsedate_to_datetime

    true = parsedate_to_datetime(now).timestamp()
    (finding,) = (one for one in of_service(service, None, None, lambda: true + 3600) if one.name == "clock")
    assert finding.state == "warning"
    assert "s ahead of" in finding.seen


def test_a_service_that_wants_a_token_gets_none_or_a_wrong_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pages_service import serve

    monkeypatch.setenv("LOSSGUARD_ADMIN_TOKEN", "f" * 64)
    for running in serve(tmp_path):
        for token, seen in ((None, "wants one"), ("wrong", "unknown"), ("f" * 64, "may read")):
            (finding,) = (one for one in of_service(running.url, token, None, lambda: 0.0) if one.name == "token")
            assert seen in finding.seen


def test_a_journal_that_is_not_there_and_one_with_refused_chunks(tmp_path: Path) -> None:
    assert next(of_journal(tmp_path / "nowhere")) == Finding(
        "journal",
        "error",
        f"there is no folder {tmp_path / 'nowhere'}",
        "create it, or name the trainer's with --journal",
    )
    refused = tmp_path / "project" / "run" / "rejected"
    refused.mkdir(parents=True)
    (refused / "chunk").write_bytes(b"x")
    assert [one.state for one in of_journal(tmp_path) if one.name == "refused chunks"] == ["error"]
