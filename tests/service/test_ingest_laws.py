"""Laws of ingest, on SQLite and on a real PostgreSQL: the end state is that of sending the chunks once, one by one."""

import asyncio
import random
from typing import Any

import pytest
from chunk_trainer import FIRST, SECOND, chunks, frames
from services import Clock, Service, run, service

from lossguard.detect import monitor
from lossguard.wire.chunk import Checkpoint, decode

TIMES = ("created", "last_seen", "last_progress", "opened", "updated")


async def state(one: Service, name: str = "ranker") -> dict[str, Any]:
    """All that can be read of a run, without the times of the service's clock and the order of storing."""
    base = f"/v1/projects/video/runs/{name}"
    document = await one.get(base)
    listed = await one.get(f"{base}/incidents", superseded=True)
    loss = await one.get(f"{base}/series", name="loss", points=5000)
    heat = await one.get(f"{base}/heatmap", stat="gradient_norm", points=50)
    checkpoints = await one.get(f"{base}/checkpoints")
    incidents = [{k: v for k, v in incident.items() if k != "sequence"} for incident in listed["incidents"]]
    return strip({"run": document, "incidents": incidents, "loss": loss, "heat": heat, "checkpoints": checkpoints})


def strip(value: Any) -> Any:
    """The value without service times."""
    if isinstance(value, dict):
        return {k: strip(v) for k, v in value.items() if k not in (*TIMES, "sequence")}
    return [strip(item) for item in value] if isinstance(value, list) else value


def diverging() -> list[bytes]:
    return chunks(
        frames(1, 400, diverges_at=220),
        stop="failed",
        checkpoints=[Checkpoint(step, 1.7e9, f"ckpt-{step}", True) for step in (100, 200, 300)],
    )


async def serially(url: str, data: list[bytes]) -> dict[str, Any]:
    async with service(url, Clock()) as one:
        for chunk in data:
            answer = await one.put(chunk)
            assert answer.status_code == 200, answer.text
        return await state(one)


def test_a_run_is_judged_as_it_streams_in(database_url: str) -> None:
    async def story() -> None:
        async with service(database_url, Clock()) as one:
            data = diverging()
            for index, chunk in enumerate(data):
                reply = (await one.put(chunk)).json()
                assert reply["duplicate"] is False
                assert (reply["attempt"], reply["next_index"]) == (1, index + 1)
                assert reply["judged_step"] == decode(chunk).frames.steps[-1]
            assert reply["status"] == "diverged"
            assert (reply["advice"]["action"], reply["advice"]["step"]) == ("rollback", 200)
            document = await one.get("/v1/projects/video/runs/ranker")
            assert (document["status"], document["phase"], document["stop_reason"]) == ("diverged", "failed", "failed")
            assert (document["first_step"], document["last_step"], document["frames"]) == (1, 400, 400)
            assert document["incidents"][0]["kind"] == "full_divergence"
            trusted = {
                c["step"]: c["trust"]
                for c in (await one.get("/v1/projects/video/runs/ranker/checkpoints"))["checkpoints"]
            }
            assert trusted == {100: "good", 200: "good", 300: "bad"}

    run(story())


def test_the_service_judges_exactly_as_a_replay_does(database_url: str) -> None:
    block = frames(1, 400, diverges_at=220, nan_at=350)

    async def story() -> list[dict[str, Any]]:
        async with service(database_url, Clock()) as one:
            for chunk in chunks(block, size=37):
                await one.put(chunk)
            listed = await one.get("/v1/projects/video/runs/ranker/incidents")
            return list(listed["incidents"])

    expected = monitor.report(monitor.update(monitor.init({"click": "binary"}), block), "ranker").to_json()
    found = run(story())
    own = expected["incidents"][0].keys()
    assert [{key: one[key] for key in own} for one in found] == sorted(
        expected["incidents"], key=lambda one: (one["onset_step"], one["number"])
    )


