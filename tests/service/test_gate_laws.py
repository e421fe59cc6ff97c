"""What the gate asks of the store, on both databases: coverage equals the frames, and keys are made once."""

import asyncio
import itertools
import random
from collections import Counter
from typing import Any

import sqlalchemy as sa
from services import Clock, Service, run, service
from sqlalchemy.engine import Connection

from lossguard_service.store import evidence, record, schema
from lossguard_service.store.database import open_database
from lossguard_service.store.migrate import migrate
from lossguard_service.store.tokens import Scope, create_token


def random_chunks(dice: random.Random) -> list[list[int]]:
    """The steps of each chunk of an attempt: mostly contiguous, with holes, gaps, repetitions and empty chunks."""
    chunks: list[list[int]] = []
    step = dice.randint(1, 3)
    for _ in range(dice.randint(1, 8)):
        step = max(1, step + dice.choice([0, 0, 0, 0, 2, -3]))
        steps = list(range(step, step + dice.randint(0, 6)))
        if len(steps) > 2 and dice.random() < 0.3:
            del steps[dice.randint(1, len(steps) - 2)]
        chunks.append(steps)
        step = steps[-1] + 1 if steps else step
    return chunks


def random_segments(chunks: list[list[int]], dice: random.Random) -> list[tuple[int, int]]:
    """Index ranges of the first chunks, as compaction cuts them: before steps that come again, and never empty."""
    found: list[tuple[int, int]] = []
    begin, through, size = 0, 0, dice.randint(1, 12)
    for index, steps in enumerate(chunks):
        held = sum(len(one) for one in chunks[begin:index])
        if held and ((steps and steps[0] <= through) or held >= size):
            found.append((begin, index))
            begin, through, size = index, 0, dice.randint(1, 12)
        through = steps[-1] if steps else through
    return found[: dice.randint(0, len(found))]


def store(
    connection: Connection, name: str, attempts: list[list[list[int]]], segments: list[list[tuple[int, int]]]
) -> int:
    opened = record.lock_or_open_run(connection, "video", name, 1.0)
    dropped = 0
    for number, (chunks, ranges) in enumerate(zip(attempts, segments, strict=True), start=1):
        for begin, end in ranges:
            steps = [step for chunk in chunks[begin:end] for step in chunk]
            segment: dict[str, Any] = {
                "run_id": opened.id, "attempt": number, "first_index": begin, "next_index": end, "schema": 1,
                "first_step": steps[0], "last_step": steps[-1], "frames": len(steps), "is_full": begin % 2 == 0,
                "created": 1.0,
            }  # fmt: skip
            connection.execute(sa.insert(schema.segments).values(**segment))
    for number, chunks in enumerate(attempts, start=1):
        record.open_attempt(connection, opened.id, number, f"{number:032x}")
        for index, steps in enumerate(chunks):
            missing = [[a + 1, b - 1] for a, b in itertools.pairwise(steps) if b > a + 1]
            row: dict[str, Any] = {
                "run_id": opened.id, "attempt": number, "index": index, "schema": 1, "frames": len(steps),
                "first_step": steps[0] if steps else None, "last_step": steps[-1] if steps else None,
                "missing": missing, "drops": {"queue_full": 2} if missing else {}, "sha256": "0" * 64, "received": 1.0,
            }  # fmt: skip
            connection.execute(sa.insert(schema.chunks).values(**row))
            dropped += sum(row["drops"].values())
    record.update_run(connection, opened.id, {"dropped_frames": dropped})
    return opened.id


def test_spans_cover_exactly_the_steps_that_have_frames(database_url: str) -> None:
    async def story() -> None:
        database = open_database(database_url)
        await migrate(database)
        dice, compacted = random.Random(11), 0
        for case in range(60):
            attempts = [random_chunks(dice) for _ in range(dice.randint(1, 2))]
            segments = [random_segments(chunks, dice) for chunks in attempts]
            compacted += sum(map(len, segments))
            await database.write(lambda c, n=f"run-{case}", a=attempts, s=segments: store(c, n, a, s))
            found = await database.read(lambda c, n=f"run-{case}": evidence.evidence_of(c, "video", n, 1, 0))
            assert found is not None
            for number, chunks in enumerate(attempts, start=1):
                spans = [one for one in found.spans if one.attempt == number]
                covered = Counter(s for one in spans for s in range(one.first, one.last + 1))
                # Steps that came twice are in two spans, so that the gate sees them.
                assert covered == Counter(step for chunk in chunks for step in chunk), (case, attempts)
                assert spans == sorted(spans, key=lambda one: (one.first, one.last))
            holes = sum(1 for chunks in attempts for steps in chunks if steps and steps[-1] - steps[0] >= len(steps))
            assert sum(report.counts["queue_full"] for report in found.drops) == 2 * holes
        assert compacted > 60
        await database.close()

    run(story())


