"""Bytes in object storage: nothing half-stored whatever the store does, nothing left behind or deleted too early."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from chunk_trainer import FIRST, SECOND, chunks, frames
from object_storage import Proxy
from services import Clock, Service, run, service

from lossguard.wire.chunk import AttemptStart, Chunk, ChunkId, encode
from lossguard_service import admin
from lossguard_service.store import bytes as bytes_module
from lossguard_service.store import cleanup, compact, objects, schema
from lossguard_service.store.bytes import BytesUnavailable, Objects
from lossguard_service.store.objects import open_objects

RUN = "/v1/projects/video/runs/ranker"
LATER = 2 * compact.SETTLED_SECONDS
LONG_AFTER = 10 * 86_400.0
pytestmark = pytest.mark.usefixtures("all_in_objects", "small_segments")


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment is full with 64 frames."""
    monkeypatch.setattr(compact, "SEGMENT_FRAMES", 64)


def store_of(one: Service) -> Objects:
    found = one.app.state.database.bytes.objects
    assert found is not None
    return found


async def keys(one: Service) -> set[str]:
    """Every object that there is, but for the probe and the mark."""
    pages = store_of(one).listed(one.app.state.database.bytes.folder)
    return {each.key async for page in pages for each in page if not each.key.endswith(("/probe", "/owner"))}


async def named(one: Service) -> set[str]:
    """Every object that a row names."""

    def read(connection: sa.Connection) -> set[str]:
        tables = (schema.chunk_bytes, schema.segment_parts, schema.pyramid)
        return {key for table in tables for key in connection.execute(sa.select(table.c.object)).scalars() if key}

    return await one.app.state.database.read(read)


def problem(answer: Any) -> tuple[int, str, str | None]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["type"], answer.headers.get("retry-after")


BUSY = (503, "urn:lossguard:problem:busy", "5")


