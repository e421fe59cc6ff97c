"""Every refusal has one shape: RFC 9457 problem details with a sentence."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from chunk_trainer import FIRST, chunks, frames
from postgres import psql
from services import Clock, Service, run, service
from sqlalchemy.engine import make_url

from lossguard.wire.chunk import peek

RUN = "/v1/projects/video/runs/ranker"
CHUNK = f"{RUN}/attempts/{FIRST}/chunks/0"


def cases() -> list[tuple[str, str, dict[str, Any], int, str]]:
    good = chunks(frames(1, 32))[0]
    return [
        ("PUT", CHUNK, {"content": b""}, 422, "unreadable-chunk"),
        ("PUT", CHUNK, {"content": good[:-7]}, 422, "unreadable-chunk"),
        ("PUT", CHUNK, {"content": good[:50] + b"\x00" + good[51:]}, 422, "unreadable-chunk"),
        ("PUT", CHUNK, {"content": good[:3] + b"\x09" + good[4:]}, 503, "newer-version"),
        ("PUT", CHUNK.replace("chunks/0", "chunks/1"), {"content": good}, 422, "wrong-identity"),
        ("PUT", CHUNK.replace("ranker", "other"), {"content": good}, 422, "wrong-identity"),
        ("PUT", CHUNK.replace("ranker", ".hidden"), {"content": good}, 422, "bad-request"),
        ("PUT", CHUNK.replace(FIRST, "xyz"), {"content": good}, 422, "bad-request"),
        ("PUT", CHUNK.replace("chunks/0", "chunks/-1"), {"content": good}, 422, "bad-request"),
        ("PUT", CHUNK, {"content": b"x" * 2049}, 413, "too-large"),
        ("PUT", f"{RUN}/heartbeat", {"json": {"attempt": FIRST}}, 404, "not-found"),
        ("PUT", f"{RUN}/heartbeat", {"json": {"attempt": 7}}, 422, "bad-request"),
        ("PUT", f"{RUN}/heartbeat", {"content": b"{"}, 422, "bad-request"),
        ("GET", RUN, {}, 404, "not-found"),
        ("GET", f"{RUN}/incidents", {}, 404, "not-found"),
        ("GET", "/v1/projects/video/runs/known/incidents/1", {}, 404, "not-found"),
        ("GET", "/v1/projects/video/runs/known/incidents/0", {}, 422, "bad-request"),
        ("GET", f"{RUN}/series?name=loss", {}, 404, "not-found"),
        ("GET", "/v1/projects/video/runs/known/series", {}, 422, "bad-request"),
        ("GET", "/v1/projects/video/runs/known/series?name=loss&stat=x", {}, 422, "bad-request"),
        ("GET", "/v1/projects/video/runs/known/series?name=auc", {}, 404, "not-found"),
        ("GET", "/v1/projects/video/runs/known/series?layer=embedding&stat=nope", {}, 404, "not-found"),
        ("GET", "/v1/projects/video/runs/known/series?layer=nope&stat=gradient_norm", {}, 404, "not-found"),
        ("GET", "/v1/projects/video/runs/known/series?name=loss&points=0", {}, 422, "bad-request"),
        ("GET", "/v1/projects/video/runs/known/heatmap?stat=nope", {}, 404, "not-found"),
        ("GET", "/v1/projects/video/runs/known/steps/999", {}, 404, "not-found"),
        ("GET", "/v1/runs?limit=0", {}, 422, "bad-request"),
        ("GET", "/v1/runs?status=great", {}, 422, "bad-request"),
        ("GET", "/v1/nothing", {}, 404, "not-found"),
        ("DELETE", RUN, {}, 405, "method-not-allowed"),
    ]


async def _with_a_run(one: Service) -> None:
    for chunk in chunks(frames(1, 4), run="known"):
        assert (await one.put(chunk)).status_code == 200


def test_every_refusal_is_a_problem_document_with_a_sentence(sqlite_url: str) -> None:
    async def story() -> None:
        async with service(sqlite_url, Clock(), max_chunk_bytes=2048) as one:
            await _with_a_run(one)
            for method, path, options, status, kind in cases():
                answer = await one.client.request(method, path, **options)
                where = f"{method} {path}: {answer.text}"
                assert answer.status_code == status, where
                assert answer.headers["content-type"] == "application/problem+json", where
                document = answer.json()
                assert document["type"] == f"urn:lossguard:problem:{kind}", where
                assert document["status"] == status, where
                assert len(document["detail"]) > 10, where

    run(story())


def test_a_body_without_a_length_is_cut_off_at_the_limit(sqlite_url: str) -> None:
    sent = 0

    async def story() -> httpx.Response:
        async def endless() -> Any:
            nonlocal sent
            while True:
                sent += 1024
                yield b"x" * 1024

        async with service(sqlite_url, Clock(), max_chunk_bytes=4096) as one:
            return await one.client.put(CHUNK, content=endless())

    answer = run(story())
    assert answer.status_code == 413
    assert sent <= 8192


def test_a_service_with_too_much_in_work_says_when_to_come_back(sqlite_url: str) -> None:
    async def story() -> None:
        async with service(sqlite_url, Clock(), max_pending_chunks=1) as one:
            one.app.state.ingest._pending = 1
            answer = await one.put(chunks(frames(1, 4))[0])
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            one.app.state.ingest._pending = 0
            assert (await one.put(chunks(frames(1, 4))[0])).status_code == 200

    run(story())


def test_a_lost_database_is_503_and_the_chunk_can_be_sent_again(postgres_url: str) -> None:
    chunk = chunks(frames(1, 4))[0]

    async def story() -> None:
        async with service(postgres_url, Clock()) as one:
            url = make_url(postgres_url)
            await asyncio.to_thread(psql, url, "ALTER TABLE chunk_bytes RENAME TO away")
            answer = await one.put(chunk)
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:lossguard:problem:busy")
            assert answer.headers["retry-after"]
            await asyncio.to_thread(psql, url, "ALTER TABLE away RENAME TO chunk_bytes")
            answer = await one.put(chunk)
            assert answer.status_code == 200
            assert answer.json()["duplicate"] is False

    run(story())


def test_a_bug_is_a_500_without_its_inside(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("a secret thing")

    monkeypatch.setattr("lossguard_service.store.runs.list_runs", broken)

    async def story() -> None:
        async with service(sqlite_url, Clock()) as one:
            answer = await one.client.get("/v1/runs")
            assert answer.status_code == 500
            assert json.loads(answer.text)["type"] == "urn:lossguard:problem:internal"
            assert "secret" not in answer.text

    run(story())


def test_names_with_odd_letters_come_back_as_they_went(sqlite_url: str) -> None:
    name = "Rängler v2, lr=0.1 #7?"

    async def story() -> None:
        async with service(sqlite_url, Clock()) as one:
            data = chunks(frames(1, 4), run=name)[0]
            identity = peek(data)
            from urllib.parse import quote

            path = f"/v1/projects/video/runs/{quote(name, safe='')}"
            answer = await one.client.put(f"{path}/attempts/{identity.attempt}/chunks/0", content=data)
            assert answer.status_code == 200, answer.text
            assert (await one.get(path))["name"] == name

    run(story())
