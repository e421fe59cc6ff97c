"""A real service on loopback, and models small enough to tamper with."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from gate_runs import Clock, Service, make_model

from lossguard_service.app import create_app
from lossguard_service.settings import Settings


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The whole service behind a socket; tests use runs of their own."""
    clock = Clock()
    folder = tmp_path_factory.mktemp("service")
    app = create_app(Settings(database=f"sqlite:///{folder}/lossguard.db"), clock=clock)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    listening = threading.Event()
    startup = server.startup

    async def tell(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets)
        listening.set()

    server.startup = tell  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, name="service")
    thread.start()
    assert listening.wait(60)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=60) as client:
        yield Service(url, client, clock, app)
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a SavedModel."""
    return make_model(tmp_path / "export")