def test_rows_name_objects_and_hold_no_bytes(s3_environment: str, sqlite_url: str, s3_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(sqlite_url, clock, bytes_url=s3_url) as one:
            database = one.app.state.database
            await one.put_all(chunks(frames(1, 100)))

            def held(connection: sa.Connection) -> list[Any]:
                return list(connection.execute(sa.select(schema.chunk_bytes.c.data)).scalars())

            assert await database.read(held) == [b""] * 4
            assert await keys(one) == await named(one)
            assert await compact.compact(database, now=clock() + LATER) == 2
            assert len(await named(one)) == 4, "a segment and a pyramid each"
            step = await one.get(f"{RUN}/steps/70")
            assert step["scalars"]["loss"] == pytest.approx(float(frames(70, 70).scalars[0, 0]))

    run(story())


def test_small_bytes_stay_in_their_row(
    sqlite_url: str, folder_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytes_module, "LEAST_BYTES", 1 << 20)

    async def story() -> None:
        async with service(sqlite_url, clock, bytes_url=folder_url) as one:
            for chunk in chunks(frames(1, 100)):
                await one.put(chunk)
            assert await compact.compact(one.app.state.database, now=clock() + LATER) == 2
            assert await keys(one) == set()
            assert (await one.get(f"{RUN}/steps/70"))["step"] == 70

    run(story())


def test_the_setting_may_change_and_what_is_stored_stays_readable(
    database_url: str, folder_url: str, clock: Clock
) -> None:
    data = chunks(frames(1, 400))

    async def loss(one: Service) -> list[int]:
        return list((await one.get(f"{RUN}/series", name="loss", points=5000))["first"])

    async def story() -> None:
        async with service(database_url, clock) as one:
            for chunk in data[:5]:
                await one.put(chunk)
            await compact.compact(one.app.state.database, now=clock())
        async with service(database_url, clock, bytes_url=folder_url) as one:
            assert await loss(one) == list(range(1, 161))
            for chunk in data[5:9]:
                await one.put(chunk)
            await compact.compact(one.app.state.database, now=clock())
            assert await loss(one) == list(range(1, 289))
        async with service(database_url, clock, detector_runs=1) as one:
            # The state in memory needs none of it; the bytes that are elsewhere do.
            answer = await one.client.get(f"{RUN}/series", params={"name": "loss"})
            assert problem(answer) == BUSY
            assert problem(await one.put(data[9])) == BUSY
        async with service(database_url, clock, bytes_url=folder_url) as one:
            await one.put_all(data[9:])
            assert await loss(one) == list(range(1, 401))

    run(story())


@pytest.mark.parametrize("fault", ["500", "hang up", "swallow"])
def test_a_store_that_fails_is_a_503_and_nothing_is_stored(
    proxy: Proxy, database_url: str, s3_url: str, clock: Clock, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = chunks(frames(1, 100))
    with monkeypatch.context() as hurry:
        hurry.setattr(objects, "REQUEST_SECONDS", 0.3)
        impatient = open_objects(s3_url)._store

    async def story() -> None:
        async with service(database_url, clock, bytes_url=s3_url) as one:
            patient = store_of(one)._store

            def failing(wrong: str | None) -> None:
                # Impatient only while nothing that it asks for is to succeed: a busy machine is slower than 0.3 s.
                proxy.fault = lambda method, path: fault if method == wrong else None
                store_of(one)._store = impatient if wrong and fault == "swallow" else patient

            failing("PUT")
            assert problem(await one.put(data[0])) == BUSY
            assert (await one.client.get(RUN)).status_code == 404
            assert (await one.client.get("/readyz?bytes=true")).status_code == 200, "as it was a moment ago"
            clock.now += 3600
            assert problem(await one.client.get("/readyz?bytes=true")) == BUSY
            assert (await one.client.get("/readyz")).status_code == 200
            failing(None)
            await one.put_all(data)
            failing("GET")
            assert problem(await one.client.get(f"{RUN}/series", params={"name": "loss"})) == BUSY
            with pytest.raises(BytesUnavailable):
                await compact.compact(one.app.state.database, now=clock())
            failing(None)
            assert (await one.get(f"{RUN}/series", name="loss", points=500))["first"] == list(range(1, 101))

    run(story())


def test_a_body_that_ends_early_is_never_taken_for_the_whole(
    proxy: Proxy, sqlite_url: str, s3_url: str, clock: Clock
) -> None:
    async def story() -> None:
        async with service(sqlite_url, clock, bytes_url=s3_url) as one:
            for chunk in chunks(frames(1, 100)):
                await one.put(chunk)
            for ready in (False, True):
                proxy.fault = lambda method, path: "truncate" if method == "GET" and "-" in path else None
                assert problem(await one.client.get(f"{RUN}/steps/70")) == BUSY, ready
                proxy.fault = lambda method, path: None
                await compact.compact(one.app.state.database, now=clock() + LATER)

    run(story())


def test_a_tired_store_is_asked_again(
    proxy: Proxy, sqlite_url: str, s3_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "RETRIES", 2)
    bad = iter(["500", "500"])

    async def story() -> None:
        async with service(sqlite_url, clock, bytes_url=s3_url) as one:
            proxy.fault = lambda method, path: next(bad, None)
            assert (await one.put(chunks(frames(1, 10))[0])).status_code == 200
            assert len(proxy.seen) >= 3

    run(story())


def test_one_layers_series_is_read_by_ranges(proxy: Proxy, sqlite_url: str, s3_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(sqlite_url, clock, bytes_url=s3_url) as one:
            for chunk in chunks(frames(1, 256)):
                await one.put(chunk)
            await compact.compact(one.app.state.database, now=clock() + LATER)
            proxy.seen.clear()
            found = await one.get(f"{RUN}/series", layer="embedding", stat="gradient_norm", points=5000)
            assert len(found["first"]) == 256
            assert len(proxy.seen) == 4, "one request a segment"
            assert all("/segments/" in path for _, path in proxy.seen)

    run(story())


def test_a_duplicate_and_a_conflict_leave_no_object_behind(sqlite_url: str, folder_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(sqlite_url, clock, bytes_url=folder_url) as one:
            first = chunks(frames(1, 10))[0]
            events = (AttemptStart(0, 1.7e9, {}),)
            other = encode(Chunk(ChunkId("video", "ranker", FIRST, 0), frames(1, 11), events=events))
            assert (await one.put(first)).status_code == 200
            assert (await one.put(first)).json()["duplicate"] is True
            assert (await one.put(other)).status_code == 409
            assert len(await keys(one)) == 1
            assert await keys(one) == await named(one)

    run(story())


def test_a_crash_between_object_and_row_leaves_an_orphan_that_is_cleaned_up_when_it_is_old(
    database_url: str, folder_url: str, clock: Clock
) -> None:
    async def story() -> None:
        async with (
            service(database_url, bytes_url=folder_url) as one,
            service(database_url, bytes_url=folder_url) as two,
        ):
            database = one.app.state.database
            now = two.app.state.clock()
            for chunk in chunks(frames(1, 100)):
                await one.put(chunk)
            await compact.compact(database, now=now)  # which dooms two chunks
            kept = await keys(one)
            assert len(kept) > len(await named(one))
            # Uploads whose transactions never came: of a run that is known, and of one that never was.
            for project, name in (("video", "ranker"), ("video", "never")):
                run_folder = bytes_module.run_folder(project, name)
                await database.bytes.keep(run_folder, "orphan", b"bytes")
            assert len(await keys(one)) == len(kept) + 2
            # In flight, for all we know.
            assert await cleanup.delete_orphans(database, now=now + cleanup.SWEEP_SECONDS + 1) == 0
            assert len(await keys(one)) == len(kept) + 2
            swept = await asyncio.gather(
                *(cleanup.delete_orphans(who.app.state.database, now=now + LONG_AFTER) for who in (one, two))
            )
            assert sorted(swept) == [0, 2], "one replica looks, the other one sees that it does"
            assert await keys(one) == kept, "what is doomed is not the orphans' clean-up's"
            assert (await one.get(f"{RUN}/series", name="loss", points=500))["first"] == list(range(1, 101))

    run(story())


def test_objects_outlive_their_rows_for_a_while_and_not_for_ever(
    database_url: str, folder_url: str, clock: Clock
) -> None:
    async def story() -> None:
        async with (
            service(database_url, clock, bytes_url=folder_url) as one,
            service(database_url, clock, bytes_url=folder_url) as two,
        ):
            database = one.app.state.database
            for chunk in chunks(frames(1, 640), stop="finished"):
                await one.put(chunk)
            before = await keys(one)
            assert await compact.compact(database, now=clock() + LATER) == 10
            assert await cleanup.delete_doomed(database, now=clock() + LATER + 3600) == 0
            assert before < await keys(one)
            who = [one.app.state.database, two.app.state.database]
            assert (
                sum(await asyncio.gather(*(cleanup.delete_doomed(each, now=clock() + LONG_AFTER) for each in who)))
                >= 20
            )
            assert await keys(one) == await named(one)
            assert len(await keys(one)) == 20
            assert await compact.retain(database, now=clock() + LONG_AFTER, full_seconds=1000) == 10
            assert await cleanup.delete_doomed(database, now=clock() + 2 * LONG_AFTER) == 10
            assert await keys(one) == await named(one)
            assert all("/pyramids/" in key for key in await keys(one))
            overview = await one.get(f"{RUN}/series", name="loss", points=50)
            assert sum(overview["count"]) == 640

    run(story())


def test_a_replica_that_was_too_slow_to_compact_deletes_what_it_wrote(
    sqlite_url: str, folder_url: str, clock: Clock
) -> None:
    async def story() -> None:
        async with (
            service(sqlite_url, clock, bytes_url=folder_url) as one,
            service(sqlite_url, clock, bytes_url=folder_url) as two,
        ):
            for chunk in chunks(frames(1, 64)):
                await one.put(chunk)
            await asyncio.gather(*(compact.compact(who.app.state.database, now=clock()) for who in (one, two)))
            assert {key for key in await keys(one) if "/segments/" in key or "/pyramids/" in key} == await named(one)

    run(story())


def test_a_segment_whose_object_waited_too_long_is_not_stored(
    sqlite_url: str, folder_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clean-up may have begun to take it for an orphan."""

    async def story() -> None:
        async with service(sqlite_url, clock, bytes_url=folder_url) as one:
            for chunk in chunks(frames(1, 64)):
                await one.put(chunk)
            before, put = await named(one), store_of(one).put

            async def slowly(key: str, data: bytes) -> None:
                await put(key, data)
                clock.now += LONG_AFTER

            monkeypatch.setattr(store_of(one), "put", slowly)
            with pytest.raises(BytesUnavailable, match="waited too long"):
                await compact.compact(one.app.state.database, now=clock())
            assert await named(one) == before

    run(story())


def test_a_lost_object_is_told_and_stops_neither_ingest_nor_other_runs(
    database_url: str, folder_url: str, tmp_path: Path, clock: Clock
) -> None:
    async def story() -> None:
        async with service(database_url, clock, bytes_url=folder_url) as one:
            for name in ("ranker", "zzz"):
                for chunk in chunks(frames(1, 100), run=name):
                    await one.put(chunk)
            for file in (tmp_path / "objects").rglob("*"):
                if file.is_file() and bytes_module.run_folder("video", "ranker") in str(file):
                    file.unlink()
            answer = await one.client.get(f"{RUN}/series", params={"name": "loss"})
            assert problem(answer)[:2] == (500, "urn:lossguard:problem:bytes-gone")
            assert "gone from the object store" in answer.json()["detail"]
            assert await compact.compact(one.app.state.database, now=clock() + LATER) == 2
        async with service(database_url, clock, bytes_url=folder_url) as one:
            # Another replica would have to judge the frames that are gone: kept, not judged.
            more = chunks(frames(51, 80), attempt=SECOND, start_step=50)
            answer = await one.put(more[0])
            assert answer.status_code == 200
            assert answer.json()["judged_step"] == 100

    run(story())


def test_a_backup_says_what_it_does_not_contain(
    sqlite_url: str, folder_url: str, tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fill(**settings: Any) -> None:
        async with service(sqlite_url, clock, **settings) as one:
            for chunk in chunks(frames(1, 100), run="other" if settings else "ranker"):
                await one.put(chunk)

    run(fill())
    assert admin.main(["db", "backup", str(tmp_path / "one.db"), "--database", sqlite_url]) == 0
    assert "object" not in capsys.readouterr().err
    run(fill(bytes_url=folder_url))
    assert admin.main(["db", "backup", str(tmp_path / "two.db"), "--database", sqlite_url]) == 0
    assert "names 4 objects in object storage, which it does not contain" in capsys.readouterr().err
