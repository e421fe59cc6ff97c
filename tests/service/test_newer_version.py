"""While an update rolls, a replica meets what a later version wrote: it says so, and keeps what it is sent."""

from typing import Any

import pytest
import sqlalchemy as sa
from chunk_trainer import LAYERS, STATS
from services import Clock, Service, run, service
from test_ingest_laws import diverging, serially, state

from lossguard.wire.chunk import peek
from lossguard_service.store import compact, layout, schema

RUN = "/v1/projects/video/runs/ranker"
READS: list[tuple[str, dict[str, Any]]] = [
    (f"{RUN}/series", {"name": "loss", "points": 5000}),
    (f"{RUN}/series", {"layer": LAYERS[1], "stat": STATS[0], "points": 5000}),
    (f"{RUN}/heatmap", {"stat": STATS[1], "points": 1000}),
    (f"{RUN}/steps/100", {}),
]


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "SEGMENT_FRAMES", 64)


async def set_version(one: Service, version: int) -> None:
    table = schema.segment_parts

    def write(connection: sa.Connection) -> None:
        common = connection.execute(sa.select(table).where(table.c.part == layout.COMMON)).all()
        for row in common:
            here = (table.c.attempt == row.attempt, table.c.first_index == row.first_index, table.c.part == row.part)
            connection.execute(sa.update(table).where(*here).values(data=bytes([version]) + row.data[1:]))

    await one.app.state.database.write(write)


@pytest.mark.parametrize("in_one", [0, 1 << 17], ids=["by layer", "in one"])
def test_what_a_later_version_laid_out_is_a_503_that_says_so_and_waits_for_a_replica_that_reads_it(
    sqlite_url: str,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    in_one: int,
) -> None:
    monkeypatch.setattr(layout, "IN_ONE_VALUES", in_one)
    data = diverging()
    expected = run(serially(f"sqlite:///{tmp_path_factory.mktemp('serial') / 'x.db'}", data))

    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            for chunk in data[:9]:
                await one.put(chunk)
            await compact.compact(one.app.state.database, now=clock())
            await set_version(one, 9)
        async with service(sqlite_url, clock) as old:
            for path, query in READS:
                if in_one == 0 and "layer" in query:
                    continue  # read without the part that has the version: the layout of its arrays is the same
                answer = await old.client.get(path, params=query)
                assert (answer.status_code, answer.headers.get("retry-after")) == (503, "5"), f"{path} {answer.text}"
                assert answer.json()["type"] == "urn:lossguard:problem:newer-version"
                assert (
                    "a segment of version 9, this replica reads versions up to 2: update it" in answer.json()["detail"]
                )
            assert (await old.client.get(RUN)).status_code == 200
            for chunk in data[9:-1]:
                answer = await old.put(chunk)
                assert answer.status_code == 200
                assert answer.json()["judged_step"] < 32 * 9 + 1
        async with service(sqlite_url, clock) as new:
            await set_version(new, layout.BY_LAYER if in_one == 0 else layout.IN_ONE)
            await new.put(data[-1])
            assert await state(new) == expected

    run(story())


def test_a_chunk_of_a_later_format_waits_in_its_journal(sqlite_url: str, clock: Clock) -> None:
    """To be refused for ever, 422, would set the whole journal of an agent aside that was updated first."""
    (good, *_) = diverging()

    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            place = peek(good)
            path = f"{RUN}/attempts/{place.attempt}/chunks/{place.index}"
            answer = await one.client.put(path, content=good[:3] + b"\x09" + good[4:])
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert "update the service before its agents" in answer.json()["detail"]
            assert (await one.put(good)).status_code == 200

    run(story())
