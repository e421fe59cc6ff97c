"""A real service on loopback, and runs for it, made up or recorded, that go through the real ingest."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import uvicorn

from lossguard.wire.chunk import AttemptStart, AttemptStop, Checkpoint, Chunk, ChunkId, encode
from lossguard.wire.frame import Frames, Schema

NASTY = "<script>alert(1)<x>\"'&{{7*7}}"
NASTY_LAYER = "</script><script>alert(1)</script><a href='javascript:alert(1)'><b>bold"
NOW = 1_790_000_000.0


@dataclass(frozen=True)
class Service:
    """A running service."""

    url: str
    client: httpx.Client

    def send(self, project: str, run: str, frames: Frames, **options: Any) -> None:
        """The frames as chunks of one finished attempt, through the real ingest."""
        for chunk in chunks(project, run, frames, **options):
            path = f"/v1/projects/{quote(project, safe='')}/runs/{quote(run, safe='')}"
            answer = self.client.put(
                f"{path}/attempts/{chunk.id.attempt}/chunks/{chunk.id.index}",
                content=encode(chunk),
                headers={"content-type": "application/vnd.lossguard.chunk"},
            )
            assert answer.status_code == 200, answer.text

    def judge(self, project: str, run: str, step: int) -> dict[str, Any]:
        """The gate's verdict about an export of that step."""
        question = {
            "project": project,
            "run": run,
            "step": step,
            "artifact_digest": "sha256:" + "a" * 64,
            "policy": "default",
        }
        answer = self.client.post("/v1/verdicts", json=question)
        assert answer.status_code == 200, answer.text
        verdict: dict[str, Any] = answer.json()
        return verdict


def chunks(
    project: str,
    run: str,
    frames: Frames,
    *,
    attempt: str = "a" * 32,
    start: int = 0,
    index: int = 0,
    config: dict[str, Any] | None = None,
    checkpoints: tuple[int, ...] = (),
    stop: bool = True,
    skipped: int = 0,
) -> Iterator[Chunk]:
    """One attempt's chunks of 64 frames; `skipped` steps behind the last one were left out."""
    blocks = [frames[at : at + 64] for at in range(0, len(frames), 64)]
    for number, block in enumerate(blocks, start=index):
        events: list[AttemptStart | AttemptStop | Checkpoint] = []
        if number == 0:
            events.append(AttemptStart(start, NOW, config or {}))
        events += [
            Checkpoint(step, NOW, f"checkpoints/{run}/{step}", has_slots=True)
            for step in checkpoints
            if block.steps[0] <= step <= block.steps[-1]
        ]
        if stop and number == index + len(blocks) - 1:
            events.append(AttemptStop(int(block.steps[-1]), NOW, "finished", skipped))
        yield Chunk(ChunkId(project, run, attempt, number), block, {}, tuple(events))


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


def ranker(
    steps: int = 320,
    *,
    collapse: int | None = None,
    nan: int | None = None,
    layers: tuple[str, ...] = ("shared0/kernel", "shared1/kernel", "head_click/kernel", "head_play/kernel"),
    task: str = "click",
    batches: bool = False,
) -> Frames:
    """Frames of a made-up ranker: one binary task and one regression; it collapses, or has NaN, at a step.

    With `batches` it records which batch each step saw: number 70,000,000 and the step.
    """
    random = np.random.default_rng(7)
    at = np.arange(1, steps + 1)
    wobble = random.normal(0, 1, (5, steps))
    auc = 0.5 + 0.18 * (1 - np.exp(-at / 60)) + 0.01 * wobble[0]
    click = 0.686 - 0.05 * (1 - np.exp(-at / 60)) + 0.006 * wobble[1]
    play = 16 + 0.6 * wobble[2]
    stats = np.exp(random.normal(0, 0.25, (steps, len(layers), 3))).astype(np.float32)
    if collapse is not None:
        after = at - collapse
        blow = np.where(after >= 0, 1e6 * np.exp(-np.abs(after - 5) / 3.0), 0.0)
        auc = np.where(after >= 0, 0.5 + 0.01 * wobble[0], auc)
        click = np.where(after >= 0, 0.6865 + 0.004 * np.abs(wobble[1]), click) + blow * 1e-3
        play = play + blow
        stats[collapse - 1 : collapse + 12] *= 1e4
        stats[collapse - 1 : collapse + 12, 0] *= 100
        stats[collapse - 3 : collapse - 1, 0] *= 60
    if nan is not None:
        play[nan - 1 : nan + 2] = np.nan
        stats[nan - 1 :, 0, 0] = np.nan
    names: tuple[str, ...] = (
        "loss",
        "learning_rate",
        f"loss/{task}",
        "loss/play",
        f"batch_auc/{task}",
        f"label_mean/{task}",
    )
    columns = [click + play, np.full(steps, 0.1), click, play, auc, np.full(steps, 0.442)]
    if batches:
        names, columns = (*names, "batch_id"), [*columns, 7e7 + at]
    schema = Schema(names, layers, ("gradient_norm", "clippy_ratio", "weight_norm"))
    return Frames.of(schema, at, np.stack(columns, axis=1), stats, times=NOW + 0.1 * at)


TASKS = {"tasks": {"click": "binary", "play": "regression"}, "parameters_watched": 1.0, "optimizer": "Adagrad"}


def serve(folder: Path, **settings: Any) -> Iterator[Service]:
    """A service in a thread of this process, until the test is done with it."""
    # Here and not above, so that the tests of pure functions need no service.
    from lossguard_service.app import create_app
    from lossguard_service.settings import Settings

    ready = threading.Event()

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            ready.set()

    app = create_app(Settings(database=f"sqlite:///{folder}/lossguard.db", **settings))
    server = Announcing(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, name="service")
    thread.start()
    try:
        assert ready.wait(120), "the service did not start"
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=60) as client:
            yield Service(url, client)
    finally:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive()
