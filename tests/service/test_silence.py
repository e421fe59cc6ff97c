"""Silence: a run that neither steps nor says goodbye is stalled, seen on read at once and written down by the sweep."""

from typing import Any

from chunk_trainer import FIRST, SECOND, chunks, frames
from services import Clock, Service, run, service

from lossguard_service.incidents.liveness import Watch, sweep

RUN = "/v1/projects/video/runs/ranker"


async def look(one: Service, clock: Clock) -> int:
    return await sweep(one.app.state.database, now=clock(), stalled_seconds=300.0)


async def stalls(one: Service) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = (await one.get(f"{RUN}/incidents"))["incidents"]
    return [incident for incident in listed if incident["kind"] == "stalled"]


def test_a_silent_run_gets_one_stalled_incident_which_ends_when_it_goes_on(database_url: str, clock: Clock) -> None:
    data = chunks(frames(1, 96), stop="finished")

    async def story() -> None:
        async with service(database_url, clock) as one:
            await one.put(data[0])
            assert await look(one, clock) == 0
            clock.now += 301
            assert (await one.get(RUN))["phase"] == "stalled"
            assert await look(one, clock) == 1
            assert await look(one, clock) == 0
            (incident,) = await stalls(one)
            assert (incident["number"], incident["onset_step"], incident["end_step"]) == (-1, 32, None)
            assert incident["severity"] == "warning"
            assert "301 seconds after step 32" in incident["explanation"]
            await one.put(data[1])
            (incident,) = await stalls(one)
            assert incident["end_step"] == 64
            assert (await one.get(RUN))["phase"] == "running"
            clock.now += 301
            assert await look(one, clock) == 1
            await one.put(data[2])
            assert [(one["number"], one["end_step"]) for one in await stalls(one)] == [(-1, 64), (-2, 96)]
            clock.now += 10_000
            assert await look(one, clock) == 0
            assert (await one.get(RUN))["phase"] == "finished"

    run(story())


def test_heartbeats_of_a_trainer_that_steps_keep_a_run_alive_and_others_do_not(database_url: str, clock: Clock) -> None:
    async def beat(one: Service, last_step: int | None, attempt: str = FIRST) -> int:
        body = {"attempt": attempt, "last_step": last_step, "time": clock()}
        return (await one.client.put(f"{RUN}/heartbeat", json=body)).status_code

    async def story() -> None:
        async with service(database_url, clock) as one:
            assert await beat(one, 3) == 404
            await one.put(chunks(frames(1, 32))[0])
            clock.now += 200
            assert await beat(one, 40) == 204
            clock.now += 200
            document = await one.get(RUN)
            assert (document["phase"], document["heard_step"], document["last_step"]) == ("running", 40, 32)
            assert await beat(one, 40) == 204
            assert await beat(one, 99, attempt=SECOND) == 204
            assert await beat(one, None) == 204
            clock.now += 101
            assert (await one.get(RUN))["phase"] == "stalled"
            assert await look(one, clock) == 1
            assert await beat(one, 41) == 204
            assert [incident["end_step"] for incident in await stalls(one)] == [41]

    run(story())


def test_after_an_outage_silence_counts_from_its_end(sqlite_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            database = one.app.state.database
            await one.put(chunks(frames(1, 32))[0])
            before = Watch(database, clock, stalled_seconds=300.0, sweep_seconds=15.0)
            clock.now += 1000  # nobody was there to hear
            assert await before.look() == 0
            after = Watch(database, clock, stalled_seconds=300.0, sweep_seconds=15.0)
            for _ in range(19):
                clock.now += 15
                assert await after.look() == await before.look() == 0
            clock.now += 15
            assert await after.look() == 1
            assert await before.look() == 0, "it is told already"
            assert len(await stalls(one)) == 1

    run(story())
