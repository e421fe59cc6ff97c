"""What grows is keyed by its run first, so that a cluster can spread runs over machines; what is not says why."""

import re
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from chunk_trainer import FIRST, chunks, frames
from services import Clock, run, service

from lossguard_service.store import cleanup, compact
from lossguard_service.store.schema import metadata

ROOTS = {"runs": "the run itself; found by (project, name)"}
BY_PROJECT = {"verdicts": "outlive runs, and may be of a run that is not known; found by project and run, or by id"}
SMALL = {
    "policies": "a row for each version that somebody wrote",
    "tokens": "a row for each that somebody made",
    "signing_keys": "a row for each that somebody rotated",
    "waivers": "a row for each that somebody gave; found by project and run",
    "object_folders": "one row",
    "audit": "rows for what people and the gate did, appended; found by project",
}
BY_BACKGROUND = {("doomed_objects", "since"), ("outbox", "destination"), ("outbox", "id")}
"""Indexes of work that some replica does for any run in turn; each row of it is of one run."""


def tables() -> list[sa.Table]:
    return [one for one in metadata.tables.values() if one.name not in ROOTS | BY_PROJECT | SMALL]


def test_every_table_that_grows_is_keyed_by_its_run_first() -> None:
    assert len(tables()) >= 14
    for table in tables():
        keys = [next(iter(table.primary_key.columns))]
        keys += [next(iter(index.columns)) for index in table.indexes]
        unique = [one for one in table.constraints if isinstance(one, sa.UniqueConstraint)]
        keys += [next(iter(one.columns)) for one in unique]
        others = {key.name for key in keys if key.name != "run_id"}
        assert {(table.name, name) for name in others} <= BY_BACKGROUND
        assert any(key.name == "run_id" for key in keys)


def test_a_row_that_grows_belongs_to_one_run_and_goes_with_it() -> None:
    for table in tables():
        (foreign,) = table.foreign_keys
        assert (foreign.parent.name, foreign.column.table.name) == ("run_id", "runs")
        assert foreign.ondelete == "CASCADE"


def test_what_is_not_keyed_by_run_is_a_table_that_there_is() -> None:
    assert ROOTS.keys() | BY_PROJECT.keys() | SMALL.keys() <= metadata.tables.keys()
    for name in BY_PROJECT:
        assert any([c.name for c in index.columns][:2] == ["project", "run"] for index in metadata.tables[name].indexes)


ACROSS = (
    "SELECT chunk_bytes.run_id FROM chunk_bytes JOIN",  # which runs have something to compact
    "SELECT segments.run_id",  # which segments are old enough
    "SELECT doomed_objects.run_id",  # which objects are old enough
    "DELETE FROM doomed_objects",  # some of them, each by its whole key
    "SELECT outbox.",  # which notices wait
)
"""Work lists: a replica reads whose turn it is, then does it run by run; a cluster asks each machine for its own."""


def test_no_statement_about_a_run_needs_another_one(sqlite_url: str, tmp_path: Path, clock: Clock) -> None:
    """Every statement that ingest, reads, compaction, retention and clean-up send names the one run it is about."""
    sent: set[str] = set()

    def listen(connection: Any, _record: object) -> None:
        connection.set_trace_callback(lambda text: sent.add(" ".join(text.split())))

    async def story() -> None:
        async with service(sqlite_url, clock, bytes_url=f"file://{tmp_path / 'objects'}") as one:
            database = one.app.state.database
            sent.clear()  # of the migrations
            for name in ("one", "two"):
                for chunk in chunks(frames(1, 200, diverges_at=100), run=name, stop="failed"):
                    assert (await one.put(chunk)).status_code == 200
                run_path = f"/v1/projects/video/runs/{name}"
                beat = {"attempt": FIRST, "last_step": 200}
                assert (await one.client.put(f"{run_path}/heartbeat", json=beat)).status_code == 204
                for _ in range(2):
                    for path in ("", "/incidents", "/checkpoints", "/gaps", "/steps/20", "/export?format=csv"):
                        assert (await one.client.get(run_path + path)).status_code == 200
                    for query in ("name=loss", "stat=gradient_norm", "stat=gradient_norm&layer=embedding"):
                        assert (await one.client.get(f"{run_path}/series?{query}")).status_code == 200
                    await compact.compact(database, now=clock() + 2 * compact.SETTLED_SECONDS)
            await compact.retain(database, now=clock() + 1e7, full_seconds=1e5)
            await cleanup.delete_doomed(database, now=clock() + 1e8)

    sa.event.listen(sa.pool.Pool, "connect", listen)
    try:
        run(story())
    finally:
        sa.event.remove(sa.pool.Pool, "connect", listen)
    names = "|".join(one.name for one in tables())
    about = [one for one in sent if re.search(rf"\b(FROM|INTO|UPDATE|JOIN) ({names})\b", one) and "CREATE" not in one]
    assert len(about) > 100
    keyed = re.compile(
        r"run_id (= |IN \(\d+\))|runs\.id = |^INSERT INTO (\w+) \(run_id, |^UPDATE \w+ SET .* WHERE \w+\.(run_id|id) = "
    )
    assert [one[:200] for one in about if not keyed.search(one) and not one.startswith(ACROSS)] == []
    assert [one for one in about if " JOIN " in one and not one.startswith(ACROSS) and "run_id = " not in one] == []
