"""Compaction changes nothing that can be read; retention keeps what an incident needs; replicas may do both at once."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from chunk_trainer import LAYERS, SECOND, STATS, chunks, frames
from services import Clock, Service, run, service
from test_ingest_laws import diverging, serially, state

from lossguard_service.settings import Settings
from lossguard_service.store import compact, coverage, layout, schema

RUN = "/v1/projects/video/runs/ranker"
LATER = 2 * compact.SETTLED_SECONDS


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment is full with 64 frames and laid out by layer; a shorter one is in one piece."""
    monkeypatch.setattr(compact, "SEGMENT_FRAMES", 64)
    monkeypatch.setattr(layout, "IN_ONE_VALUES", 63 * len(LAYERS) * len(STATS))


class Stopped(Exception):
    """Somebody ended the process here."""


async def count(one: Service, table: sa.Table) -> int:
    return await one.app.state.database.read(
        lambda connection: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
    )


async def everything(one: Service) -> list[Any]:
    step = await one.get(f"{RUN}/steps/200")
    exported = (await one.client.get(f"{RUN}/export", params={"format": "csv", "what": "stats"})).content
    series = await one.get(f"{RUN}/series", layer=LAYERS[2], stat=STATS[0], points=5000)
    heat = await one.get(f"{RUN}/heatmap", stat=STATS[1], points=1000)
    spans = await one.app.state.database.read(lambda connection: coverage.spans_of(connection, 1))
    return [await state(one), step, exported, series, heat, spans]


