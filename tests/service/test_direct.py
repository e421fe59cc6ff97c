"""The short way for chunks answers as the framework's way does."""

import asyncio
from typing import Any

from chunk_trainer import FIRST, chunks, frames
from services import Clock, run, service

from lossguard_service.ingest.direct import Direct

RUN = "/v1/projects/video/runs/ranker"
CHUNK = f"{RUN}/attempts/{FIRST}/chunks/0"


def requests() -> list[tuple[str, str, bytes]]:
    first, second = chunks(frames(1, 64))
    return [
        ("PUT", CHUNK, first),
        ("PUT", CHUNK, first),
        ("PUT", CHUNK, second),
        ("PUT", CHUNK.replace("chunks/0", "chunks/1"), second),
        ("PUT", CHUNK.replace("chunks/0", "chunks/1") + "?a=b", second),
        ("PUT", CHUNK, b"no chunk"),
        ("PUT", CHUNK, b"x" * 300_000),
        ("PUT", CHUNK + "/", first),
        ("PUT", CHUNK.replace("/runs/ranker", "/runs/"), first),
        ("PUT", CHUNK.replace("ranker", "a%2Fb"), first),
        ("PUT", CHUNK.replace("ranker", "%2e%2e"), first),
        ("PUT", CHUNK.replace("v1", "v2"), first),
        ("GET", CHUNK, b""),
        ("POST", CHUNK, first),
    ]


async def answers(url: str, *, directly: bool) -> list[Any]:
    async with service(url, Clock(), max_chunk_bytes=262_144) as one:
        app = one.app
        assert isinstance(app, Direct)
        if not directly:
            app._short = None
        found: list[Any] = []
        for method, path, body in requests():
            answer = await one.client.request(method, path, content=body)
            headers = {name: answer.headers.get(name) for name in ("content-type", "content-length", "allow")}
            found.append((method, path, answer.status_code, headers, answer.text))
        page = (await one.client.get("/metrics")).text
        return [*found, sorted(line for line in page.splitlines() if "request_seconds_count" in line)]


def test_chunks_are_answered_and_counted_as_by_the_framework(tmp_path: Any) -> None:
    async def both() -> None:
        direct = await answers(f"sqlite:///{tmp_path}/direct.db", directly=True)
        assert direct == await answers(f"sqlite:///{tmp_path}/framework.db", directly=False)
        assert [status for _, _, status, *_ in direct[:4]] == [200, 200, 422, 200]

    run(both())


def test_a_client_that_hangs_up_within_a_chunk_is_no_bug(sqlite_url: str, caplog: Any) -> None:
    async def story() -> None:
        async with service(sqlite_url, Clock()) as one:
            heard = asyncio.Queue[dict[str, Any]]()
            for message in (
                {"type": "http.request", "body": b"half", "more_body": True},
                {"type": "http.disconnect"},
            ):
                heard.put_nowait(message)
            said: list[Any] = []

            async def send(message: Any) -> None:
                said.append(message)

            scope = {"type": "http", "method": "PUT", "path": CHUNK, "headers": [], "query_string": b""}
            await one.app(scope, heard.get, send)
            assert not said

    run(story())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
