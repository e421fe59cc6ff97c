"""What an episode left of its task is judged from the frames of before and after it, wherever they lie."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from services import Clock, Service, run, service

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gate"))

from gate_runs import DIGEST, TASKS, frames_of, incident

from lossguard.wire.chunk import AttemptStart, AttemptStop, Chunk, ChunkId, encode
from lossguard_service.store import compact, incidents

STEPS, ONSET, END = 320, 150, 165
SCAN = {"kind": "savedmodel", "tensors": 3, "values": 10, "nonfinite": {}, "complete": True}
CONFIG = {"tasks": TASKS, "parameters_watched": 1.0}
SCAR = replace(incident("micro_divergence", ONSET, end=END, number=70), residual=0.6, tasks=("play",))


async def train(one: Service, worse_from: int = STEPS) -> None:
    """A run into whose record an episode with a scar is put; from a step on, task play is half as bad again."""

    def worse(values: dict[str, np.ndarray]) -> None:
        for name, factor in (("loss", 1.5), ("loss/play", 1.5), ("rmse/play", 1.5**0.5)):
            values[name] *= factor

    for index, first in enumerate(range(1, STEPS + 1, 64)):
        last = first + 63
        events = [AttemptStart(0, 1.7e9, CONFIG)] if index == 0 else []
        stops = [AttemptStop(STEPS, 1.7e9, "finished")] if last == STEPS else []
        frames = frames_of(first, last, edit=worse if first > worse_from else None)
        data = encode(Chunk(ChunkId("video", "ranker", "a" * 32, index), frames, {}, (*events, *stops)))
        assert (await one.put(data)).status_code == 200
    await one.app.state.database.write(lambda connection: incidents.insert(connection, 1, [SCAR], 1.7e9))


async def check(one: Service) -> dict[str, Any]:
    body = {"project": "video", "run": "ranker", "step": STEPS, "artifact_digest": DIGEST, "scan": SCAN}
    answer = (await one.client.post("/v1/verdicts", json=body)).json()
    return next(check for check in answer["checks"] if check["name"] == "recovered_divergences")


def test_a_task_that_has_come_back_passes_out_of_chunks_and_out_of_segments(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "SEGMENT_FRAMES", 64)

    async def story() -> None:
        async with service(database_url, clock := Clock()) as one:
            await train(one)
            said = await check(one)
            assert (said["status"], said["observed"]) == ("pass", 1), said
            assert "it is back" in said["explanation"]
            assert await compact.compact(one.app.state.database, now=clock() + 3 * compact.SETTLED_SECONDS) == 5
            assert await check(one) == said

    run(story())


def test_a_task_that_has_not_come_back_is_blocked(sqlite_url: str) -> None:
    async def story() -> None:
        async with service(sqlite_url, Clock()) as one:
            await train(one, worse_from=192)
            said = await check(one)
            assert said["status"] == "block"
            assert "worse than before the onset" in said["explanation"]
            assert 0.4 < said["observed"] < 0.6

    run(story())
