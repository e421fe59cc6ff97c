"""A run as a file says what the run says, to the bit, and a trace replays to the same incidents."""

import csv
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from chunk_trainer import LAYERS, SCHEMA, SECOND, chunks, frames
from numpy.testing import assert_array_equal
from services import Clock, Service, run, service
from test_series_laws import rough

from lossguard.trace import npz
from lossguard.trace.replay import replay
from lossguard.trace.table import read as read_csv
from lossguard_service import exporting
from lossguard_service.store.frames import joined

RUN = "/v1/projects/video/runs/ranker"


async def export(one: Service, **parameters: object) -> bytes:
    answer = await one.client.get(f"{RUN}/export", params=parameters)
    assert answer.status_code == 200, answer.text
    assert "attachment" in answer.headers["content-disposition"]
    return answer.content


def test_a_trace_is_the_lineage_to_the_bit_and_replays_alike(database_url: str, tmp_path: Path) -> None:
    first, second = rough(1, 300, 1), rough(251, 420, 2)

    async def story() -> bytes:
        async with service(database_url, Clock()) as one:
            for chunk in chunks(first, size=16) + chunks(second, size=20, attempt=SECOND, start_step=250):
                assert (await one.put(chunk)).status_code == 200
            return await export(one)

    file = tmp_path / "run.npz"
    file.write_bytes(run(story()))
    trace = npz.read(file)
    expected = joined([first[:250], second], SCHEMA)
    (found,) = trace.attempts
    for name in ("steps", "times", "scalars", "stats", "scalars_present", "stats_present"):
        assert_array_equal(getattr(found, name), getattr(expected, name))
    assert (trace.name, trace.tasks) == ("ranker", {"click": "binary"})
    assert not [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("lossguard-export-")]


def test_an_exported_run_replays_to_the_incidents_that_the_service_found(sqlite_url: str, tmp_path: Path) -> None:
    async def story() -> tuple[bytes, list[dict[str, object]]]:
        async with service(sqlite_url, Clock()) as one:
            for chunk in chunks(frames(1, 400, diverges_at=220)):
                await one.put(chunk)
            return await export(one), (await one.get(f"{RUN}/incidents"))["incidents"]

    data, incidents = run(story())
    file = tmp_path / "run.npz"
    file.write_bytes(data)
    report = replay(npz.read(file)).to_json()
    assert incidents
    assert [{k: one[k] for k in report["incidents"][0]} for one in incidents] == sorted(
        report["incidents"], key=lambda one: (one["onset_step"], one["number"])
    )


def test_csv_and_parquet_tell_absence_from_nan(sqlite_url: str, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    block = rough(1, 70, 3)

    async def story() -> list[bytes]:
        async with service(sqlite_url, Clock()) as one:
            for chunk in chunks(block, size=16):
                await one.put(chunk)
            kinds = [(form, what) for form in ("csv", "parquet") for what in ("scalars", "stats")]
            return [await export(one, format=form, what=what, **{"from": 5, "to": 60}) for form, what in kinds]

    scalar_csv, stat_csv, scalar_parquet, stat_parquet = run(story())
    cut = block[4:60]
    rows = list(csv.reader(io.StringIO(scalar_csv.decode())))
    assert rows[0] == ["step", "time", *SCHEMA.scalars]
    assert len(rows) == 57
    for t, row in enumerate(rows[1:]):
        for cell, value, here in zip(row[2:], cut.scalars[t], cut.scalars_present[t], strict=True):
            assert (cell == "") == (not here)
            if here:
                assert_array_equal(float(cell), value)
    rows = list(csv.reader(io.StringIO(stat_csv.decode())))
    assert len(rows) == 1 + 56 * len(LAYERS)
    for place, row in enumerate(rows[1:]):
        t, layer = divmod(place, len(LAYERS))
        assert row[:2] == [str(cut.steps[t]), LAYERS[layer]]
        for cell, value, here in zip(row[2:], cut.stats[t, layer], cut.stats_present[t], strict=True):
            assert (cell == "") == (not here)
            if here:
                assert_array_equal(np.float32(cell), value)
    table = pq.read_table(io.BytesIO(scalar_parquet))
    column = table["loss"].to_pylist()
    assert [value is not None for value in column] == cut.scalars_present[:, 0].tolist()
    assert_array_equal([v for v in column if v is not None], cut.scalars[cut.scalars_present[:, 0], 0])
    table = pq.read_table(io.BytesIO(stat_parquet))
    assert table["layer"].to_pylist()[:4] == list(LAYERS)
    measured = [v for v in table["gradient_norm"].to_pylist() if v is not None]
    assert_array_equal(np.array(measured, np.float32), cut.stats[cut.stats_present[:, 0], :, 0].ravel())
    (tmp_path / "run.csv").write_bytes(scalar_csv)
    assert read_csv(tmp_path / "run.csv", {}).attempts[0].steps[0] == 5


def test_a_trace_that_would_not_fit_says_what_to_do(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "MOST_TRACE_VALUES", 600)

    async def story() -> None:
        async with service(sqlite_url, Clock()) as one:
            for chunk in chunks(frames(1, 96)):
                await one.put(chunk)
            answer = await one.client.get(f"{RUN}/export")
            assert answer.status_code == 413
            assert "cut it with from and to" in answer.json()["detail"]
            assert await export(one, to=20)

    run(story())
