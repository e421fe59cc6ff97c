"""A service that is alone with a quick disk stores chunks on its event loop; whatever it meets, the end is the same."""

import asyncio
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from chunk_trainer import SECOND, chunks, frames
from services import Clock, Service, run, service
from sqlalchemy.engine import make_url

from lossguard_service.store import near
from lossguard_service.store.sqlite import SqliteDatabase

RUN = "/v1/projects/video/runs/ranker"
ALONE = {"sweep_seconds": 3600.0, "webhook_seconds": 3600.0, "compact_seconds": 3600.0}
"""Nothing in the background writes meanwhile."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every disk is quick here, however many others use this one."""
    monkeypatch.setattr(near, "QUICK_SECONDS", float("inf"))


def watched(one: Service, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What comes of each try on the event loop."""
    database, found = one.app.state.database, []
    plain = database.at_once

    async def at_once(*given: Any, **named: Any) -> Any:
        found.append(await plain(*given, **named))
        return found[-1]

    monkeypatch.setattr(database, "at_once", at_once)
    return found


@contextmanager
def beside(url: str) -> Iterator[sqlite3.Connection]:
    """Another process's connection to the file."""
    with closing(sqlite3.connect(str(make_url(url).database), isolation_level=None, check_same_thread=False)) as other:
        yield other


async def ends_as(one: Service, tmp_path: Path, data: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's state is what the writer thread makes of the same chunks."""
    monkeypatch.setattr(near, "QUICK_SECONDS", -1.0)
    async with service(f"sqlite:///{tmp_path}/threaded.db", Clock()) as other:
        found = watched(other, monkeypatch)
        await other.put_all(data)
        assert True not in found
        for path in ("", "/incidents", "/steps/70"):
            assert await one.get(RUN + path) == await other.get(RUN + path)


def test_what_is_stored_on_the_event_loop_ends_as_what_the_writer_thread_stores(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = chunks(frames(1, 256, diverges_at=150), size=8)
    second = chunks(frames(101, 160, seed=7), attempt=SECOND, start_step=100, size=8, stop="finished")

    async def story() -> None:
        async with service(sqlite_url, Clock(), **ALONE) as one:
            found = watched(one, monkeypatch)
            await one.put_all([*first[:12], first[3], *first[12:], *second])
            assert found.count(True) >= 10
            await ends_as(one, tmp_path, first + second, monkeypatch)

    run(story())


def test_what_another_process_has_locked_is_waited_for_in_the_thread_and_the_loop_goes_on(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = chunks(frames(1, 160), size=8)

    async def story() -> None:
        async with service(sqlite_url, Clock(), **ALONE) as one:
            found = watched(one, monkeypatch)
            await one.put_all(data[:-2])
            assert found[-1] is True
            with beside(sqlite_url) as other:
                other.execute("BEGIN IMMEDIATE")
                waiting = asyncio.create_task(one.put(data[-2]))
                while found[-1] is True:
                    assert not waiting.done()
                    await one.get(RUN)
                assert found[-1] is False
                assert not waiting.done()
                other.execute("ROLLBACK")
            assert (await waiting).status_code == 200
            assert (await one.put(data[-1])).status_code == 200
            assert found[-1] is True
            await ends_as(one, tmp_path, data, monkeypatch)

    run(story())


def test_what_another_process_wrote_of_the_run_is_seen_before_anything_is_stored(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = chunks(frames(1, 160), size=8)

    async def story() -> None:
        async with service(sqlite_url, Clock(), **ALONE) as one, service(sqlite_url, Clock(), **ALONE) as other:
            found = watched(other, monkeypatch)
            for place, chunk in enumerate(data):
                for each in (one, other)[:: 1 if place % 2 else -1]:
                    assert (await each.put(chunk)).status_code == 200
            assert False in found
            await ends_as(other, tmp_path, data, monkeypatch)

    run(story())


def test_a_statement_that_fails_leaves_nothing_of_its_transaction(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = chunks(frames(1, 160), size=8)

    async def story() -> None:
        async with service(sqlite_url, Clock(), **ALONE) as one:
            found = watched(one, monkeypatch)
            await one.put_all(data[:-1])
            with beside(sqlite_url) as other:
                other.execute("CREATE TRIGGER full BEFORE INSERT ON chunk_bytes BEGIN SELECT RAISE(ABORT, 'full'); END")
                before = await one.get(RUN)
                assert (await one.put(data[-1])).status_code >= 500
                assert found[-1] is False
                assert await one.get(RUN) == before
                other.execute("DROP TRIGGER full")
            assert (await one.put(data[-1])).status_code == 200
            await ends_as(one, tmp_path, data, monkeypatch)

    run(story())


def test_the_write_ahead_log_does_not_grow_while_the_event_loop_writes(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = chunks(frames(1, 400), size=1)

    async def story() -> None:
        async with service(sqlite_url, Clock(), **ALONE) as one:
            found = watched(one, monkeypatch)
            await one.put_all(data)
            # 300 commits of eight pages are 20 MB, of which the log is to hold 8.
            assert found.count(True) > 300
            assert Path(f"{make_url(sqlite_url).database}-wal").stat().st_size < 12 << 20

    run(story())


def test_a_chunk_that_comes_beside_others_is_left_to_their_common_commit(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = chunks(frames(1, 160), size=8)
    entered, go_on = threading.Event(), threading.Event()

    def hold(_connection: Any) -> None:
        entered.set()
        assert go_on.wait(60)

    async def story() -> None:
        async with service(sqlite_url, Clock(), **ALONE) as one:
            found = watched(one, monkeypatch)
            await one.put_all(data[:-1])
            holding = asyncio.create_task(one.app.state.database.write(hold))
            assert await asyncio.to_thread(entered.wait, 60)
            waiting = asyncio.create_task(one.put(data[-1]))
            tries = len(found)
            while len(found) == tries:
                await asyncio.sleep(0)
            assert found[-1] is False
            go_on.set()
            await holding
            assert (await waiting).status_code == 200
            await ends_as(one, tmp_path, data, monkeypatch)

    run(story())


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many chunks each commit of the event loop's has."""
    found: list[int] = []
    plain = near.Near.write

    def write(self: near.Near, wanted: Sequence[near.Wanted]) -> list[bool]:
        done = plain(self, wanted)
        found.append(done.count(True))
        return done

    monkeypatch.setattr(near.Near, "write", write)
    return found


def test_small_chunks_of_many_runs_that_come_together_share_a_commit(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"ranker-{place}" for place in range(6)]
    data = {name: chunks(frames(1, 96, seed=place), run=name, size=8) for place, name in enumerate(names)}

    async def story() -> None:
        async with (
            service(sqlite_url, Clock(), **ALONE) as one,
            service(f"sqlite:///{tmp_path}/b.db", Clock()) as other,
        ):
            for name in names:
                await one.put_all(data[name][:4])
            together = counted(monkeypatch)
            for later in zip(*(data[name][4:] for name in names), strict=True):
                for answer in await asyncio.gather(*(one.put(chunk) for chunk in later)):
                    assert answer.status_code == 200
            assert sum(together) == 8 * len(names)
            assert len(together) < 8 * len(names)
            monkeypatch.setattr(near, "QUICK_SECONDS", -1.0)
            for name in names:
                await other.put_all(data[name])
                path = f"/v1/projects/video/runs/{name}"
                for what in ("", "/incidents", "/steps/70"):
                    assert await one.get(path + what) == await other.get(path + what)

    run(story())


def test_of_chunks_that_come_together_one_that_is_sent_twice_is_stored_once(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = chunks(frames(1, 160), size=8)
    beside_it = chunks(frames(1, 160, seed=5), run="other", size=8)

    async def story() -> None:
        async with service(sqlite_url, Clock(), **ALONE) as one:
            for each in zip(data, beside_it, strict=True):
                sent = (each[0], each[1], each[0])
                answers = await asyncio.gather(*(one.put(chunk) for chunk in sent))
                assert [answer.status_code for answer in answers] == [200] * 3
                assert sorted(answer.json()["duplicate"] for answer in answers) == [False, False, True]
            await ends_as(one, tmp_path, data, monkeypatch)

    run(story())


def test_chunks_that_come_together_are_all_stored_although_the_statements_of_one_fail(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = chunks(frames(1, 160), size=8)
    failing = chunks(frames(1, 160, seed=5), run="failing", size=8)

    async def story() -> None:
        async with service(sqlite_url, Clock(), **ALONE) as one:
            for each in zip(data[:-1], failing[:-1], strict=True):
                await one.put_all(each)
            with beside(sqlite_url) as other:
                other.execute(
                    "CREATE TRIGGER full BEFORE INSERT ON chunk_bytes WHEN NEW.run_id = "
                    "(SELECT id FROM runs WHERE name = 'failing') BEGIN SELECT RAISE(ABORT, 'full'); END"
                )
                first, second = await asyncio.gather(one.put(data[-1]), one.put(failing[-1]))
                assert (first.status_code, second.status_code >= 500) == (200, True)
                other.execute("DROP TRIGGER full")
            assert (await one.put(failing[-1])).status_code == 200
            await ends_as(one, tmp_path, data, monkeypatch)

    run(story())


def test_a_disk_that_is_slow_is_left_to_the_writer_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = near.Pace()
    with closing(sqlite3.connect(tmp_path / "any.db")) as connection:
        assert not pace.is_quick
        for _ in range(8):
            pace.commit(connection)
        assert pace.is_quick
        monkeypatch.setattr(near, "QUICK_SECONDS", -1.0)
        pace.commit(connection)
        assert pace.is_quick  # one is no pace
        for _ in range(8):
            pace.commit(connection)
        assert not pace.is_quick


def test_the_event_loops_connection_closes_with_the_database(sqlite_url: str) -> None:
    async def story() -> SqliteDatabase:
        async with service(sqlite_url, Clock(), **ALONE) as one:
            await one.put_all(chunks(frames(1, 160), size=8))
            found: SqliteDatabase = one.app.state.database._database
            assert found._near.is_open
            return found

    assert not run(story())._near.is_open
