"""A service without tokens answers this machine's programs, and no web page but its own."""

import json
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from services import Clock, Uvicorn, run, service

from lossguard_service.settings import Settings

Answer = tuple[int, dict[str, object]]


def ask(url: str, method: str, path: str, headers: Mapping[str, str]) -> Answer:
    """A request with these headers and no others of a browser's."""
    place = urlsplit(url)
    connection = HTTPConnection(str(place.hostname), place.port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": place.netloc, **headers}.items():
            connection.putheader(name, value)
        body = b'{"name": "mine", "scopes": ["admin"]}' if method == "POST" else b""
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        text = answer.read()
        is_json = "json" in (answer.getheader("content-type") or "")
        return answer.status, json.loads(text) if is_json else {}
    finally:
        connection.close()


@pytest.fixture
def open_service(tmp_path: Path) -> Settings:
    return Settings(
        database=f"sqlite:///{tmp_path}/l.db", port=0, allowed_hosts="Lossguard.corp other", log_level="error"
    )


def test_an_open_service_answers_to_names_of_its_machine_only(open_service: Settings) -> None:
    with Uvicorn(open_service) as server:
        ours = ["localhost", "LOCALHOST:8080", "localhost.", "a.localhost:1", "127.0.0.1:9", "127.8.8.8", "[::1]:8080"]
        for host in [*ours, "lossguard.corp", "lossguard.corp:443", "OTHER"]:
            assert ask(server.url, "GET", "/v1/runs", {"Host": host})[0] == 200, host
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
        ]:
            for method, path in [("GET", "/v1/runs"), ("GET", "/"), ("POST", "/v1/tokens"), ("GET", "/metrics")]:
                status, document = ask(server.url, method, path, {"Host": host})
                assert (status, document["type"]) == (421, "urn:lossguard:problem:misdirected"), host
                assert host in str(document["detail"])
                assert "LOSSGUARD_ALLOWED_HOSTS" in str(document["detail"])


def test_pages_of_other_origins_change_nothing_in_an_open_service(open_service: Settings) -> None:
    """What browsers send without a preflight: a form or `fetch` with a body of plain text."""
    with Uvicorn(open_service) as server:
        plain = {"Content-Type": "text/plain"}
        for foreign in [
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "cross-site"},
        ]:
            status, document = ask(server.url, "POST", "/v1/tokens", plain | foreign)
            assert (status, document["type"]) == (403, "urn:lossguard:problem:cross-origin"), foreign
        assert ask(server.url, "GET", "/v1/tokens", {"Sec-Fetch-Site": "cross-site"})[1] == {"tokens": []}
        own = {"Content-Type": "application/json", "Origin": server.url, "Sec-Fetch-Site": "same-origin"}
        assert ask(server.url, "POST", "/v1/tokens", own)[0] == 201


def test_with_tokens_any_name_does_and_the_token_decides(tmp_path: Path) -> None:
    settings = Settings(database=f"sqlite:///{tmp_path}/l.db", port=0, admin_token="a", log_level="error")
    with Uvicorn(settings) as server:
        foreign = {"Host": "lossguard.example", "Origin": "https://a.example", "Content-Type": "application/json"}
        assert ask(server.url, "POST", "/v1/tokens", foreign)[0] == 401
        assert ask(server.url, "POST", "/v1/tokens", foreign | {"Authorization": "Bearer a"})[0] == 201


def test_a_service_that_others_reach_stays_shut_when_its_last_token_is_over(sqlite_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(sqlite_url, clock, host="0.0.0.0") as one:
            assert (await one.client.get("/v1/runs")).status_code == 401

    run(story())
