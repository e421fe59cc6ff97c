"""What a transaction that failed had worked out is forgotten: the database refuses to store by a trigger of its own."""

import pytest
import sqlalchemy as sa
from chunk_trainer import FIRST, chunks, frames
from services import Clock, Service, run, service
from test_ingest_laws import diverging, serially, state

from lossguard.drops import REFUSED
from lossguard.wire.chunk import Chunk, ChunkId, encode
from lossguard_service.incidents import detectors
from lossguard_service.store import schema

REFUSE = {
    "sqlite": ["CREATE TRIGGER refuse BEFORE INSERT ON chunk_bytes BEGIN SELECT RAISE(ABORT, 'disk full'); END"],
    "postgresql": [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''disk full''; END'",
        "CREATE TRIGGER refuse BEFORE INSERT ON chunk_bytes FOR EACH ROW EXECUTE FUNCTION refuse()",
    ],
}
ALLOW = {"sqlite": ["DROP TRIGGER refuse"], "postgresql": ["DROP FUNCTION refuse CASCADE"]}


async def execute(one: Service, statements: dict[str, list[str]]) -> None:
    def write(connection: sa.Connection) -> None:
        for statement in statements[connection.dialect.name]:
            connection.exec_driver_sql(statement)

    await one.app.state.database.write(write)


def test_frames_of_a_chunk_that_was_not_stored_are_judged_by_nobody(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its sidecar may have to put an empty one in its place, as after a 413 of a proxy."""
    broken = chunks(frames(1, 320, diverges_at=150))
    healthy = chunks(frames(1, 320), stop="finished")
    gap = Chunk(ChunkId("video", "ranker", FIRST, 4), frames(1, 32)[:0], {REFUSED: 32})
    data = [*healthy[:4], encode(gap), *healthy[5:]]
    expected = run(serially(f"sqlite:///{tmp_path_factory.mktemp('serial') / 'x.db'}", data))

    async def story() -> None:
        async with service(database_url, Clock()) as one:
            for chunk in data[:4]:
                await one.put(chunk)
            await execute(one, REFUSE)
            for _ in range(2):
                assert (await one.put(broken[4])).status_code == 503
            await execute(one, ALLOW)
            await one.put_all(data[4:])
            assert await state(one) == expected

    run(story())


def test_a_snapshot_that_cannot_be_read_is_made_anew_from_the_frames(
    database_url: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of another version, say, while an update rolls."""
    monkeypatch.setattr(detectors, "SNAPSHOT_FRAMES", 64)
    data = diverging()
    expected = run(serially(f"sqlite:///{tmp_path_factory.mktemp('serial') / 'x.db'}", data))

    async def story() -> None:
        async with service(database_url, Clock()) as one:
            for chunk in data[:9]:
                await one.put(chunk)
            spoil = sa.update(schema.detector_states).values(state=b"of another version")
            changed = await one.app.state.database.write(lambda connection: connection.execute(spoil).rowcount)
            assert changed > 0
        async with service(database_url, Clock()) as one:
            await one.put_all(data[9:])
            assert await state(one) == expected

    run(story())
