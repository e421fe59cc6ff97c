"""A remembered answer is never a stale one: two replicas over one database, and what one stores the other knows of."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from postgres import psql
from services import Clock, Service, run, service

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gate"))

from gate_runs import DIGEST, TASKS, frames_of

from lossguard.wire.chunk import AttemptStart, Chunk, ChunkId, encode
from lossguard_service.gate.judge import Gate
from lossguard_service.store.hot import Hot

CONFIG = {"tasks": TASKS, "parameters_watched": 1.0}
SCAN = {"kind": "savedmodel", "tensors": 3, "values": 10, "nonfinite": {}, "complete": True}
STEPS = 128


async def train(replica: Service, attempt: str, start: int, last: int, config: dict[str, Any] = CONFIG) -> None:
    """One chunk that begins an attempt after step `start`."""
    events = (AttemptStart(start, 1.7e9, config),)
    data = encode(Chunk(ChunkId("video", "ranker", attempt * 32, 0), frames_of(start + 1, last), {}, events))
    path = f"/v1/projects/video/runs/ranker/attempts/{attempt * 32}/chunks/0"
    answer = await replica.client.put(path, content=data)
    assert answer.status_code == 200, answer.text


async def ask(replica: Service, **more: Any) -> dict[str, Any]:
    body = {"project": "video", "run": "ranker", "step": STEPS, "artifact_digest": DIGEST, "scan": SCAN}
    answer = await replica.client.post("/v1/verdicts", json=body | more)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def verdicts(replica: Service) -> int:
    entries = (await replica.get("/v1/audit"))["entries"]
    return [entry["kind"] for entry in entries].count("verdict")


def test_the_same_question_gets_the_same_verdict_until_any_replica_stores_something_new(database_url: str) -> None:
    async def story() -> None:
        clock = Clock()
        async with service(database_url, clock) as one, service(database_url, clock) as two:
            await train(one, "a", 0, STEPS)
            assert (await ask(one))["outcome"] == "pass"  # the first question makes the key
            first = await ask(one)
            assert await ask(one) == first
            assert await verdicts(two) == 2
            assert (await ask(one, step=STEPS - 1))["id"] != first["id"]
            assert (await ask(one, metrics={"auc/click": 0.4}))["outcome"] == "block"

            await two.client.post("/v1/keys/rotate", json={"author": "ann", "reason": "a test of it"})
            signed = await ask(one)
            assert signed["signature"]["key"] != first["signature"]["key"]
            keys = [key for key in (await two.get("/v1/keys"))["keys"] if key["state"] == "active"]
            said = {"author": "ann", "reason": "it was lost"}
            await two.client.post(f"/v1/keys/{keys[0]['key']}/revoke", json=said)
            assert (await ask(one))["signature"]["key"] not in (keys[0]["key"], first["signature"]["key"])

            waiver = {"project": "video", "run": "ranker", "checks": ["coverage"], "author": "ann",
                      "reason": "because we can", "seconds": 60}  # fmt: skip
            before = await ask(one)
            waived = (await two.client.post("/v1/waivers", json=waiver)).json()
            after = await ask(one)
            assert after["id"] != before["id"]
            await two.client.delete(f"/v1/waivers/{waived['id']}", params={"author": "ann"})
            assert (await ask(one))["id"] != after["id"]

            better = await ask(two, artifact_digest="sha256:" + "6" * 64, metrics={"auc/click": 0.9})
            assert better["outcome"] == "pass"
            assert (await ask(one))["outcome"] == "insufficient_data"  # it comes without the metric

            await train(two, "b", 60, 70)
            assert "restarted from step 60" in " ".join((await ask(one))["reasons"])

    run(story())


def test_a_new_version_of_a_policy_counts_at_once(database_url: str) -> None:
    async def story() -> None:
        async with service(database_url, clock := Clock()) as one, service(database_url, clock) as two:
            await train(one, "a", 0, STEPS)
            rules: dict[str, Any] = {"name": "mine"}
            await two.client.post("/v1/policies", json={"author": "ann", "rules": rules})
            assert (await ask(one, policy="mine"))["outcome"] == "pass"
            assert (await ask(one, policy="mine"))["policy_version"] == 1
            await two.client.post("/v1/policies", json={"author": "ann", "rules": rules | {"canary_required": True}})
            changed = await ask(one, policy="mine")
            assert (changed["policy_version"], changed["outcome"]) == (2, "insufficient_data")

    run(story())


def test_silence_and_the_end_of_a_waiver_end_an_answer(database_url: str) -> None:
    async def story() -> None:
        clock = Clock()
        async with service(database_url, clock) as one:
            await train(one, "a", 0, STEPS, {"tasks": TASKS, "parameters_watched": 0.5})
            waiver = {"project": "video", "run": "ranker", "checks": ["coverage"], "author": "ann",
                      "reason": "because we can", "seconds": 60}  # fmt: skip
            await one.client.post("/v1/waivers", json=waiver)
            await ask(one)
            passed = await ask(one)
            assert passed["outcome"] == "pass"
            clock.now += 59
            assert await ask(one) == passed
            clock.now += 2
            assert (await ask(one))["outcome"] == "insufficient_data"
            await one.client.post("/v1/waivers", json=waiver | {"seconds": 86_400})
            assert (await ask(one))["outcome"] == "pass"
            clock.now += 840
            silent = await ask(one)
            assert [check["name"] for check in silent["checks"] if check["status"] != "pass"] == ["recent"]

    run(story())


async def train_trial(replica: Service, name: str, seed: int, chunk: int = 0) -> None:
    """A chunk of another training in the project, of the configuration that `seed` repeats."""
    first = chunk * STEPS + 1
    config = CONFIG | {"optimizer": {"class": "Adagrad"}, "seed": seed}
    events = (AttemptStart(0, 1.7e9, config),) if chunk == 0 else ()
    identity = ChunkId("video", name, f"{seed:032x}", chunk)
    answer = await replica.put(encode(Chunk(identity, frames_of(first, first + STEPS - 1), {}, events)))
    assert answer.status_code == 200, answer.text


def test_a_remembered_answer_about_a_trial_ends_with_any_change_of_the_trials(database_url: str) -> None:
    async def story() -> None:
        async with service(database_url, clock := Clock()) as one, service(database_url, clock) as two:
            for seed in (1, 2, 3):
                await train_trial(one, f"trial-{seed}", seed)
            await ask(one, run="trial-1")
            held = await ask(one, run="trial-1")
            assert await ask(one, run="trial-1") == held
            await train_trial(two, "trial-2", 2, chunk=1)
            changed = await ask(one, run="trial-1")
            assert changed["id"] != held["id"]
            await train_trial(two, "trial-4", 4)
            assert (await ask(one, run="trial-1"))["id"] != changed["id"]

    run(story())


def test_an_answer_that_is_given_again_needs_the_same_token_as_the_first(database_url: str) -> None:
    async def story() -> None:
        clock = Clock()
        async with service(database_url, clock, admin_token="root") as one:
            one.client.headers["authorization"] = "Bearer root"
            await train(one, "a", 0, STEPS)
            made = {}
            for project in ("video", "other"):
                body = {"name": "release", "scopes": ["gate"], "project": project}
                made[project] = (await one.client.post("/v1/tokens", json=body)).json()
            body = {"project": "video", "run": "ranker", "step": STEPS, "artifact_digest": DIGEST, "scan": SCAN}

            async def statuses(token: str | None, verdict: str) -> tuple[int, int]:
                headers = {"authorization": f"Bearer {token}" if token else ""}
                asked = await one.client.post("/v1/verdicts", json=body, headers=headers)
                found = await one.client.get(f"/v1/verdicts/{verdict}", headers=headers)
                return asked.status_code, found.status_code

            secret = made["video"]["secret"]
            for _ in range(3):
                verdict = (await one.client.post("/v1/verdicts", json=body)).json()["id"]
            assert await statuses(secret, verdict) == (200, 200)
            assert await statuses(None, verdict) == (401, 401)
            assert await statuses("made-up", verdict) == (401, 401)
            assert await statuses(made["other"]["secret"], verdict) == (403, 403)
            await one.client.delete(f"/v1/tokens/{made['video']['id']}")
            clock.now += 6
            assert await statuses(secret, verdict) == (401, 401)

    run(story())


def test_a_question_that_comes_in_parts_gets_the_same_answer(database_url: str) -> None:
    async def story() -> None:
        async with service(database_url, Clock()) as one:
            await train(one, "a", 0, STEPS)
            await ask(one)
            held = await ask(one)
            body = json.dumps({"project": "video", "run": "ranker", "step": STEPS, "artifact_digest": DIGEST,
                               "scan": SCAN}, separators=(",", ":")).encode()  # fmt: skip

            async def parts() -> AsyncIterator[bytes]:
                yield body[:40]
                yield body[40:]

            headers = {"content-type": "application/json"}
            for content in (parts(), body, body, parts()):
                answer = await one.client.post("/v1/verdicts", content=content, headers=headers)
                assert (answer.status_code, answer.json()) == (200, held)
            page = (await one.client.get("/metrics")).text
            assert 'route="/v1/verdicts",status="200"' in page

    run(story())


def test_starting_rehearses_a_verdict_and_stores_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with service(database_url, clock := Clock()) as one:
            await train(one, "a", 0, STEPS)
        compiled: list[object] = []
        plain = Hot._compile
        monkeypatch.setattr(Hot, "_compile", lambda hot, dialect: compiled.append(hot) or plain(hot, dialect))
        async with service(database_url, clock) as two:
            compiled.clear()
            assert (await two.get("/v1/audit"))["entries"] == []
            assert (await ask(two))["outcome"] == "pass"
            assert compiled == []
        monkeypatch.setattr(Gate, "rehearse", lambda gate: 1 / 0)
        async with service(database_url, clock) as three:
            assert (await ask(three))["outcome"] == "pass"
        assert "the gate's rehearsal failed" in caplog.text

    run(story())


def test_a_connection_that_postgresql_ended_is_opened_again(postgres_url: str) -> None:
    async def story() -> None:
        async with service(postgres_url, Clock()) as one:
            await train(one, "a", 0, STEPS)
            await ask(one)
            held = await ask(one)
            assert await ask(one) == held
            await asyncio.to_thread(
                psql,
                sa.make_url(postgres_url),
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lossguard'",
            )
            for _ in range(2):
                assert await ask(one) == held
            parallel = await asyncio.gather(*(ask(one) for _ in range(12)))
            assert {answer["id"] for answer in parallel} == {held["id"]}

    run(story())


def test_bytes_that_were_blocked_as_another_export_end_an_answer_and_a_block_stays_the_same(database_url: str) -> None:
    async def story() -> None:
        async with service(database_url, Clock()) as one:
            await train(one, "a", 0, STEPS)
            rules = {"name": "mine", "attribution_required": True}
            await one.client.post("/v1/policies", json={"author": "ann", "rules": rules})
            asked = {"policy": "mine"}
            await ask(one, **asked)
            held = await ask(one, **asked)
            assert (held["outcome"], await ask(one, **asked)) == ("pass", held)
            blocked = await ask(one, step=STEPS - 1, canary={"rows": 3, "nonfinite": 1, "spread": 0.1})
            assert blocked["outcome"] == "block"
            after = await ask(one, **asked)
            assert [check["name"] for check in after["checks"] if check["status"] != "pass"] == ["attribution"]
            assert await ask(one, **asked) == after

    run(story())
