"""Laws of reading: whatever the zoom, a bucket tells what its frames say; NaN, Inf and absence stay three things."""

import json
from collections.abc import Iterator
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import numpy as np
import pytest
import sqlalchemy as sa
from chunk_trainer import FIRST, LAYERS, SECOND, chunks, frames
from numpy.testing import assert_allclose, assert_array_equal
from services import Clock, Service, run, service
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import make_url

from lossguard.wire.chunk import AttemptStart, Chunk, ChunkId, encode
from lossguard.wire.frame import Frames, Schema
from lossguard.wire.numbers import from_json_number
from lossguard_service.store import coarse, compact, layout, pyramid, schema, segments, series, slices
from lossguard_service.store.buckets import Buckets, edges_by_width
from lossguard_service.store.database import open_database
from lossguard_service.store.migrate import migrate

RUN = "/v1/projects/video/runs/ranker"


def rough(first: int, last: int, seed: int) -> Frames:
    """Frames with NaN, infinities and values that were not measured."""
    random = np.random.default_rng(seed)
    block = frames(first, last, seed=seed)
    t, _, k = block.stats.shape
    scalars, stats = block.scalars.copy(), block.stats.copy()
    for array in (scalars, stats):
        for value in (np.nan, np.inf, -np.inf):
            array[random.random(array.shape) < 0.01] = value
    scalars_present = random.random(scalars.shape) > 0.2
    stats_present = random.random((t, k)) > 0.3
    scalars[~scalars_present] = np.nan
    stats[np.broadcast_to(~stats_present[:, None, :], stats.shape)] = np.nan
    return Frames(block.schema, block.steps, block.times, scalars, stats, scalars_present, stats_present)


def reference(steps: Any, values: Any, present: Any, first: int, last: int) -> tuple[float, ...]:
    """A bucket by the plainest means."""
    inside = [float(v) for s, v, p in zip(steps, values, present, strict=True) if p and first <= s <= last]
    numbers = [value for value in inside if not np.isnan(value)]
    with np.errstate(invalid="ignore"):
        mean = float(np.mean(inside)) if inside else np.nan
    odd = sum(not np.isfinite(value) for value in inside)
    return len(inside), odd, min(numbers, default=np.nan), max(numbers, default=np.nan), mean


def check(found: Buckets, steps: Any, values: Any, present: Any, tolerance: float = 1e-12) -> None:
    assert len(found)
    for n in range(len(found)):
        expected = reference(steps, values, present, int(found.first[n]), int(found.last[n]))
        got = [getattr(found, name)[n, 0] for name in ("count", "nonfinite", "minimum", "maximum", "mean")]
        assert_array_equal(got[:4], expected[:4])
        assert_allclose(got[4], expected[4], rtol=tolerance, atol=tolerance)