def test_replicas_that_start_at_once_share_one_key_and_every_verdict_is_signed_by_it(database_url: str) -> None:
    async def story() -> None:
        body = {"project": "video", "run": "ranker", "step": 5, "artifact_digest": "sha256:" + "0" * 64}
        async with service(database_url, Clock()) as one, service(database_url, Clock()) as two:
            answers = await asyncio.gather(
                *(side.client.post("/v1/verdicts", json=body | {"step": n}) for n, side in enumerate((one, two) * 4))
            )
            documents = [answer.json() for answer in answers]
            assert {document["outcome"] for document in documents} == {"insufficient_data"}
            keys = (await one.get("/v1/keys"))["keys"]
            assert [key["state"] for key in keys] == ["active"]
            assert {document["signature"]["key"] for document in documents} == {keys[0]["key"]}
            assert await two.get(f"/v1/verdicts/{documents[0]['id']}") == documents[0]
            await one.client.post("/v1/keys/rotate", json={"author": "ann", "reason": "a test of it"})
            later = (await two.client.post("/v1/verdicts", json=body)).json()
            assert later["signature"]["key"] != keys[0]["key"]
            entries = (await two.get("/v1/audit"))["entries"]
            assert [entry["kind"] for entry in entries].count("verdict") == 9
            made = [entry["document"].get("reason") for entry in entries if entry["kind"] == "key_created"]
            assert made == [None, "a test of it"]

    run(story())


def test_verdicts_need_the_scope_gate_on_their_project_and_rules_the_scope_admin(sqlite_url: str) -> None:
    async def story() -> None:
        clock = Clock()
        async with service(sqlite_url, clock, admin_token="the-admin-token") as one:

            async def token(*scopes: Scope, project: str | None = "video") -> dict[str, str]:
                database = one.app.state.database
                secret, _ = await create_token(
                    database, name="t", scopes=scopes, project=project, now=clock(), actor="test", expires=None
                )
                return {"authorization": f"Bearer {secret}"}

            gate, read, ingest = await token("gate"), await token("read"), await token("ingest")
            other, admin = await token("gate", "read", project="search"), {"authorization": "Bearer the-admin-token"}
            assert await verdict(one, {}) == 401
            assert [await verdict(one, who) for who in (read, ingest, other)] == [403, 403, 403]
            assert await verdict(one, gate) == 200
            # The service remembers what these bytes ask, and still looks at who asks, and in which words.
            assert [await verdict(one, who) for who in ({}, read, ingest, other, gate)] == [401, 403, 403, 403, 200]
            assert await verdict(one, gate | {"content-type": "text/plain"}) == 422
            body = {"project": "video", "run": "r", "checks": ["coverage"], "author": "ann", "reason": "because we can",
                    "seconds": 60}  # fmt: skip
            for path, document in (
                ("/v1/waivers", body),
                ("/v1/policies", {"author": "ann", "rules": {"name": "mine"}}),
                ("/v1/keys/rotate", {"author": "ann", "reason": "yearly"}),
            ):
                for who, status in (({}, 401), (gate, 403), (read, 403), (other, 403), (admin, 200)):
                    assert (await one.client.post(path, json=document, headers=who)).status_code == status, (path, who)
            entries = (await one.client.get("/v1/audit", headers=admin)).json()["entries"]
            verdict_id = next(entry["document"]["verdict"] for entry in entries if entry["kind"] == "verdict")
            for who, status in (({}, 401), (gate, 200), (read, 200), (ingest, 403), (other, 403), (admin, 200)):
                assert (await one.client.get(f"/v1/verdicts/{verdict_id}", headers=who)).status_code == status
            assert (await one.client.get("/v1/audit", headers=gate)).status_code == 403
            for who, status in (({}, 401), (gate, 200), (read, 200), (ingest, 403), (other, 200)):
                assert (await one.client.get("/v1/keys", headers=who)).status_code == status

    async def verdict(one: Service, headers: dict[str, str]) -> int:
        body = {"project": "video", "run": "ranker", "step": 5, "artifact_digest": "sha256:" + "0" * 64}
        return (await one.client.post("/v1/verdicts", json=body, headers=headers)).status_code

    run(story())
