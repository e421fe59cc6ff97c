"""Each token has its own rate; who is refused is told for how long, and nothing of it was stored."""

import pytest
from chunk_trainer import chunks, frames
from services import Clock, run, service

from lossguard.wire.chunk import peek
from lossguard_service.errors import TooMany
from lossguard_service.rates import Rates


def test_who_stays_below_the_rate_is_never_refused_and_the_others_wait_as_told() -> None:
    clock = Clock()
    rates = Rates(2.0, 100.0, clock)
    for _ in range(200):
        rates.take("slow", 40)
        clock.now += 0.5
    for _ in range(20):
        rates.take("fast", 1)
    with pytest.raises(TooMany) as refused:
        rates.take("fast", 1)
    clock.now += float(refused.value.headers["retry-after"])
    rates.take("fast", 1)


def test_a_chunk_may_be_larger_than_the_room_and_is_worked_off() -> None:
    clock = Clock()
    rates = Rates(None, 100.0, clock)
    rates.take("one", 5000)
    rates.take("another", 10)
    with pytest.raises(TooMany) as refused:
        rates.take("one", 1)
    assert refused.value.headers["retry-after"] == "41"
    clock.now -= 1e6
    clock.now += 41
    with pytest.raises(TooMany):
        rates.take("one", 1)
    clock.now += 41
    rates.take("one", 1)


def test_the_service_answers_429_and_takes_the_chunk_later(sqlite_url: str) -> None:
    async def story() -> None:
        clock = Clock()
        async with service(sqlite_url, clock, token_chunks_per_second=0.1) as one:
            first, second = chunks(frames(1, 32), size=16)[:2]
            assert (await one.put(first)).status_code == 200
            answer = await one.put(second)
            assert (answer.status_code, answer.json()["type"]) == (429, "urn:lossguard:problem:too-many")
            clock.now += float(answer.headers["retry-after"])
            assert (await one.put(second)).json()["next_index"] == peek(second).index + 1

    run(story())
