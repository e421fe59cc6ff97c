"""Objects have one owner: a store that is another one takes nothing, and a copy of the database deletes nothing."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from chunk_trainer import chunks, frames
from services import Clock, Service, run, service

from lossguard_service import admin
from lossguard_service.store import backup, cleanup, compact, ownership, schema
from lossguard_service.store.bytes import BytesUnavailable

RUN = "/v1/projects/video/runs/ranker"
ROUND = 60.0
HOUR = 3600.0
DAY = 24 * HOUR
pytestmark = pytest.mark.usefixtures("all_in_objects", "small_segments")


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment is full with 64 frames."""
    monkeypatch.setattr(compact, "SEGMENT_FRAMES", 64)


@pytest.fixture
def clock() -> Clock:
    """It begins now, as files are dated by the real one."""
    return Clock(time.time())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "objects"


async def rounds(one: Service, clock: Clock, count: int = 3) -> int:
    deleted = 0
    for _ in range(count):
        clock.now += ROUND
        deleted += await cleanup.clean_up(one.app.state.database, now=clock(), round_seconds=ROUND)
    return deleted


def files(store: Path) -> set[str]:
    return {each.name for each in store.rglob("*") if each.is_file() and each.name not in ("owner", "probe")}


async def put(one: Service, data: list[bytes]) -> set[int]:
    return {(await one.put(chunk)).status_code for chunk in data}


async def mark(one: Service) -> Any:
    database = one.app.state.database
    return await ownership._marked(ownership._objects(database), database.bytes.mark)


