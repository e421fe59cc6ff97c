"""All layers at once: the largest values at a step, their maximum over a run, and what was dropped."""

import numpy as np
from chunk_trainer import FIRST
from services import Clock, run, service

from lossguard.wire.chunk import AttemptStart, Chunk, ChunkId, encode
from lossguard.wire.frame import Frames, Schema

RUN = "/v1/projects/video/runs/ranker"


def block() -> Frames:
    schema = Schema(("loss",), ("a", "b", "c", "d"), ("norm", "ratio"))
    stats = np.zeros((4, 4, 2), np.float32)
    stats[:, :, 0] = [[1, 2, 3, 4], [4, 3, 2, 1], [np.inf, np.nan, 1, -np.inf], [5, 5, 0, 0]]
    present = np.ones((4, 2), np.bool_)
    present[1, 1] = False
    return Frames.of(schema, [1, 2, 3, 4], [[1.0]] * 4, stats, stats_present=present)


def test_all_layers_at_once(sqlite_url: str) -> None:
    async def story() -> None:
        async with service(sqlite_url, Clock()) as one:
            events = (AttemptStart(0, 1.7e9, {}),)
            chunk = Chunk(ChunkId("video", "ranker", FIRST, 0), block(), {"queue_full": 3}, events)
            assert (await one.put(encode(chunk))).status_code == 200
            assert (await one.get(RUN))["dropped"] == {"queue_full": 3}

            found = await one.get(f"{RUN}/steps/2/layers", stat="norm", limit="2")
            assert found["layers"] == [{"layer": "a", "value": 4.0}, {"layer": "b", "value": 3.0}]
            found = await one.get(f"{RUN}/steps/3/layers", stat="norm")
            assert [one["value"] for one in found["layers"]] == ["NaN", "Infinity", 1.0, "-Infinity"]
            assert [one["layer"] for one in found["layers"]] == ["b", "a", "c", "d"]

            found = await one.get(f"{RUN}/series", stat="norm")
            assert found["first"] == [1, 2, 3, 4]
            assert found["maximum"] == [4.0, 4.0, "Infinity", 5.0]
            assert found["nonfinite"] == [0, 0, 3, 0]
            assert (await one.get(f"{RUN}/series", stat="norm", points="2"))["maximum"] == [4.0, "Infinity"]

            for path, sentence in (
                ("steps/9/layers?stat=norm", "no frame"),
                ("steps/1/layers?stat=other", "no stat"),
                ("steps/2/layers?stat=ratio", "not measured"),
                ("series?stat=other", "no stat"),
            ):
                answer = await one.client.get(f"{RUN}/{path}")
                assert (answer.status_code, sentence in answer.json()["detail"]) == (404, True), answer.text

    run(story())
