"""Webhooks against a real receiver on loopback that fails, is slow, and recovers: each state once, signed, in order."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from chunk_trainer import SECOND, chunks, frames
from pydantic import ValidationError
from services import Clock, Service, run, service

from lossguard.wire.frame import Frames
from lossguard_service import webhooks
from lossguard_service.incidents.liveness import sweep
from lossguard_service.settings import Settings
from lossguard_service.store import outbox
from lossguard_service.webhooks import Webhooks, destinations

NEVER = 10_000.0
"""Seconds between the service's own rounds: tests ask for each round."""


@dataclass
class Receiver:
    """A receiver: answers with the statuses of `script`, then 200.

    Attributes:
        heard: headers and body of each request, in order, refused ones too.
        hold: while set, requests wait for it before they are answered.
        waits: set when a request has come and waits.
    """

    port: int = 0
    script: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    heard: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    hold: asyncio.Event | None = None
    waits: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def states(self) -> list[str]:
        return [json.loads(body)["state"] for _, body in self.heard]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                try:
                    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
                except asyncio.IncompleteReadError:
                    return
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                self.heard.append((headers, await reader.readexactly(int(headers["content-length"]))))
                if self.hold is not None:
                    self.waits.set()
                    await self.hold.wait()
                status, extra = self.script.pop(0) if self.script else (200, {})
                told = "".join(f"{name}: {value}\r\n" for name, value in extra.items())
                writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\n{told}\r\n".encode())
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    one = Receiver()
    server = await asyncio.start_server(one.answer, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    async with server:
        yield one


@asynccontextmanager
async def told(url: str, clock: Callable[[], float], one: Receiver, **more: Any) -> AsyncIterator[Service]:
    settings = {"webhook_urls": one.url, "webhook_seconds": NEVER, "sweep_seconds": NEVER, "webhook_secret": "s3cret"}
    async with service(url, clock, **(settings | more)) as started:
        yield started


async def deliver(one: Service) -> int:
    count: int = await one.app.state.webhooks.deliver()
    return count


async def waiting(one: Service) -> int:
    return await outbox.waiting(one.app.state.database)


def sick() -> list[bytes]:
    return chunks(frames(1, 400, diverges_at=220), run="sick <!channel>")


def test_a_divergence_is_told_once_signed_and_never_again(database_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with receiver() as ear, told(database_url, clock, ear, public_url="https://loss.example/") as one:
            await one.put_all(sick())
            await deliver(one)
            states = ear.states
            assert states in (["full"], ["open", "full"])
            headers, body = ear.heard[-1]
            document = json.loads(body)
            assert (document["project"], document["run"], document["event"]) == ("video", "sick <!channel>", "incident")
            assert document["incident"]["kind"] == "full_divergence"
            assert document["url"] == (
                f"https://loss.example/runs/video/sick%20%3C%21channel%3E/incidents/{document['incident']['sequence']}"
            )
            assert headers["lossguard-notice"] == str(document["id"])
            assert headers["lossguard-timestamp"] == str(int(clock()))
            signed = headers["lossguard-timestamp"].encode() + b"." + body
            assert headers["lossguard-signature"] == "v1=" + hmac.new(b"s3cret", signed, hashlib.sha256).hexdigest()
            for chunk in sick():
                await one.put(chunk)
            assert await deliver(one) == 0
            # A restart from before it takes the divergence back.
            for chunk in chunks(frames(101, 320), run="sick <!channel>", attempt=SECOND, start_step=100):
                await one.put(chunk)
            await deliver(one)
            assert ear.states == [*states, "resolved"]
            assert json.loads(ear.heard[-1][1])["incident"]["superseded"] is True
            assert await waiting(one) == 0

    run(story())


def test_silence_is_told_and_its_end(database_url: str, clock: Clock) -> None:
    async def story() -> None:
        data = chunks(frames(1, 96))
        async with receiver() as ear, told(database_url, clock, ear) as one:
            keys = [where.key for where in destinations(one.app.state.settings)]
            database = one.app.state.database
            await one.put(data[0])
            clock.now += 301
            for _ in range(2):
                await sweep(database, now=clock(), stalled_seconds=300.0, destinations=keys)
            assert await deliver(one) == 1
            body = {"attempt": "a" * 32, "last_step": 40, "time": clock()}
            beat = await one.client.put("/v1/projects/video/runs/ranker/heartbeat", json=body)
            assert beat.status_code == 204
            assert await deliver(one) == 1
            assert ear.states == ["open", "resolved"]
            clock.now += 301
            await sweep(database, now=clock(), stalled_seconds=300.0, destinations=keys)
            await one.put(data[1])
            assert await deliver(one) == 2
            assert ear.states == ["open", "resolved", "open", "resolved"]

    run(story())


def test_a_receiver_that_fails_is_asked_later_and_hears_everything_in_order_when_it_is_back(
    database_url: str, clock: Clock
) -> None:
    async def story() -> None:
        async with receiver() as ear, told(database_url, clock, ear) as one:
            ear.script = [(500, {}), (503, {"retry-after": "30"}), (429, {})]
            data = chunks(frames(1, 96))
            await one.put(data[0])
            clock.now += 301
            keys = [where.key for where in destinations(one.app.state.settings)]
            await sweep(one.app.state.database, now=clock(), stalled_seconds=300.0, destinations=keys)
            await one.put(data[1])
            assert await deliver(one) == 0
            assert await deliver(one) == 0
            assert len(ear.heard) == 1  # the second round came too early
            clock.now += 1.1
            assert await deliver(one) == 0
            clock.now += 29
            assert await deliver(one) == 0
            assert len(ear.heard) == 2  # it asked for 30 seconds
            clock.now += 10
            assert await deliver(one) == 0
            assert len(ear.heard) == 3
            clock.now += 300
            assert await deliver(one) == 2
            assert ear.states == ["open", "open", "open", "open", "resolved"]
            assert len({headers["lossguard-notice"] for headers, _ in ear.heard}) == 2
            assert await waiting(one) == 0

    run(story())


def test_a_receiver_that_is_gone_hears_when_it_listens_and_after_a_day_nobody_insists(
    sqlite_url: str, clock: Clock
) -> None:
    async def story() -> None:
        async with receiver() as ear:
            async with receiver() as gone:
                nowhere = gone.url
            async with told(sqlite_url, clock, ear, webhook_urls=f"{nowhere} {ear.url}") as one:
                for chunk in sick():
                    await one.put(chunk)
                assert await deliver(one) == len(ear.heard) > 0  # the one that is gone holds up no other
                left = await waiting(one)
                assert left > 0
                clock.now += webhooks.KEEP_SECONDS + 1
                await deliver(one)
                assert await waiting(one) == 0

    run(story())


@pytest.mark.parametrize("status", [301, 400, 404, 410])
def test_a_refusal_is_final(sqlite_url: str, clock: Clock, status: int) -> None:
    async def story() -> None:
        async with receiver() as ear, told(sqlite_url, clock, ear) as one:
            ear.script = [(status, {"location": ear.url})] * 9
            for chunk in sick():
                await one.put(chunk)
            assert await deliver(one) == 0
            asked = len(ear.heard)
            clock.now += 3600
            assert await deliver(one) == 0
            assert len(ear.heard) == asked
            assert await waiting(one) == 0

    run(story())


def test_ingest_does_not_wait_for_a_slow_receiver_and_two_replicas_send_nothing_twice(
    database_url: str, clock: Clock
) -> None:
    async def story() -> None:
        data = sick()
        async with receiver() as ear, told(database_url, clock, ear) as one, told(database_url, clock, ear) as other:
            for chunk in data[:-2]:
                await one.put(chunk)
            ear.hold = asyncio.Event()
            first = asyncio.create_task(deliver(one))
            await ear.waits.wait()
            # While the receiver keeps the first replica waiting, chunks are taken, and the second has nothing to send.
            await other.put_all(data[-2:])
            assert await deliver(other) == 0
            ear.hold.set()
            ear.hold = None
            await first
            await asyncio.gather(*(deliver(which) for which in (one, other) * 3))
            notices = [headers["lossguard-notice"] for headers, _ in ear.heard]
            assert len(notices) == len(set(notices))
            assert await waiting(one) == 0

    run(story())


def test_an_answer_that_does_not_come_is_a_failure(sqlite_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with receiver() as ear, told(sqlite_url, clock, ear) as one:
            for chunk in sick():
                await one.put(chunk)
            where = destinations(one.app.state.settings)
            impatient = Webhooks(one.app.state.database, where, clock, answer_seconds=0.05)
            ear.hold = asyncio.Event()
            assert await impatient.deliver() == 0
            left = await waiting(one)
            assert left > 0
            ear.hold.set()
            ear.hold = None
            clock.now += 2
            # Time enough for an answer on a machine that is busy.
            assert await Webhooks(one.app.state.database, where, clock).deliver() == left

    run(story())


def test_a_replica_that_dies_while_it_sends_loses_nothing(database_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with receiver() as ear, told(database_url, clock, ear) as one, told(database_url, clock, ear) as other:
            for chunk in sick():
                await one.put(chunk)
            (where,) = destinations(one.app.state.settings)
            # Claimed, and then no more is heard of that replica.
            claimed = await outbox.claim(
                one.app.state.database, where.key, now=clock(), claim_seconds=webhooks.CLAIM_SECONDS
            )
            assert claimed is not None
            assert await deliver(other) == 0
            clock.now += webhooks.CLAIM_SECONDS
            assert await deliver(other) >= 1
            assert ear.heard[0][0]["lossguard-notice"] == str(claimed.id)
            assert await waiting(other) == 0

    run(story())


def test_slack_gets_its_form_and_a_runs_name_calls_no_channel(sqlite_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with (
            receiver() as ear,
            told(sqlite_url, clock, ear, webhook_urls=None, slack_webhook_urls=ear.url, webhook_secret=None) as one,
        ):
            for chunk in sick():
                await one.put(chunk)
            assert await deliver(one) >= 1
            headers, body = ear.heard[-1]
            document = json.loads(body)
            assert set(document) == {"text"}
            assert document["text"].startswith(
                ":rotating_light: *video/sick &lt;!channel&gt;*: full divergence since step 2"
            )
            assert "task click" in document["text"]
            assert "<!" not in document["text"]
            assert "lossguard-signature" not in headers

    run(story())


def test_without_addresses_nothing_is_written(sqlite_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            for chunk in sick():
                await one.put(chunk)
            assert await waiting(one) == 0
            assert await deliver(one) == 0

    run(story())


def test_an_address_that_is_none_is_refused_without_being_repeated() -> None:
    with pytest.raises(ValidationError, match="https://") as caught:
        Settings(webhook_urls="hooks.example/T0/secret")
    assert "T0/secret" not in str(caught.value)


def test_a_notice_names_the_batches_at_which_the_incident_began(database_url: str, clock: Clock) -> None:
    plain = frames(1, 400, diverges_at=220)
    numbers = np.column_stack([plain.scalars, 7e7 + plain.steps, np.full(len(plain), 9.0)])
    schema = replace(plain.schema, scalars=(*plain.schema.scalars, "batch_id", "batch_file"))
    data = chunks(Frames.of(schema, plain.steps, numbers, plain.stats, times=plain.times))

    async def story() -> None:
        async with receiver() as ear, told(database_url, clock, ear, slack_webhook_urls=ear.url) as one:
            await one.put_all(data)
            await deliver(one)
            bodies = [json.loads(body) for _, body in ear.heard]
            found = next(one for one in bodies if one.get("state") == "full")
            onset = found["incident"]["onset_step"]
            (first,) = [batch for batch in found["batches"] if "onset" in batch["note"]]
            assert first == {"step": onset, "batch_id": f"9:{70_000_000 + onset}", "note": "onset"}
            assert [batch["step"] for batch in found["batches"]][:2] == [onset - 1, onset]
            assert any(
                f"\nBatches: step {onset - 1}: 9:{70_000_000 + onset - 1}, step {onset}: " in one["text"]
                for one in bodies
                if "text" in one
            )
            about = f"/v1/projects/{found['project']}/runs/{found['run']}/incidents/{found['incident']['sequence']}"
            assert (await one.client.get(about)).json()["batches"] == found["batches"]
            # A restart from before it: what is stored at its steps now is another attempt's.
            await one.put_all(chunks(frames(101, 320), attempt=SECOND, start_step=100))
            await deliver(one)
            resolved = [body for _, body in ear.heard if json.loads(body).get("state") == "resolved"]
            assert [json.loads(body)["batches"] for body in resolved] == [[]]
            assert (await one.client.get(about)).json()["batches"] == []

    run(story())


def test_a_notice_goes_out_also_where_the_batches_cannot_be_read(
    sqlite_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> Any:
        raise ValueError("rotten")

    async def story() -> None:
        async with receiver() as ear, told(sqlite_url, clock, ear) as one:
            await one.put_all(sick())
            # What is stored cannot be broken so that only this read sees it.
            monkeypatch.setattr(webhooks, "read_batches", broken)
            assert await deliver(one) >= 1
            assert json.loads(ear.heard[-1][1])["batches"] == []

    run(story())