def test_a_store_that_is_not_mounted_is_not_made_anew(
    database_url: str, store: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    data, url = chunks(frames(1, 320)), f"file://{store}"
    away = store.with_name("away")

    async def story() -> None:
        async with service(database_url, clock, bytes_url=url) as one:
            assert await put(one, data[:3]) == {200}
            store.rename(away)
            store.mkdir()  # the empty folder where it was mounted
            answer = await one.put(data[3])
            assert answer.status_code == 503
            assert "is the folder mounted" in answer.json()["detail"]
            assert (await one.client.get("/readyz?bytes=true")).status_code == 503
            assert await rounds(one, clock) == 0
            shutil.rmtree(store)
            store.write_text("no folder")  # whatever is asked there is an error
            assert await rounds(one, clock) == 0
            assert "objects are cleaned up later" in caplog.text
            store.unlink()
        async with service(database_url, clock, bytes_url=url) as one:
            assert (await one.client.get("/readyz")).status_code == 200
            assert (await one.put(data[3])).status_code == 503
            assert files(store) == set(), "nothing was written into the wrong place"
            shutil.rmtree(store)
            away.rename(store)
            assert await put(one, data[3:]) == {200}
            assert (await one.client.get("/readyz?bytes=true")).status_code == 200
            assert (await one.get(f"{RUN}/series", name="loss", points=500))["first"] == list(range(1, 321))

    run(story())


def test_moved_objects_are_taken_once_an_operator_says_so(
    sqlite_url: str, store: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    data = chunks(frames(1, 64))

    async def story(url: str, expected: int) -> None:
        async with service(sqlite_url, clock, bytes_url=url) as one:
            assert await put(one, data) == {expected}

    run(story(f"file://{store}", 200))
    other = f"file://{store.with_name('other')}"
    data[:] = chunks(frames(1, 96))[2:]
    run(story(other, 503))
    assert admin.main(["db", "own-objects", "--database", sqlite_url, "--bytes-url", other]) == 0
    assert "are this database's" in capsys.readouterr().err
    run(story(other, 200))
    assert admin.main(["db", "own-objects", "--database", sqlite_url, "--bytes-url", "file:///"]) == 2
    assert admin.main(["db", "own-objects", "--database", sqlite_url]) == 2


@pytest.mark.parametrize("first", ["copy", "original"])
def test_a_copy_of_the_database_deletes_nothing_that_the_original_knows(
    tmp_path: Path, store: Path, clock: Clock, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    original, copy = f"sqlite:///{tmp_path / 'one.db'}", f"sqlite:///{tmp_path / 'two.db'}"
    data, url = chunks(frames(1, 640)), f"file://{store}"

    async def story() -> None:
        async with service(original, clock, bytes_url=url) as one:
            assert await put(one, data[:10]) == {200}
            assert await rounds(one, clock) == 0
            await backup.back_up(original, tmp_path / "backup")
            backup.restore(tmp_path / "backup", copy)
            async with service(copy, clock, bytes_url=url) as two:
                both = (two, one) if first == "copy" else (one, two)
                assert await put(one, data[10:]) == {200}
                known = files(store)
                for _ in range(40):
                    clock.now += HOUR
                    for each in both:
                        await compact.compact(each.app.state.database, now=clock())
                        await rounds(each, clock, 1)
                assert known <= files(store)
                assert await mark(one) == ownership.DISPUTED
                assert "are another database's, or it says so too" in caplog.text
                assert (await two.put(data[10])).status_code == 200, "it may read and write"
                assert (await one.get(f"{RUN}/series", name="loss", points=1000))["first"] == list(range(1, 641))
                await ownership.claim(one.app.state.database, now=clock())
                deleted = 0
                for _ in range(3):
                    clock.now += DAY
                    assert await rounds(two, clock) == 0
                    deleted += await rounds(one, clock)
                assert deleted > 0
                assert await mark(one) != ownership.DISPUTED
                assert (await one.get(f"{RUN}/series", name="loss", points=1000))["first"] == list(range(1, 641))

    run(story())


def test_a_copy_that_was_told_so_deletes_nothing_while_the_original_rests(
    tmp_path: Path, store: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    original, copy = f"sqlite:///{tmp_path / 'one.db'}", f"sqlite:///{tmp_path / 'two.db'}"
    data, url = chunks(frames(1, 640)), f"file://{store}"

    async def begin() -> set[str]:
        async with service(original, clock, bytes_url=url) as one:
            assert await put(one, data[:10]) == {200}
            await rounds(one, clock)
            await backup.back_up(original, tmp_path / "backup")
            assert await put(one, data[10:]) == {200}
        return files(store)

    async def alone() -> None:
        async with service(copy, clock, bytes_url=url) as two:
            for _ in range(40):
                clock.now += HOUR
                await compact.compact(two.app.state.database, now=clock())
                await rounds(two, clock, 1)
            assert await put(two, data[10:12]) == {200}

    async def back() -> None:
        async with service(original, clock, bytes_url=url) as one:
            assert (await one.get(f"{RUN}/series", name="loss", points=1000))["first"] == list(range(1, 641))
            await compact.compact(one.app.state.database, now=clock())
            clock.now += DAY
            assert await rounds(one, clock) + await rounds(one, clock) > 0, "it still owns them"

    known = run(begin())
    backup.restore(tmp_path / "backup", copy)
    assert admin.main(["db", "disown-objects", "--database", copy]) == 0
    assert "deletes no objects until" in capsys.readouterr().err
    run(alone())
    assert known <= files(store)
    run(back())


def test_replicas_renew_the_secret_and_go_on_deleting(database_url: str, store: Path, clock: Clock) -> None:
    async def story() -> None:
        url = f"file://{store}"
        async with (
            service(database_url, clock, bytes_url=url) as one,
            service(database_url, clock, bytes_url=url) as two,
        ):
            assert await put(one, chunks(frames(1, 640), stop="finished")) == {200}
            await compact.compact(one.app.state.database, now=clock())
            marks, deleted = {await mark(one)}, 0
            for _ in range(8):
                clock.now += 6 * HOUR
                deleted += await rounds(one, clock, 2) + await rounds(two, clock, 2)
                marks.add(await mark(one))
            assert deleted == 20
            assert len(marks) == 9

    run(story())


def test_a_renewal_that_was_cut_short_is_finished_by_the_next_one(database_url: str, store: Path, clock: Clock) -> None:
    async def story() -> None:
        async with service(database_url, clock, bytes_url=f"file://{store}") as one:
            database = one.app.state.database
            before = await mark(one)
            pending = sa.update(schema.object_folders).values(next_secret="half")
            await database.write(lambda connection: connection.execute(pending))
            assert not await ownership.own(database, now=clock(), round_seconds=ROUND)
            assert await mark(one) == "half" != before
            assert await ownership.own(database, now=clock(), round_seconds=ROUND)
            # And one whose mark was put already.
            await database.write(
                lambda connection: connection.execute(pending.values(secret="old", next_secret="half"))
            )
            assert not await ownership.own(database, now=clock(), round_seconds=ROUND)
            assert await ownership.own(database, now=clock(), round_seconds=ROUND)

    run(story())


def test_a_database_without_a_store_says_what_to_set(sqlite_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            assert await rounds(one, clock) == 0
            await ownership.identify(one.app.state.database, now=clock())
            with pytest.raises(BytesUnavailable, match="set bytes_url"):
                await ownership.hold(one.app.state.database)

    run(story())
