"""Tokens: scopes on projects, hashed at rest, revocable; without any, the service is open to this machine only."""

import sqlite3
from pathlib import Path

import pytest
from chunk_trainer import chunks, frames
from services import Clock, Service, run, service

from lossguard.wire.chunk import peek
from lossguard_service.auth import REMEMBER_SECONDS
from lossguard_service.store.tokens import Scope, create_token, revoke_token


async def put(one: Service, token: str | None, project: str = "video") -> int:
    data = chunks(frames(1, 4), project=project)[0]
    identity = peek(data)
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    path = f"/v1/projects/{project}/runs/ranker/attempts/{identity.attempt}/chunks/0"
    return (await one.client.put(path, content=data, headers=headers)).status_code


async def get(one: Service, token: str | None, path: str) -> int:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return (await one.client.get(path, headers=headers)).status_code


async def make(one: Service, clock: Clock, *scopes: Scope, project: str | None = "video") -> str:
    secret, _ = await create_token(
        one.app.state.database, name="test", scopes=scopes, project=project, now=clock(), actor="test", expires=None
    )
    return secret


def test_each_scope_opens_its_own_door_on_its_own_project(database_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(database_url, clock, admin_token="the-admin-token") as one:
            ingest, read = await make(one, clock, "ingest"), await make(one, clock, "read")
            everything = await make(one, clock, "admin", project=None)
            assert await put(one, None) == 401
            assert await put(one, "lg_wrong") == 401
            assert await put(one, read) == 403
            assert await put(one, ingest, project="search") == 403
            assert await put(one, ingest) == 200
            assert await put(one, everything, project="search") == 200
            assert await put(one, "the-admin-token") == 200
            run_path = "/v1/projects/video/runs/ranker"
            assert await get(one, ingest, run_path) == 403
            assert await get(one, read, run_path) == 200
            assert await get(one, read, "/v1/projects/search/runs/ranker") == 403
            assert await get(one, read, "/v1/runs") == 403
            assert await get(one, read, "/v1/runs?project=video") == 200
            for path in ("/v1/runs", "/metrics", "/"):
                assert await get(one, everything, path) == 200, path
                assert await get(one, None, path) == 401, path
            assert await get(one, None, "/healthz") == 200
            assert await get(one, None, "/readyz") == 200

    run(story())


def test_a_browser_may_send_the_token_as_a_password(sqlite_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(sqlite_url, clock, admin_token="the-admin-token") as one:
            answer = await one.client.get("/v1/runs")
            assert "Basic" in answer.headers["www-authenticate"]
            assert (await one.client.get("/v1/runs", auth=("anybody", "the-admin-token"))).status_code == 200
            assert (await one.client.get("/v1/runs", auth=("anybody", "wrong"))).status_code == 401
            assert (await one.client.get("/v1/runs", headers={"authorization": "Basic ///"})).status_code == 401

    run(story())


def test_the_first_token_closes_the_service_and_the_last_revoked_one_stays_shut_out(
    database_url: str, clock: Clock
) -> None:
    async def story() -> None:
        async with service(database_url, clock) as one:
            assert await put(one, None) == 200
            secret, token = await create_token(
                one.app.state.database, name="t", scopes=("ingest",), project="video", now=clock(), actor="test"
            )
            other = await make(one, clock, "read")
            clock.now += REMEMBER_SECONDS
            assert await put(one, None) == 401
            assert await put(one, secret) == 200
            assert await revoke_token(one.app.state.database, token.id, clock(), actor="test")
            assert not await revoke_token(one.app.state.database, token.id, clock(), actor="test")
            clock.now += REMEMBER_SECONDS
            assert await put(one, secret) == 401
            assert await get(one, other, "/v1/projects/video/runs/ranker") == 200

    run(story())


def test_a_token_expires(sqlite_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(sqlite_url, clock, admin_token="a") as one:
            secret, _ = await create_token(
                one.app.state.database,
                name="t",
                scopes=("ingest",),
                project=None,
                now=clock(),
                actor="test",
                expires=clock() + 60,
            )
            assert await put(one, secret) == 200
            clock.now += 60
            assert await put(one, secret) == 401

    run(story())


def test_the_database_does_not_hold_the_secret(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "lossguard.db"

    async def story() -> str:
        async with service(f"sqlite:///{file}", clock) as one:
            return await make(one, clock, "read")

    secret = run(story())
    with sqlite3.connect(file) as connection:
        dump = "\n".join(connection.iterdump())
    assert "test" in dump
    assert secret not in dump
    assert secret.removeprefix("lg_") not in dump


def test_a_scope_that_does_not_exist_is_refused(sqlite_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            with pytest.raises(ValueError, match="expected some of ingest, read, gate, admin, got write"):
                await make(one, clock, "write")  # type: ignore[arg-type]

    run(story())
