"""A real service on loopback with recorded runs in it, sent through the real ingest, and a real Chromium."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from playwright.sync_api import Browser, sync_playwright

from lossguard.wire.chunk import AttemptStart, AttemptStop, Checkpoint, Chunk, ChunkId, encode
from lossguard.wire.frame import Frames, Schema
from lossguard_service.app import create_app
from lossguard_service.settings import Settings

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
NOW = 1_790_000_000.0


@dataclass(frozen=True)
class Service:
    """A running service."""

    url: str
    client: httpx.Client

    def send(self, project: str, run: str, frames: Frames, **options: Any) -> None:
        """The frames as chunks of one finished attempt, through the real ingest."""
        for chunk in chunks(project, run, frames, **options):
            path = f"/v1/projects/{project}/runs/{httpx.URL('/' + run).raw_path.decode()[1:]}"
            answer = self.client.put(
                f"{path}/attempts/{chunk.id.attempt}/chunks/{chunk.id.index}",
                content=encode(chunk),
                headers={"content-type": "application/vnd.lossguard.chunk"},
            )
            assert answer.status_code == 200, answer.text


def chunks(
    project: str,
    run: str,
    frames: Frames,
    *,
    attempt: str = "a" * 32,
    start: int = 0,
    config: dict[str, Any] | None = None,
    checkpoints: tuple[int, ...] = (),
    stop: bool = True,
) -> Iterator[Chunk]:
    """One attempt's chunks of 64 frames."""
    blocks = [frames[at : at + 64] for at in range(0, len(frames), 64)]
    for index, block in enumerate(blocks):
        events: list[AttemptStart | AttemptStop | Checkpoint] = []
        if index == 0:
            events.append(AttemptStart(start, NOW, config or {}))
        events += [
            Checkpoint(step, NOW, f"checkpoints/{run}/{step}", has_slots=True)
            for step in checkpoints
            if block.steps[0] <= step <= block.steps[-1]
        ]
        if stop and index == len(blocks) - 1:
            events.append(AttemptStop(int(block.steps[-1]), NOW, "finished"))
        yield Chunk(ChunkId(project, run, attempt, index), block, {}, tuple(events))


def recorded(shared: Path, name: str) -> tuple[Frames, dict[str, Any]]:
    """A recorded run with the label means that its binary tasks had, and what its trainer would say about itself."""
    with np.load(shared / "traces" / "runs" / f"{name}.npz", allow_pickle=False) as saved:
        meta = json.loads(str(saved["meta"]))
        binary = [task for task in meta["tasks"] if task["kind"] == "binary"]
        means = np.tile([task["label_mean"] for task in binary], (len(saved["step"]), 1))
        names = (*map(str, saved["scalar_names"]), *(f"label_mean/{task['name']}" for task in binary))
        schema = Schema(names, tuple(map(str, saved["layer_names"])), tuple(map(str, saved["stat_names"])))
        first = int(saved["step"][0])
        frames = Frames.of(
            schema, saved["step"] + (1 - first), np.concatenate([saved["scalars"], means], axis=1), saved["stats"]
        )
    config = {
        "tasks": {task["name"]: task["kind"] for task in meta["tasks"]},
        "parameters_watched": 1.0,
        "optimizer": "Adagrad",
        "treatment": "none" if meta["config"]["treat"] == "naive" else meta["config"]["treat"],
        "learning_rate": meta["config"]["lr"],
        "batch": meta["config"]["batch"],
    }
    return frames, config


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An empty service over SQLite."""
    yield from serve(tmp_path_factory.mktemp("service"))


def serve(folder: Path) -> Iterator[Service]:
    """A service in a thread of this process, until the test is done with it."""
    ready = threading.Event()

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            ready.set()

    app = create_app(Settings(database=f"sqlite:///{folder}/lossguard.db"))
    server = Announcing(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, name="service")
    thread.start()
    try:
        assert ready.wait(30), "the service did not start"
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=30) as client:
            yield Service(url, client)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    path = os.environ.get("LOSSGUARD_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium: install it, or set LOSSGUARD_CHROMIUM to the program")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield chromium
        chromium.close()
