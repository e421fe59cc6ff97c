"""A run as a file: a trace (`.npz`, which `lossguard replay` reads), CSV or Parquet.

CSV and Parquet are written a chunk at a time, whatever the run's length; a trace is one archive of whole arrays, so it
has a limit, and `from` and `to` cut a longer run. NaN stays NaN; what was not measured is empty (CSV), null (Parquet)
or has its presence bit off (trace).
"""

import asyncio
import csv
import importlib.util
import io
import os
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.background import BackgroundTask

from lossguard.trace import npz
from lossguard.wire.frame import Frames, Schema
from lossguard_service.auth import require
from lossguard_service.errors import BadRequest, TooLarge, refusals
from lossguard_service.reading import RESPONSES, Name, database_of, find
from lossguard_service.store import runs, series
from lossguard_service.store.frames import frames_of, joined, values_between

MOST_TRACE_VALUES: Final = 1 << 27
"""Half a gigabyte of stats."""

router = APIRouter(prefix="/v1", tags=["read"], dependencies=[Depends(require("read"))], responses=RESPONSES)


@router.get("/projects/{project}/runs/{run}/export", response_class=FileResponse, responses=refusals(413))
async def get_export(
    request: Request,
    project: Name,
    run: Name,
    format: Annotated[Literal["npz", "csv", "parquet"], Query()] = "npz",
    what: Annotated[Literal["scalars", "stats"], Query()] = "scalars",
    first: Annotated[int | None, Query(ge=0, lt=1 << 53, alias="from")] = None,
    last: Annotated[int | None, Query(ge=0, lt=1 << 53, alias="to")] = None,
    attempt: Annotated[int | None, Query(ge=1, lt=1 << 31)] = None,
) -> Response:
    """The run's frames as a file: everything as a trace, or `what` as CSV or Parquet.

    CSV and Parquet have a row for each step (`scalars`) or for each step and layer (`stats`).
    """
    database, found = database_of(request), await find(request, project, run)
    window = {"first": first, "last": last, "attempt": attempt}
    schema = await series.columns(database, found.id)
    headers = {"content-disposition": f"attachment; filename*=UTF-8''{quote(f'{project}-{run}.{format}', safe='')}"}
    frames = frames_of(database, found.id, **window)
    if format == "csv":
        table = _scalar_lines(frames, schema) if what == "scalars" else _stat_lines(frames, schema)
        return StreamingResponse(table, media_type="text/csv; charset=utf-8", headers=headers)
    if format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise BadRequest("Parquet needs pyarrow, which is not installed in the service: ask for csv or npz")
    if format == "npz" and (values := await values_between(database, found.id, **window)) > MOST_TRACE_VALUES:
        raise TooLarge(
            f"{values} values, a trace holds at most {MOST_TRACE_VALUES}: cut it with from and to, or take csv"
        )
    handle, name = tempfile.mkstemp(prefix="lossguard-export-", suffix=f".{format}")
    os.close(handle)
    file = Path(name)
    try:
        if format == "npz":
            attempts = await runs.list_attempts(database, found.id)
            meta = {
                "name": run,
                "project": project,
                "tasks": found.config.get("tasks") or {},
                "config": found.config,
                "attempts": [[one.number, one.start_step, one.superseded_after] for one in attempts],
            }
            whole = joined([block async for block in frames], schema)
            await asyncio.to_thread(npz.write, file, whole, meta)
        else:
            await _write_parquet(file, frames, schema, what)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return FileResponse(file, headers=headers, background=BackgroundTask(file.unlink, missing_ok=True))


async def _scalar_lines(frames: AsyncIterator[Frames], schema: Schema) -> AsyncIterator[str]:
    yield _lines([["step", "time", *schema.scalars]])
    async for block in frames:
        wide = joined([block], schema)
        values, present = wide.scalars.tolist(), wide.scalars_present.tolist()
        times = [repr(time) if time == time else "" for time in wide.times.tolist()]
        yield _lines(
            [step, time, *(_cell(v, p) for v, p in zip(row, here, strict=True))]
            for step, time, row, here in zip(wide.steps.tolist(), times, values, present, strict=True)
        )


async def _stat_lines(frames: AsyncIterator[Frames], schema: Schema) -> AsyncIterator[str]:
    yield _lines([["step", "layer", *schema.stats]])
    async for block in frames:
        names = [block.schema.stats.index(stat) if stat in block.schema.stats else None for stat in schema.stats]

        yield await asyncio.to_thread(_lines, _stat_rows(block, names))


def _stat_rows(block: Frames, names: list[int | None]) -> Iterator[list[Any]]:
    for t, step in enumerate(block.steps.tolist()):
        here = block.stats_present[t].tolist()
        for layer, row in zip(block.schema.layers, block.stats[t].tolist(), strict=True):
            yield [step, layer, *("" if k is None else _cell(row[k], here[k]) for k in names)]


def _cell(value: float, present: bool) -> str:
    if not present:
        return ""
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(text := repr(value), text)


def _lines(rows: Iterable[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


async def _write_parquet(file: Path, frames: AsyncIterator[Frames], schema: Schema, what: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if what == "scalars":
        fields = [pa.field(name, pa.float64()) for name in schema.scalars]
        layout = pa.schema([pa.field("step", pa.int64()), pa.field("time", pa.float64()), *fields])
    else:
        layer = pa.field("layer", pa.dictionary(pa.int32(), pa.string()))
        layout = pa.schema(
            [pa.field("step", pa.int64()), layer, *(pa.field(name, pa.float32()) for name in schema.stats)]
        )

    def table(block: Frames) -> Any:
        wide = joined([block], schema)
        if what == "scalars":
            columns = [
                pa.array(wide.scalars[:, n], pa.float64(), mask=~wide.scalars_present[:, n])
                for n in range(len(schema.scalars))
            ]
            return pa.Table.from_arrays([pa.array(wide.steps), pa.array(wide.times), *columns], schema=layout)
        measured = [schema.layers.index(name) for name in block.schema.layers]
        stats, t = wide.stats[:, measured], len(wide)
        places = np.tile(np.array(measured, np.int32), t)
        columns = [
            pa.array(stats[:, :, k].ravel(), pa.float32(), mask=np.repeat(~wide.stats_present[:, k], len(measured)))
            for k in range(len(schema.stats))
        ]
        layer = pa.DictionaryArray.from_arrays(pa.array(places), pa.array(schema.layers, pa.string()))
        steps = pa.array(np.repeat(wide.steps, len(measured)))
        return pa.Table.from_arrays([steps, layer, *columns], schema=layout)

    with pq.ParquetWriter(file, layout, compression="zstd") as writer:
        async for block in frames:
            writer.write_table(await asyncio.to_thread(table, block))
