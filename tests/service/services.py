"""A service in this process with a clock that stands, and a real uvicorn on loopback in a thread."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from lossguard.wire.chunk import peek
from lossguard_service.__main__ import Server, prepare
from lossguard_service.app import create_app
from lossguard_service.settings import Settings


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time."""
        return self.now


NEVER = 1e6
"""Seconds between the service's own rounds: on a slow machine one would come between two lines of a test."""


class Service:
    """A service in this process: its app, and a client that speaks ASGI to it."""

    def __init__(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        self.app = app
        self.client = client

    async def put(self, data: bytes) -> httpx.Response:
        """Send a chunk to its address."""
        identity = peek(data)
        return await self.client.put(
            f"/v1/projects/{identity.project}/runs/{identity.run}/attempts/{identity.attempt}/chunks/{identity.index}",
            content=data,
        )

    async def put_all(self, chunks: Iterable[bytes]) -> None:
        """Send chunks one after the other; each must be taken."""
        for chunk in chunks:
            answer = await self.put(chunk)
            assert answer.status_code == 200, answer.text

    async def get(self, path: str, **parameters: Any) -> Any:
        """The JSON at a path that must answer 200."""
        answer = await self.client.get(path, params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()


@asynccontextmanager
async def service(url: str, clock: Callable[[], float] | None = None, **settings: Any) -> AsyncIterator[Service]:
    """A started service; its lifespan ends with the block. Tests ask for each round of work in the background."""
    settings = {"sweep_seconds": NEVER, "compact_seconds": NEVER, "webhook_seconds": NEVER} | settings
    app = create_app(Settings(database=url, **settings), **({} if clock is None else {"clock": clock}))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield Service(app, client)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a test's coroutine to its end, in a thread: Playwright leaves a running event loop in the main one."""
    with ThreadPoolExecutor(1, thread_name_prefix="story") as thread:
        return thread.submit(asyncio.run, coroutine).result()


class Uvicorn:
    """A real server on loopback, in a thread."""

    def __init__(self, settings: Settings) -> None:
        self.server: Server
        self.server, self._socket = prepare(settings)
        self.url = self.server.url
        self._started = threading.Event()
        self.server.told = self._started.set
        self._thread = threading.Thread(target=self._run, name="uvicorn")

    def _run(self) -> None:
        with self._socket:
            self.server.run(sockets=[self._socket])
        self._started.set()

    def __enter__(self) -> "Uvicorn":
        self._thread.start()
        assert self._started.wait(120)
        assert self.server.started
        return self

    def __exit__(self, *_error: object) -> None:
        self.server.should_exit = True
        self._thread.join()
