"""Several replicas, real processes over one real PostgreSQL: the end state is the serial one, killed or not."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from chunk_trainer import SECOND, chunks, frames
from services import Clock, run, service
from test_ingest_laws import serially, state

from lossguard.wire.chunk import Checkpoint, peek


def story_chunks() -> list[bytes]:
    block = frames(1, 320, diverges_at=150)
    return chunks(block, size=16, stop="failed", checkpoints=[Checkpoint(100, 1.7e9, "ckpt-100", True)])


@contextmanager
def replica(database: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service process and its address; killed at the end if it still lives."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lossguard_service", "--port", "0", "--database", database, "--log-level", "error"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("Lossguard listens on "), line
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def put(client: httpx.AsyncClient, urls: list[str], data: bytes) -> int:
    """Send a chunk until somebody took it, each time to the next replica, as a sidecar would; returns the tries."""
    identity = peek(data)
    path = f"/v1/projects/video/runs/{identity.run}/attempts/{identity.attempt}/chunks/{identity.index}"
    for tries in range(1, 200):
        try:
            answer = await client.put(urls[tries % len(urls)] + path, content=data)
        except httpx.TransportError:
            continue
        if answer.status_code == 200:
            return tries
        assert answer.status_code == 503, answer.text
    raise AssertionError("nobody takes it")


async def read(url: str) -> dict[str, Any]:
    async with service(url, Clock()) as one:
        return await state(one)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What sending the chunks one by one gives."""
    found: dict[str, Any] = run(serially(f"sqlite:///{tmp_path_factory.mktemp('serial') / 'x.db'}", story_chunks()))
    return found


def test_two_replicas_that_take_one_run_at_once_end_in_the_serial_state(
    postgres_url: str, expected: dict[str, Any]
) -> None:
    data = story_chunks()
    with ExitStack() as stack:
        urls = [stack.enter_context(replica(postgres_url))[1] for _ in range(2)]

        async def story() -> None:
            async with httpx.AsyncClient(timeout=30) as client:
                # Every chunk goes to both, all at once: half of them are duplicates, most are early.
                await asyncio.gather(*(put(client, order, chunk) for chunk in data for order in (urls, urls[::-1])))

        run(story())
    assert run(read(postgres_url)) == expected


@pytest.mark.parametrize("seed", range(2))
def test_a_replica_that_is_killed_in_the_middle_of_requests_loses_and_doubles_nothing(
    postgres_url: str, expected: dict[str, Any], seed: int
) -> None:
    data = story_chunks()
    random.Random(seed).shuffle(data)
    with replica(postgres_url) as (victim, first), replica(postgres_url) as (_, second):

        async def story() -> None:
            async with httpx.AsyncClient(timeout=30) as client:
                halfway = asyncio.Event()
                done = 0

                async def send(chunk: bytes, order: list[str]) -> None:
                    nonlocal done
                    await put(client, order, chunk)
                    done += 1
                    if done >= 3 + seed:
                        halfway.set()

                async def kill() -> None:
                    # The rest are in flight at both replicas when this one dies.
                    await halfway.wait()
                    victim.send_signal(signal.SIGKILL)

                sends = [send(chunk, [first, second] if n % 2 else [second, first]) for n, chunk in enumerate(data)]
                await asyncio.gather(kill(), *sends)

        run(story())
        assert victim.wait() == -signal.SIGKILL
    assert run(read(postgres_url)) == expected


def test_a_replica_goes_on_where_another_one_left_off_after_a_restart_of_training(postgres_url: str) -> None:
    first = chunks(frames(1, 320, diverges_at=150), size=16)
    second = chunks(frames(101, 320, seed=7), attempt=SECOND, start_step=100, size=16, stop="finished")

    async def story() -> None:
        async with service(postgres_url, Clock()) as one, service(postgres_url, Clock()) as other:
            for place, chunk in enumerate(first + second):
                answer = await (one, other)[place % 2].put(chunk)
                assert answer.status_code == 200
                assert answer.json()["duplicate"] is False
            reply = answer.json()
            assert (reply["status"], reply["judged_step"], reply["attempt"]) == ("healthy", 320, 2)
            # The replica that did not judge last is asked: everything is in the database.
            assert (await one.get("/v1/projects/video/runs/ranker"))["judged_step"] == 320

    run(story())
