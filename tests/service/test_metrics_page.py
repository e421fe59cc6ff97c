"""/metrics: clean by promtool, only names of the list, the run's state as it is, nothing of finished runs.

What every replica tells is the same on every replica; what a replica counts about itself says so in its name.
"""

import gzip
import math
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa
from chunk_trainer import FIRST, chunks, frames
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from services import Clock, Service, run, service

from lossguard.wire.chunk import Chunk, ChunkId, encode
from lossguard.wire.frame import Frames
from lossguard_service.app import GOODBYE_SECONDS
from lossguard_service.metrics import names
from lossguard_service.metrics.exposition import Page, labels

CLOSED = "http://127.0.0.1:9/"
OWN = ("lossguard_replica_", "process_")


async def scrape(one: Service) -> str:
    answer = await one.client.get("/metrics")
    assert answer.status_code == 200, answer.text
    return answer.text


def value(text: str, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return None


def test_a_diverging_run_shows_and_a_finished_one_leaves(database_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(database_url, clock) as one:
            for chunk in chunks(frames(1, 400, diverges_at=220), run="sick"):
                await one.put(chunk)
            for chunk in chunks(frames(1, 64, nan_at=60), run="well", stop="finished"):
                await one.put(chunk)
            text = await scrape(one)
            assert value(text, "lossguard_run_status", run="sick", status="diverged") == 1
            assert value(text, "lossguard_run_status", run="sick", status="healthy") == 0
            assert value(text, "lossguard_run_last_step", project="video", run="sick") == 400
            assert (
                value(text, "lossguard_run_open_incidents", run="sick", kind="full_divergence", severity="critical")
                == 1
            )
            assert value(text, "lossguard_run_steps_per_second", run="sick") == pytest.approx(10.0)
            assert value(text, "lossguard_run_clipping_ratio_max", run="sick") == pytest.approx(0.4)
            assert value(text, "lossguard_run_layer_clipping_ratio", run="sick", layer="heads/click/kernel") is not None
            assert math.isnan(value(text, "lossguard_run_loss", run="well") or 0.0)
            assert value(text, "lossguard_run_frames_total", run="well") == 64
            clock.now += GOODBYE_SECONDS + 1
            text = await scrape(one)
            assert value(text, "lossguard_run_last_step", run="well") is None
            assert value(text, "lossguard_run_stalled", run="sick") == 1

    run(story())


def _families(text: str) -> Iterable[Metric]:
    return text_string_to_metric_families(text)


def with_batches(plain: Frames) -> Frames:
    """Of batches whose numbers are 70,000,000 and the step."""
    schema = replace(plain.schema, scalars=(*plain.schema.scalars, "batch_id"))
    numbers = np.column_stack([plain.scalars, 7e7 + plain.steps])
    return Frames.of(schema, plain.steps, numbers, plain.stats, times=plain.times)


def told_batches(text: str, **about: str) -> list[str]:
    return [
        sample.labels["batches"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == names.RUN_INCIDENT_BATCHES.name and about.items() <= sample.labels.items()
    ]


def test_the_batches_of_an_incident_are_told_once_and_read_once(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with service(database_url, clock) as one:
            for chunk in chunks(with_batches(frames(1, 400, diverges_at=220)), run="sick"):
                await one.put(chunk)
            for chunk in chunks(frames(1, 400, diverges_at=220), run="nameless"):
                await one.put(chunk)
            text = await scrape(one)
            (told,) = told_batches(text)
            onset = int(value(text, "lossguard_run_incident_onset_step", run="sick") or 0)
            assert told == f"step {onset - 1}: {70_000_000 + onset - 1}, step {onset}: {70_000_000 + onset} (onset)"
            assert told_batches(text, project="video", run="sick", incident="1") == [told]

            async def broken(*_: object) -> object:
                raise AssertionError("read again")

            monkeypatch.setattr("lossguard_service.incidents.batches.read_batches", broken)
            assert told_batches(await scrape(one)) == [told]

    run(story())


def test_a_scrape_reads_the_batches_of_so_many_incidents_and_the_next_one_goes_on(
    sqlite_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lossguard_service.incidents.batches.READ_AT_ONCE", 2)

    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            for number in range(3):
                for chunk in chunks(with_batches(frames(1, 250, diverges_at=220)), run=f"sick {number}"):
                    await one.put(chunk)
            assert len(told_batches(await scrape(one))) == 2
            assert len(told_batches(await scrape(one))) == 3

    run(story())


def test_a_scrape_tells_an_incident_whose_batches_cannot_be_read(
    sqlite_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> object:
        raise ValueError("rotten")

    monkeypatch.setattr("lossguard_service.incidents.batches.read_batches", broken)

    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            for chunk in chunks(frames(1, 250, diverges_at=220), run="sick"):
                await one.put(chunk)
            text = await scrape(one)
            assert value(text, "lossguard_run_incident_onset_step", run="sick") is not None
            assert told_batches(text) == []

    run(story())


def test_the_page_holds_names_of_the_list_only_and_promtool_likes_it(sqlite_url: str, clock: Clock) -> None:
    async def story() -> str:
        async with service(sqlite_url, clock) as one:
            for chunk in chunks(with_batches(frames(1, 400, diverges_at=220)), run='odd "name"'):
                assert (await one.put(chunk)).status_code == 200
            return await scrape(one)

    text = run(story())
    known = {metric.name.removesuffix("_total") for metric in names.ALL}
    found = {family.name for family in _families(text)}
    assert found - {name + "_created" for name in known} <= known
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: it comes with Prometheus")
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_a_client_cannot_make_new_series(sqlite_url: str, clock: Clock) -> None:
    async def story() -> str:
        async with service(sqlite_url, clock) as one:
            for number in range(20):
                await one.client.get(f"/nothing/{number}")
                await one.client.request(f"ODD{number}", "/v1/runs")
            return await scrape(one)

    text = run(story())
    routes = {s.labels["route"] for family in _families(text) for s in family.samples if "route" in s.labels}
    assert routes <= {"none", "/v1/runs"}


def dropped(run: str, index: int, **counts: int) -> bytes:
    """A chunk without frames that tells of dropped ones."""
    return encode(Chunk(ChunkId("video", run, FIRST, index), frames(1, 1)[:0], dict(counts)))


async def judge(one: Service, run: str, step: int) -> None:
    question = {"project": "video", "run": run, "step": step, "artifact_digest": "sha256:" + "a" * 64}
    answer = await one.client.post("/v1/verdicts", json=question)
    assert answer.status_code == 200, answer.text


def test_gaps_drops_and_lag_are_told_of_a_run_that_has_them(database_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(database_url, clock) as one:
            first, second, third = chunks(frames(1, 96), run="holes")
            await one.put(first)
            await one.put(third)
            text = await scrape(one)
            assert value(text, "lossguard_run_waiting_chunks", run="holes") == 1
            assert value(text, "lossguard_run_gap_steps", run="holes") == 32
            assert value(text, "lossguard_run_newest_frame_timestamp_seconds") == pytest.approx(1_700_000_003.2)
            assert value(text, "lossguard_run_dropped_frames_total", run="holes") is None
            await one.put(second)
            for index, counts in ((3, {"queue_full": 2, "disk_full": 1}), (4, {"queue_full": 5})):
                assert (await one.put(dropped("holes", index, **counts))).status_code == 200
            await one.put(dropped("holes", 4, queue_full=5))
            heartbeat = {"attempt": FIRST, "last_step": 200}
            await one.client.put("/v1/projects/video/runs/holes/heartbeat", json=heartbeat)
            text = await scrape(one)
            assert value(text, "lossguard_run_gap_steps", run="holes") == 0
            assert value(text, "lossguard_run_dropped_frames_total", run="holes", reason="queue_full") == 7
            assert value(text, "lossguard_run_dropped_frames_total", run="holes", reason="disk_full") == 1
            assert value(text, "lossguard_run_last_step", run="holes") == 96
            assert value(text, "lossguard_run_heard_step", run="holes") == 200
            page = (await one.client.get("/runs/video/holes")).text
            assert "Dropped on the trainer&#39;s side: 1 disk_full, 7 queue_full." in page

    run(story())


def test_reasons_that_a_client_makes_up_stay_few(sqlite_url: str, clock: Clock) -> None:
    async def story() -> str:
        async with service(sqlite_url, clock) as one:
            await one.put(dropped("odd", 0, **{f"reason {number}": 1 for number in range(40)}))
            await one.put(dropped("odd", 1, **{"x" * 512: 2}))
            return await scrape(one)

    text = run(story())
    told = [one for family in _families(text) for one in family.samples if "reason" in one.labels]
    assert len(told) == 16
    assert sum(one.value for one in told) == 42
    assert value(text, "lossguard_run_dropped_frames_total", reason="other") == 27


def test_a_refused_export_is_told_with_its_run_and_step_for_a_while(database_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(database_url, clock) as one:
            for chunk in chunks(frames(1, 400, diverges_at=220), run="sick"):
                await one.put(chunk)
            await judge(one, "sick", 400)
            await judge(one, "nobody", 7)
            text = await scrape(one)
            assert value(text, "lossguard_gate_verdict_step", run="sick", outcome="block") == 400
            unknown = {"run": "nobody", "outcome": "insufficient_data", "check": "run_known"}
            assert value(text, "lossguard_gate_verdict_step", **unknown) == 7
            clock.now += 901
            text = await scrape(one)
            assert value(text, "lossguard_gate_verdict_step") is None
            assert value(text, "lossguard_verdicts_total", outcome="block") == 1

    run(story())


def test_every_replica_gives_the_same_answer(postgres_url: str, clock: Clock) -> None:
    async def story() -> tuple[list[str], list[str]]:
        settings = {"webhook_urls": CLOSED, "webhook_seconds": 3600.0}
        async with service(postgres_url, clock, **settings) as one, service(postgres_url, clock, **settings) as two:
            for place, chunk in enumerate(chunks(frames(1, 400, diverges_at=220), run="sick")):
                await (one, two)[place % 2].put(chunk)
            parts = chunks(frames(1, 96), run="holes")
            await one.put(parts[0])
            await two.put(parts[2])
            await two.put(dropped("holes", 3, queue_full=2))
            await judge(two, "sick", 400)
            clock.now += 400
            await one.app.state.webhooks.deliver()
            return (await scrape(one)).splitlines(), (await scrape(two)).splitlines()

    def told(lines: list[str]) -> list[str]:
        return [line for line in lines if not line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(OWN)]

    first, second = run(story())
    assert told(first) == told(second)
    assert len({line.partition("{")[0].partition(" ")[0] for line in told(first) if line[0] != "#"}) >= 20
    assert first != second, "each replica counts its own requests"


def test_a_webhook_that_does_not_answer_is_counted_and_its_notices_wait(sqlite_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(sqlite_url, clock, webhook_urls=CLOSED, webhook_seconds=3600.0) as one:
            assert value(await scrape(one), "lossguard_webhook_waiting_notices") == 0
            for chunk in chunks(frames(1, 400, diverges_at=220), run="sick"):
                await one.put(chunk)
            assert await one.app.state.webhooks.deliver() == 0
            text = await scrape(one)
            assert (value(text, "lossguard_webhook_waiting_notices") or 0) >= 1
            assert value(text, "lossguard_webhook_oldest_notice_timestamp_seconds") == clock.now
            assert value(text, "lossguard_replica_webhook_answers_total", outcome="failed") == 1

    run(story())


def test_transactions_of_the_replica_are_timed_and_those_that_fail_counted(database_url: str, clock: Clock) -> None:
    async def story() -> str:
        async with service(database_url, clock) as one:
            with pytest.raises(sa.exc.DBAPIError):
                await one.app.state.database.read(lambda connection: connection.execute(sa.text("SELECT no FROM no")))
            return await scrape(one)

    text = run(story())
    assert (value(text, "lossguard_replica_database_seconds_count", kind="read") or 0) >= 2
    assert value(text, "lossguard_replica_database_errors_total", kind="read") == 1
    assert value(text, "lossguard_replica_database_errors_total", kind="write") == 0
    assert (value(text, "lossguard_database_bytes") or 0) > 100_000
    assert value(text, "lossguard_replica_info", database=database_url.partition(":")[0]) == 1


def test_who_asks_for_gzip_gets_the_same_page_smaller(sqlite_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            await one.put(chunks(frames(1, 32))[0])
            plain = await one.client.get("/metrics", headers={"accept-encoding": "identity"})
            async with one.client.stream("GET", "/metrics", headers={"accept-encoding": "gzip"}) as packed:
                body = b"".join([part async for part in packed.aiter_raw()])
            assert "content-encoding" not in plain.headers
            assert len(body) < len(plain.content) / 2
            runs = [line for line in plain.text.splitlines() if line.startswith("lossguard_run_")]
            assert runs == [
                line for line in gzip.decompress(body).decode().splitlines() if line.startswith("lossguard_run_")
            ]

    run(story())


@pytest.mark.parametrize("name", ['a "quoted" \\ name', "two\nlines", "", "\ud800", "é\t{}=,"])
@pytest.mark.parametrize("number", [0, -3, 1e-300, 2.0**60, math.nan, math.inf, -math.inf])
def test_any_name_and_any_number_read_back_as_they_were(name: str, number: float) -> None:
    page = Page()
    page.add(names.RUN_LOSS, labels(("project", "run"), (name, "r")), number)
    page.add(names.RUN_LOSS, labels(("project", "run"), (name, "s")), None)
    (family,) = _families(page.render().decode())
    (sample,) = family.samples
    assert sample.labels == {"project": name.replace("\ud800", "?"), "run": "r"}
    assert sample.value == number or (math.isnan(sample.value) and math.isnan(number))