def test_compaction_changes_nothing_that_can_be_read(stored_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(stored_url, clock) as one:
            for chunk in diverging():
                await one.put(chunk)
            before = await everything(one)
            assert await compact.compact(one.app.state.database, now=clock()) == 6
            assert await count(one, schema.chunk_bytes) == 1
            assert await everything(one) == before
            assert await compact.compact(one.app.state.database, now=clock() + LATER) == 1
            assert await count(one, schema.chunk_bytes) == 0
            assert await count(one, schema.chunk_summaries) == 0
            assert await everything(one) == before
            for chunk in diverging():
                assert (await one.put(chunk)).json()["duplicate"] is True

    run(story())


def test_only_runs_that_may_have_a_segment_to_make_are_looked_at(stored_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(stored_url, clock) as one:
            for name, steps in (("short", 60), ("long", 80)):
                for chunk in chunks(frames(1, steps), run=name):
                    await one.put(chunk)
            database = one.app.state.database

            async def ready(now: float) -> list[int]:
                return list(await database.read(lambda connection: compact._ready(connection, now)))

            assert await ready(clock()) == [2]
            assert await ready(clock() + LATER) == [1, 2]
            await compact.compact(database, now=clock() + LATER)
            assert await ready(clock() + LATER) == []

    run(story())


def test_a_fresh_replica_judges_on_from_segments(
    stored_url: str, clock: Clock, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = diverging()
    expected = run(serially(f"sqlite:///{tmp_path_factory.mktemp('serial') / 'x.db'}", data))

    async def story() -> dict[str, Any]:
        async with service(stored_url, clock) as one:
            for chunk in data[:9]:
                await one.put(chunk)
            assert await compact.compact(one.app.state.database, now=clock()) == 4
        async with service(stored_url, clock) as one:
            for chunk in data[9:]:
                assert (await one.put(chunk)).status_code == 200
            return await state(one)

    assert run(story()) == expected


def test_replicas_that_compact_at_once_make_each_segment_once(stored_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(stored_url, clock) as one, service(stored_url, clock) as other:
            for chunk in diverging():
                await one.put(chunk)
            before = await everything(one)
            await asyncio.gather(*(compact.compact(who.app.state.database, now=clock()) for who in (one, other) * 2))
            assert await count(one, schema.segments) == 6
            assert await everything(other) == before

    run(story())


def test_what_is_stopped_in_the_middle_is_done_again(
    stored_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compaction after its rows are written and before it commits; retention before its rows are gone."""
    doom, stopped = compact.doom, list[str]()

    def stop(connection: sa.Connection, run_id: int, attempt: int, index: int, kind: str, *rest: Any) -> None:
        # In the same process a server of other tests may be compacting its own.
        mine = connection.engine.url.database == sa.make_url(stored_url).database
        if mine and kind not in stopped:
            stopped.append(kind)
            raise Stopped
        doom(connection, run_id, attempt, index, kind, *rest)

    monkeypatch.setattr(compact, "doom", stop)

    async def story() -> None:
        async with service(stored_url, clock) as one:
            for chunk in chunks(frames(1, 200), stop="failed"):
                await one.put(chunk)
            database, before = one.app.state.database, await everything(one)
            with pytest.raises(Stopped):
                await compact.compact(database, now=clock() + LATER)
            assert (await count(one, schema.segments), await count(one, schema.segment_parts)) == (0, 0)
            assert await everything(one) == before
            assert await compact.compact(database, now=clock() + LATER) == 4
            assert await everything(one) == before
            with pytest.raises(Stopped):
                await compact.retain(database, now=clock() + 10 * LATER, full_seconds=LATER)
            assert await everything(one) == before
            both = (compact.retain(database, now=clock() + 10 * LATER, full_seconds=LATER) for _ in range(2))
            assert sum(await asyncio.gather(*both)) == 4, "two replicas at once"
            assert await count(one, schema.segment_parts) == 0

    run(story())
    assert stopped == ["chunks", "segment"]


def test_ingest_goes_on_while_segments_are_made(sqlite_url: str, clock: Clock) -> None:
    data = chunks(frames(1, 640), size=8)

    async def story() -> None:
        async with service(sqlite_url, clock) as one:

            async def compacting() -> None:
                for _ in range(12):
                    await compact.compact(one.app.state.database, now=clock(), limit=1)

            async def sending() -> None:
                for chunk in data:
                    assert (await one.put(chunk)).status_code == 200
                    assert len((await one.get(f"{RUN}/series", name="loss", points=5000))["first"]) > 0

            await asyncio.gather(compacting(), sending())
            assert (await one.get(f"{RUN}/series", name="loss", points=5000))["first"] == list(range(1, 641))

    run(story())


def test_retention_keeps_incidents_and_runs_that_train(
    sqlite_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "INCIDENT_STEPS", 10)

    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            database = one.app.state.database
            data = chunks(frames(1, 640, diverges_at=420), stop="failed")
            for chunk in data[:-1]:
                await one.put(chunk)
            await compact.compact(database, now=clock())
            assert await compact.retain(database, now=clock() + 100, full_seconds=1000) == 0
            assert await compact.retain(database, now=clock() + 900, full_seconds=1000) == 0
            await one.put(data[-1])
            clock.now += LATER
            await compact.compact(database, now=clock())
            incident = (await one.get(f"{RUN}/incidents"))["incidents"][0]
            assert await compact.retain(database, now=clock() + 10_000, full_seconds=1000) > 0
            onset = incident["onset_step"]
            assert (await one.get(f"{RUN}/steps/{onset}"))["step"] == onset
            gone = await one.client.get(f"{RUN}/steps/5")
            assert gone.status_code == 404
            overview = await one.get(f"{RUN}/series", name="loss", points=5000)
            assert (overview["first"][0], overview["last"][-1]) == (1, 640)
            assert sum(overview["count"]) == 640
            assert (await one.get(f"{RUN}/gaps"))["gaps"] == []
            # A new attempt from a step whose frames are gone: kept, but not judged as if nothing had been there.
            late = chunks(frames(31, 60), attempt=SECOND, start_step=30)
        async with service(sqlite_url, clock) as one:
            for chunk in late:
                answer = await one.put(chunk)
                assert answer.status_code == 200
                assert answer.json()["judged_step"] != 60

    run(story())


async def full(one: Service) -> set[tuple[int, int]]:
    """Attempt and first step of the segments whose frames are kept."""
    table = schema.segments
    query = sa.select(table.c.attempt, table.c.first_step).where(table.c.is_full)
    return set(
        await one.app.state.database.read(lambda connection: [(one[0], one[1]) for one in connection.execute(query)])
    )


def test_retention_waits_for_the_end_of_a_run_that_is_heard_of(sqlite_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            database, data = one.app.state.database, chunks(frames(1, 128), stop="finished")
            for chunk in data[:2]:
                await one.put(chunk)
            await compact.compact(database, now=clock())
            clock.now += 2000
            await one.put(data[2])
            assert await compact.retain(database, now=clock(), full_seconds=1000) == 0
            assert await full(one) == {(1, 1)}
            assert await compact.retain(database, now=clock() + 1001, full_seconds=1000) == 1, "it fell silent"
            clock.now += LATER
            await compact.compact(database, now=clock())
            clock.now += 2000
            await one.put(data[3])
            assert await compact.retain(database, now=clock(), full_seconds=1000) == 1, "it ended"

    run(story())


@pytest.mark.parametrize(
    ("began", "around", "kept"),
    [
        # Segments of 64 steps; the first attempt diverged at 260, its peak was at 352.
        (100, 10, {65, 193, 257, 321}),
        (65, 10, {65, 193, 257, 321}),
        (64, 4, {193, 257, 321}),
        (64, 3, {257, 321}),
        (64, 32, {193, 257, 321}),
        (64, 33, {193, 257, 321, 385}),
    ],
)
def test_retention_keeps_incidents_that_were_superseded_and_where_the_next_attempt_began(
    sqlite_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, began: int, around: int, kept: set[int]
) -> None:
    monkeypatch.setattr(compact, "INCIDENT_STEPS", around)
    of_before = sa.delete(schema.incidents).where(schema.incidents.c.kind == "regime_change")

    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            database = one.app.state.database
            for chunk in chunks(frames(1, 448, diverges_at=260)):
                await one.put(chunk)
            await one.put(chunks(frames(1, 0), attempt=SECOND, start_step=began)[0])
            # As a service left it that knew no regime changes yet; they keep what is around them.
            await database.write(lambda connection: connection.execute(of_before))
            (found,) = (await one.get(f"{RUN}/incidents", superseded=True))["incidents"]
            assert (found["superseded"], found["onset_step"], found["peak_step"]) == (True, 260, 352)
            await compact.compact(database, now=clock() + LATER)
            await compact.retain(database, now=clock() + 10_000, full_seconds=1000)
            assert await full(one) == {(1, first) for first in kept}

    run(story())


def test_retention_tells_attempts_apart_whose_segments_have_the_same_numbers(
    sqlite_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "INCIDENT_STEPS", 10)

    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            for attempt, data in (("a" * 32, frames(1, 128)), (SECOND, frames(129, 320, diverges_at=300))):
                for chunk in chunks(data, attempt=attempt, start_step=int(data.steps[0]) - 1):
                    await one.put(chunk)
            await compact.compact(one.app.state.database, now=clock() + LATER)
            assert await compact.retain(one.app.state.database, now=clock() + 10_000, full_seconds=1000) == 2
            # The second attempt began at 128, where regimes change, and diverged at 300.
            assert await full(one) == {(1, 65), (2, 129), (2, 257)}
            assert (await one.get(f"{RUN}/steps/130"))["step"] == 130
            assert (await one.client.get(f"{RUN}/steps/5")).status_code == 404

    run(story())


def test_a_trainer_that_repeats_steps_is_compacted_too(sqlite_url: str, clock: Clock, tmp_path: Path) -> None:
    from lossguard.wire.chunk import AttemptStart, Chunk, ChunkId, encode

    blocks = [frames(1, 40), frames(30, 70), frames(71, 140)]

    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            for index, block in enumerate(blocks):
                events = (AttemptStart(0, 1.7e9, {}),) if index == 0 else ()
                data = encode(Chunk(ChunkId("video", "ranker", "a" * 32, index), block, events=events))
                assert (await one.put(data)).json()["judged_step"] == int(block.steps[-1])
            assert await compact.compact(one.app.state.database, now=clock() + LATER) >= 2
            assert await count(one, schema.chunk_bytes) == 0

    run(story())


def test_projects_may_keep_frames_for_a_time_of_their_own(sqlite_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            database = one.app.state.database
            for project in ("video", "search", "ads"):
                for chunk in chunks(frames(1, 64), project=project, stop="finished"):
                    await one.put(chunk)
            clock.now += LATER
            assert await compact.compact(database, now=clock()) >= 3
            days = {"video": 1000.0, "ads": 1e9}
            assert await compact.retain(database, now=clock() + 2000, full_seconds=None, of_projects=days) > 0
            assert await compact.retain(database, now=clock() + 2000, full_seconds=5000, of_projects=days) == 0
            kept = [
                (await one.client.get(f"/v1/projects/{project}/runs/ranker/steps/5")).status_code
                for project in ("video", "search", "ads")
            ]
            assert kept == [404, 200, 200]
            assert await compact.retain(database, now=clock() + 6000, full_seconds=5000, of_projects=days) > 0
            assert (await one.client.get("/v1/projects/search/runs/ranker/steps/5")).status_code == 404
            assert (await one.client.get("/v1/projects/ads/runs/ranker/steps/5")).status_code == 200

    run(story())


def test_days_of_projects_are_read_or_refused() -> None:
    assert Settings(project_full_days="video=30  ads=0.5").days_of_projects() == {"video": 30.0, "ads": 0.5}
    assert Settings().days_of_projects() == {}
    for wrong in ("video", "video=", "=3", "video=0", "video=-1", "video=nan", "video=inf"):
        with pytest.raises(ValueError, match="project=days"):
            Settings(project_full_days=wrong)