@pytest.mark.parametrize("seed", range(2))
def test_any_order_and_any_repetition_end_in_the_serial_state(
    stored_url: str, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    data = diverging()
    expected = run(serially(f"sqlite:///{tmp_path_factory.mktemp('serial') / 'x.db'}", data))
    shuffled = data * 2
    random.Random(seed).shuffle(shuffled)

    async def story() -> dict[str, Any]:
        async with service(stored_url, Clock()) as one:
            answers = [(await one.put(chunk)).json() for chunk in shuffled]
            assert sum(answer["duplicate"] for answer in answers) == len(data)
            return await state(one)

    assert run(story()) == expected


def test_concurrent_chunks_end_in_the_serial_state(stored_url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = diverging()
    expected = run(serially(f"sqlite:///{tmp_path_factory.mktemp('serial') / 'x.db'}", data))

    async def story() -> dict[str, Any]:
        async with service(stored_url, Clock()) as one:
            answers = await asyncio.gather(*(one.put(chunk) for chunk in data + data))
            assert [answer.status_code for answer in answers] == [200] * (2 * len(data))
            return await state(one)

    assert run(story()) == expected


def test_a_replica_that_starts_in_the_middle_goes_on_in_the_serial_state(
    stored_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = diverging()
    expected = run(serially(f"sqlite:///{tmp_path_factory.mktemp('serial') / 'x.db'}", data))

    async def story() -> dict[str, Any]:
        for chunk in data[:-1]:
            async with service(stored_url, Clock()) as one:
                assert (await one.put(chunk)).status_code == 200
        async with service(stored_url, Clock()) as one:
            await one.put(data[-1])
            return await state(one)

    assert run(story()) == expected


def test_a_chunk_that_comes_early_waits_and_the_gap_shows(database_url: str) -> None:
    async def story() -> None:
        async with service(database_url, Clock()) as one:
            data = chunks(frames(1, 96))
            assert (await one.put(data[0])).json()["next_index"] == 1
            early = (await one.put(data[2])).json()
            assert (early["next_index"], early["judged_step"]) == (1, 32)
            document = await one.get("/v1/projects/video/runs/ranker")
            assert document["waiting_chunks"] == 1
            gap = {"attempt": 1, "first_step": 33, "last_step": 64, "kind": "missing_chunk"}
            assert document["gaps"] == [gap]
            late = (await one.put(data[1])).json()
            assert (late["next_index"], late["judged_step"]) == (3, 96)
            document = await one.get("/v1/projects/video/runs/ranker")
            assert (document["waiting_chunks"], document["gaps"], document["last_step"]) == (0, [], 96)

    run(story())


def test_an_attempt_whose_first_chunk_does_not_come_counts_for_nothing_and_everybody_sees_it(database_url: str) -> None:
    async def story() -> None:
        async with service(database_url, Clock()) as one:
            for chunk in chunks(frames(1, 160)):
                await one.put(chunk)
            lost, *rest = chunks(frames(101, 260), attempt=SECOND, start_step=100)
            for chunk in rest:
                assert (await one.put(chunk)).json()["judged_step"] == 160
            document = await one.get("/v1/projects/video/runs/ranker")
            assert document["gaps"] == [{"attempt": 2, "first_step": 133, "last_step": 260, "kind": "missing_start"}]
            assert document["waiting_chunks"] == 4
            assert (
                'lossguard_run_waiting_chunks{project="video",run="ranker"} 4'
                in (await one.client.get("/metrics")).text
            )
            page = (await one.client.get("/runs/video/ranker")).text
            assert "4 chunks wait for one that has not come: judged up to step 160." in page
            assert "the attempt&#39;s first chunk has not come, so nobody knows where it began" in page
            assert (await one.put(lost)).json()["judged_step"] == 260
            document = await one.get("/v1/projects/video/runs/ranker")
            assert (document["waiting_chunks"], document["gaps"]) == (0, [])
            assert "wait for one that has not come" not in (await one.client.get("/runs/video/ranker")).text

    run(story())


def test_frames_dropped_by_the_trainer_are_a_gap_that_stays(database_url: str) -> None:
    block = frames(1, 96)
    kept = [0, *range(5, 40), *range(50, 96)]
    holes = type(block)(
        block.schema,
        *(
            getattr(block, name)[kept]
            for name in ("steps", "times", "scalars", "stats", "scalars_present", "stats_present")
        ),
    )

    async def story() -> None:
        async with service(database_url, Clock()) as one:
            for chunk in chunks(holes, size=36):
                await one.put(chunk)
            gaps = (await one.get("/v1/projects/video/runs/ranker/gaps"))["gaps"]
            assert [(gap["first_step"], gap["last_step"], gap["kind"]) for gap in gaps] == [
                (2, 5, "dropped"),
                (41, 50, "dropped"),
            ]

    run(story())


def test_the_same_identity_with_other_bytes_is_refused_and_nothing_changes(database_url: str) -> None:
    async def story() -> None:
        async with service(database_url, Clock()) as one:
            await one.put(chunks(frames(1, 32))[0])
            before = await state(one)
            answer = await one.put(chunks(frames(1, 32, seed=1))[0])
            assert answer.status_code == 409
            assert answer.json()["type"] == "urn:lossguard:problem:chunk-conflict"
            assert await state(one) == before

    run(story())


def rollback_story() -> tuple[list[bytes], list[bytes]]:
    first = chunks(frames(1, 400, diverges_at=220))
    second = chunks(frames(201, 500, seed=7), attempt=SECOND, start_step=200, stop="finished")
    return first, second


def test_a_restart_from_a_checkpoint_supersedes_what_came_after_it(database_url: str) -> None:
    first, second = rollback_story()

    async def story() -> None:
        async with service(database_url, Clock()) as one:
            for chunk in first:
                reply = (await one.put(chunk)).json()
            assert reply["status"] == "diverged"
            for chunk in second:
                reply = (await one.put(chunk)).json()
            assert (reply["attempt"], reply["judged_step"]) == (2, 500)
            assert reply["status"] == "healthy"
            assert reply["advice"]["action"] == "continue"
            base = "/v1/projects/video/runs/ranker"
            document = await one.get(base)
            assert [attempt["superseded_after"] for attempt in document["attempts"]] == [200, None]
            assert (document["phase"], document["last_step"], document["gaps"]) == ("finished", 500, [])
            (begun,) = (await one.get(f"{base}/incidents"))["incidents"]
            assert (begun["kind"], begun["onset_step"], begun["end_step"]) == ("regime_change", 201, 202)
            kept = (await one.get(f"{base}/incidents", superseded=True))["incidents"]
            (full,) = [one for one in kept if one["superseded"]]
            assert full["kind"] == "full_divergence"
            mover = full["movers"][0]
            assert (mover["what"], mover["step"]) == ("task", full["onset_step"])
            assert mover["height"] > 10
            assert await one.get(f"{base}/incidents/{full['sequence']}") == full | {"batches": []}
            missing = (await one.client.get(f"{base}/incidents/99")).json()["detail"]
            assert f"it has incidents 1 to {len(kept)}; GET {base}/incidents?superseded=true lists them" in missing
            series = await one.get(f"{base}/series", name="loss", points=5000)
            assert series["first"] == list(range(1, 501))
            assert max(series["maximum"]) < 1
            old = await one.get(f"{base}/series", name="loss", points=5000, attempt=1)
            assert old["last"][-1] == 400
            assert max(old["maximum"]) > 4

    run(story())


@pytest.mark.parametrize("seed", range(2))
def test_late_chunks_of_a_superseded_attempt_end_in_the_serial_state(
    database_url: str, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    first, second = rollback_story()
    expected = run(serially(f"sqlite:///{tmp_path_factory.mktemp('serial') / 'x.db'}", first + second))
    # The attempts keep their numbers as long as the first to arrive belongs to the first.
    rest = first[1:] + second
    random.Random(seed).shuffle(rest)

    async def story() -> dict[str, Any]:
        async with service(database_url, Clock()) as one:
            for chunk in [first[0], *rest]:
                assert (await one.put(chunk)).status_code == 200
            return await state(one)

    found = run(story())
    # Which incidents were seen and then superseded depends on what was known when; those that count do not.
    for one in (found, expected):
        one["incidents"] = [incident for incident in one["incidents"] if not incident["superseded"]]
    assert found == expected


def test_two_attempts_that_start_from_the_same_step_count_once(database_url: str) -> None:
    async def story() -> None:
        async with service(database_url, Clock()) as one:
            for chunk in chunks(frames(1, 64)):
                await one.put(chunk)
            await one.put(chunks(frames(65, 64), attempt=SECOND, start_step=64)[0])
            reply = None
            for chunk in chunks(frames(65, 128), attempt="c" * 32, start_step=64):
                reply = (await one.put(chunk)).json()
            assert reply is not None
            judged = monitor.update(monitor.init({"click": "binary"}), frames(1, 64))
            judged = monitor.update(monitor.new_attempt(judged, 64), frames(65, 128))
            expected = monitor.report(judged, "ranker")
            assert (reply["attempt"], reply["judged_step"], reply["status"]) == (3, 128, expected.status)
            listed = (await one.get("/v1/projects/video/runs/ranker/incidents"))["incidents"]
            assert [incident["onset_step"] for incident in listed] == [one.onset_step for one in expected.incidents]
            gaps = (await one.get("/v1/projects/video/runs/ranker/gaps"))["gaps"]
            assert gaps == []

    run(story())


def test_runs_do_not_know_one_another(database_url: str) -> None:
    async def story() -> None:
        async with service(database_url, Clock()) as one:
            sick = chunks(frames(1, 400, diverges_at=220), run="sick")
            well = chunks(frames(1, 400), run="well", attempt=FIRST)
            await asyncio.gather(*(one.put(chunk) for pair in zip(sick, well, strict=True) for chunk in pair))
            runs = (await one.get("/v1/runs"))["runs"]
            assert {one["name"]: one["status"] for one in runs} == {"sick": "diverged", "well": "healthy"}
            assert [one["name"] for one in (await one.get("/v1/runs", status="diverged"))["runs"]] == ["sick"]

    run(story())