def test_segments_that_an_earlier_version_made_are_read_as_well(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """Without the parts that this version adds for plots of one series."""
    monkeypatch.setattr(compact, "SEGMENT_FRAMES", 64)
    monkeypatch.setattr(layout, "IN_ONE_VALUES", 0)
    monkeypatch.setattr(coarse, "ROWS", 16)

    async def ask(one: Service) -> list[Any]:
        found = []
        for points in (3, 10, 1000):
            for query in ({"name": "loss"}, {"layer": LAYERS[1], "stat": "gradient_norm"}):
                answer = await one.get(f"{RUN}/series", **query, points=points)
                # From the pyramid, buckets begin and end where its own do.
                found.append((sum(answer["count"]), max(answer["maximum"]), answer["first"][0], answer["last"][-1]))
        return found

    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            for chunk in chunks(frames(1, 256), size=16):
                await one.put(chunk)
            await compact.compact(one.app.state.database, now=clock())
            expected = await ask(one)

            def forget(connection: sa.Connection) -> int:
                gone = 0
                for table, before in ((schema.segment_parts, segments.PACKED), (schema.pyramid, pyramid.COMMON)):
                    gone += connection.execute(sa.delete(table).where(table.c.part < before)).rowcount
                return gone

            assert await one.app.state.database.write(forget) == 4 * (1 + 1 + len(LAYERS))
            assert await ask(one) == expected

    run(story())


@pytest.mark.parametrize("kept", ["chunks", "segments", "segments in one", "pyramid"])
@pytest.mark.parametrize("points", [1, 7, 100, 5000])
def test_any_zoom_says_what_the_frames_say(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, kept: str, points: int
) -> None:
    """Whatever it is read from: chunks, segments, or what retention leaves."""
    monkeypatch.setattr(compact, "SEGMENT_FRAMES", 64)
    monkeypatch.setattr(layout, "IN_ONE_VALUES", 1000 if kept == "segments in one" else 0)
    monkeypatch.setattr(compact, "INCIDENT_STEPS", -1000)
    monkeypatch.setattr(coarse, "ROWS", 24)
    # Attempt 1 is superseded after step 250, in the middle of one of its chunks.
    first, second = rough(1, 300, 1), rough(251, 420, 2)
    steps = np.concatenate([first.steps[:250], second.steps])
    scalars = np.concatenate([first.scalars[:250], second.scalars])
    present = np.concatenate([first.scalars_present[:250], second.scalars_present])
    stats = np.concatenate([first.stats[:250], second.stats])
    stats_present = np.concatenate([first.stats_present[:250], second.stats_present])

    async def story() -> None:
        clock = Clock()
        async with service(sqlite_url, clock) as one:
            for chunk in chunks(first, size=16) + chunks(
                second, size=20, attempt=SECOND, start_step=250, stop="failed"
            ):
                assert (await one.put(chunk)).status_code == 200
            database, run_id = one.app.state.database, 1
            if kept != "chunks":
                assert await compact.compact(database, now=clock()) > 4
                # What is too short for a segment waits until the run has been quiet.
                assert await compact.compact(database, now=clock() + 2 * compact.SETTLED_SECONDS) > 0
                assert await compact.compact(database, now=clock() + 2 * compact.SETTLED_SECONDS) == 0
            if kept == "pyramid":
                assert await compact.retain(database, now=clock() + 1e6, full_seconds=1e5) > 3
            for window in ((None, None), (37, 333)):
                low, high = window[0] or 1, window[1] or 420
                here = (steps >= low) & (steps <= high)
                found = await series.scalar_series(
                    database, run_id, "loss/click", first=window[0], last=window[1], points=points
                )
                assert found.count.sum() >= present[here, 1].sum()
                check(found, steps, scalars[:, 1], present[:, 1])
                assert len(found) <= points
                if kept != "pyramid":
                    assert (found.first[0], found.last[-1]) == (low, high)
                found = await series.stat_series(
                    database, run_id, LAYERS[2], "gradient_norm", first=window[0], last=window[1], points=points
                )
                check(found, steps, stats[:, 2, 0], stats_present[:, 0], 1e-4)
                heat = await series.heat_map(database, run_id, "gradient_norm", points=points)
                for layer in range(len(LAYERS)):
                    for n in range(0, len(heat.first), 7):
                        span = int(heat.first[n]), int(heat.last[n])
                        expected = reference(steps, stats[:, layer, 0], stats_present[:, 0], *span)
                        assert_array_equal(heat.maximum[layer, n], expected[3])
                        assert heat.nonfinite[layer, n] == expected[1]

    run(story())


def test_columns_may_come_and_go(sqlite_url: str) -> None:
    early, late = Schema(("loss",), ("a", "b"), ("norm",)), Schema(("loss", "auc"), ("b", "c"), ("norm", "max"))
    parts = [
        Frames.of(early, [1, 2], [[1.0], [2.0]], np.ones((2, 2, 1), np.float32)),
        Frames.of(late, [3, 4], [[3.0, 0.5], [4.0, 0.6]], 2 * np.ones((2, 2, 2), np.float32)),
    ]

    async def story() -> None:
        async with service(sqlite_url, Clock()) as one:
            for index, part in enumerate(parts):
                events = (AttemptStart(0, 1.7e9, {}),) if index == 0 else ()
                identity = ChunkId("video", "ranker", FIRST, index)
                assert (await one.put(encode(Chunk(identity, part, events=events)))).status_code == 200
            document = await one.get(RUN)
            assert document["scalars"] == ["loss", "auc"]
            assert document["layers"] == ["a", "b", "c"]
            assert (await one.get(f"{RUN}/series", name="auc"))["first"] == [3, 4]
            assert (await one.get(f"{RUN}/series", name="loss"))["mean"] == [1, 2, 3, 4]
            heat = await one.get(f"{RUN}/heatmap", stat="norm")
            assert heat["maximum"] == [[1, 1, "NaN", "NaN"], [1, 1, 2, 2], ["NaN", "NaN", 2, 2]]
            assert (await one.get(f"{RUN}/steps/3"))["stats"] == {"norm": {"b": 2, "c": 2}, "max": {"b": 2, "c": 2}}

    run(story())


def test_nan_and_the_infinities_are_words_in_json(sqlite_url: str) -> None:
    schema = Schema(("loss",), ("a",), ("norm",))
    values = [np.nan, np.inf, -np.inf, 1.0]
    block = Frames.of(schema, [1, 2, 3, 4], [[v] for v in values], np.array(values, np.float32).reshape(4, 1, 1))

    async def story() -> None:
        async with service(sqlite_url, Clock()) as one:
            for chunk in chunks(block):
                await one.put(chunk)
            found = await one.get(f"{RUN}/series", name="loss")
            assert found["mean"] == ["NaN", "Infinity", "-Infinity", 1.0]
            assert found["nonfinite"] == [1, 1, 1, 0]
            assert [from_json_number(value) for value in found["maximum"]][1:] == values[1:]
            step = await one.get(f"{RUN}/steps/1")
            assert step["scalars"] == {"loss": "NaN"}
            whole = await one.get(f"{RUN}/series", name="loss", points=1)
            assert (whole["minimum"], whole["maximum"], whole["mean"]) == (["-Infinity"], ["Infinity"], ["NaN"])
            assert (await one.get(RUN))["loss_last"] == 1.0

    run(story())


def test_postgresql_finds_each_array_by_its_key_whatever_it_knows_of_the_table(postgres_url: str) -> None:
    """At the sixth execution it plans for all values; a join then went through all rows, seven times slower."""

    async def story() -> None:
        database = open_database(postgres_url)
        try:
            await migrate(database)
            lists = {name: [1, 2, 3] for name in ("firsts", "parts", "starts", "sizes")}
            text, values = slices._SLICES.plain(postgresql.asyncpg.dialect(), {"run": 1, "attempt": 1, **lists})
        finally:
            await database.close()
        host = make_url(postgres_url)
        connection = await asyncpg.connect(user=host.username, host=str(host.query["host"]), database=host.database)
        try:
            await connection.execute("SET plan_cache_mode = force_generic_plan")
            await connection.execute(f"PREPARE arrays AS {text}")
            said = ", ".join("'{1, 2, 3}'" if isinstance(value, list) else f"{value}" for value in values)
            (plan,) = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE arrays({said})"))
        finally:
            await connection.close()
        scans = [node for node in nodes(plan["Plan"]) if node.get("Relation Name") == "segment_parts"]
        assert [scan["Node Type"] for scan in scans] == ["Index Scan"]
        for column in ("run_id", "attempt", "first_index", "part"):
            assert f"({column} = " in scans[0]["Index Cond"]

    def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield plan
        for one in plan.get("Plans", []):
            yield from nodes(one)

    run(story())


def test_edges_are_where_a_bucket_begins() -> None:
    steps = np.array([3, 4, 7, 8, 9, 30])
    assert edges_by_width(steps, 3, 5).tolist() == [0, 3, 5]
    assert edges_by_width(steps[:0], 3, 5).tolist() == []
