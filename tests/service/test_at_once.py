"""On PostgreSQL an ordinary chunk is one statement; whatever it meets, the end state is that of the ordinary way."""

import asyncio
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from chunk_trainer import FIRST, SECOND, chunks, frames
from postgres import psql
from services import Clock, Service, run, service
from sqlalchemy.engine import make_url

from lossguard_service.incidents import detectors
from lossguard_service.store import schema
from lossguard_service.store.database import open_database

RUN = "/v1/projects/video/runs/ranker"
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lossguard'"


class Counted:
    """Counts what goes each way."""

    def __init__(self, one: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at_once: list[bool] = []
        self.writes = 0
        database = one.app.state.database
        plain, write = database.at_once, database.write

        async def at_once(*given: Any, **named: Any) -> Any:
            found = await plain(*given, **named)
            self.at_once.append(bool(found))
            return found

        async def counted(*given: Any) -> Any:
            self.writes += 1
            return await write(*given)

        monkeypatch.setattr(database, "at_once", at_once)
        monkeypatch.setattr(database, "write", counted)


async def ends_as(one: Service, url: str, data: list[bytes]) -> None:
    """The run's state is what sending the chunks one by one to SQLite gives."""
    async with service(url, Clock()) as other:
        await other.put_all(data)
        for path in ("", "/incidents", "/steps/70"):
            assert await one.get(RUN + path) == await other.get(RUN + path)


def test_what_is_ordinary_is_one_statement_and_all_else_goes_the_ordinary_way(
    postgres_url: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = chunks(frames(1, 256, diverges_at=150), size=16)
    second = chunks(frames(101, 160, seed=7), attempt=SECOND, start_step=100, size=16, stop="finished")

    async def story() -> None:
        async with service(postgres_url, Clock()) as one:
            counted = Counted(one, monkeypatch)
            await one.put_all([*first[:8], first[3], *first[8:], *second])
            # Opened; sent twice; an incident; a restart: those take a lock. The seven and more between them do not.
            assert counted.at_once.count(True) >= 9
            assert counted.writes >= 4
            assert counted.at_once.count(True) + counted.writes == len(first) + len(second) + 1
            await ends_as(one, sqlite_url, first + second)

    run(story())


def test_a_replica_that_remembers_an_older_state_of_the_run_stores_nothing_by_it(
    postgres_url: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = chunks(frames(1, 160), size=16)

    async def story() -> None:
        async with service(postgres_url, Clock()) as one, service(postgres_url, Clock()) as other:
            counted = Counted(other, monkeypatch)
            for place, chunk in enumerate(data):
                # The other one remembers the run as of its own last chunk, in which the next one is one that is here.
                for each in (one, other)[:: 1 if place % 2 else -1]:
                    assert (await each.put(chunk)).status_code == 200
            assert False in counted.at_once
            await ends_as(other, sqlite_url, data)

    run(story())


@pytest.mark.parametrize("elsewhere", [False, True], ids=["the same replica", "another replica"])
def test_a_heartbeat_between_two_chunks_makes_nobody_judge_old_frames_anew(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    data = chunks(frames(1, 160), size=16)

    async def story() -> None:
        quiet = {"sweep_seconds": 3600.0, "webhook_seconds": 3600.0, "compact_seconds": 3600.0}
        async with service(postgres_url, Clock(), **quiet) as one, service(postgres_url, Clock(), **quiet) as other:
            counted = Counted(one, monkeypatch)
            await one.put_all(data[:-2])
            with monkeypatch.context() as patch:
                patch.setattr(detectors.chunks, "decoded", lambda *_: pytest.fail("old frames are read"))
                for place, chunk in enumerate(data[-2:]):
                    beat = {"attempt": FIRST, "last_step": 150 + place}
                    answer = await (other if elsewhere else one).client.put(RUN + "/heartbeat", json=beat)
                    assert answer.status_code == 204
                    assert (await one.put(chunk)).json()["judged_step"] == 144 + 16 * place
                    # Who took the heartbeat knows what it changed; another replica finds that something did.
                    assert counted.at_once[-1] is not elsewhere
            assert (await one.get(RUN))["heard_step"] == 151

    run(story())


@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "all at once"])
def test_connections_that_are_cut_lose_and_double_no_chunk(postgres_url: str, sqlite_url: str, at_once: bool) -> None:
    """Every connection is cut between chunks; none of the requests notices, or is answered that it may come again."""
    data = chunks(frames(1, 160), size=16)

    async def send(one: Service, chunk: bytes) -> None:
        for _ in range(20):
            answer = await one.put(chunk)
            if answer.status_code == 200:
                return
            assert at_once
            assert answer.status_code == 503
        pytest.fail("it is never taken")

    async def story() -> None:
        async with service(postgres_url, Clock()) as one:
            if at_once:
                cut = asyncio.to_thread(psql, make_url(postgres_url), CUT)
                await send(one, data[0])
                await asyncio.gather(cut, *(send(one, chunk) for chunk in data[1:]))
            else:
                for chunk in data:
                    await send(one, chunk)
                    await asyncio.to_thread(psql, make_url(postgres_url), CUT)
            await ends_as(one, sqlite_url, data)

    run(story())


def test_bytes_that_are_compressed_already_are_stored_as_they_are(postgres_url: str) -> None:
    """PostgreSQL would try to compress them again, in vain, for half of its CPU time."""
    columns = [(schema.chunk_bytes, "data"), (schema.segment_parts, "data"), (schema.pyramid, "data")]

    async def story() -> None:
        async with service(postgres_url, Clock()):
            pass
        database = open_database(postgres_url)
        try:
            for table, column in [*columns, (schema.detector_states, "state")]:
                query = sa.text(
                    "SELECT attstorage::text FROM pg_attribute WHERE attrelid = to_regclass(:name) AND attname = :part"
                ).bindparams(name=table.name, part=column)
                assert await database.read(partial(sa.Connection.scalar, statement=query)) == "e", table.name
        finally:
            await database.close()

    run(story())
