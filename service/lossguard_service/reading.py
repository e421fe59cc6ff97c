"""The way out: runs, incidents, series, heat maps, checkpoints and gaps as JSON, non-finite numbers by name."""

from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse

from lossguard.wire.frame import Schema
from lossguard.wire.incident import RunStatus
from lossguard.wire.numbers import to_json
from lossguard_service.auth import require
from lossguard_service.errors import BadRequest, NotFound, refusals
from lossguard_service.incidents.batches import as_json, read_batches
from lossguard_service.store import drops, gaps, incidents, runs, series
from lossguard_service.store.buckets import Buckets
from lossguard_service.store.checkpoints import list_checkpoints, trust
from lossguard_service.store.database import Database
from lossguard_service.store.runs import Run
from lossguard_service.store.verdicts import list_verdicts

Name = Annotated[str, Path(min_length=1, max_length=200)]
Step = Annotated[int | None, Query(ge=0, lt=1 << 53)]
Text = Annotated[str | None, Query(min_length=1, max_length=512)]
MOST_POINTS = 20_000
RESPONSES = refusals(401, 403, 404, 422, 503)

router = APIRouter(prefix="/v1", tags=["read"], dependencies=[Depends(require("read"))], responses=RESPONSES)


@router.get("/runs")
async def get_runs(
    request: Request,
    project: Text = None,
    status: Annotated[RunStatus | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    offset: Annotated[int, Query(ge=0, lt=1 << 31)] = 0,
) -> JSONResponse:
    """Runs, the one heard of last first."""
    found = await runs.list_runs(database_of(request), project=project, status=status, limit=limit, offset=offset)
    return JSONResponse({"runs": [_run(request, run) for run in found]})


@router.get("/projects/{project}/runs/{run}")
async def get_run(request: Request, project: Name, run: Name) -> JSONResponse:
    """A run with its attempts, its open incidents, its gaps, what was dropped and the names of what was measured."""
    database, found = database_of(request), await find(request, project, run)
    names = await series.columns(database, found.id)
    stored = await incidents.list_incidents(database, found.id)
    document = _run(request, found) | {
        "config": found.config,
        "attempts": [asdict(attempt) for attempt in await runs.list_attempts(database, found.id)],
        "incidents": [one.to_json() for one in stored if one.is_open],
        "gaps": [asdict(gap) for gap in await gaps.list_gaps(database, found.id)],
        "dropped": await database.read(lambda connection: drops.of_run(connection, found.id)),
        "scalars": names.scalars,
        "layers": names.layers,
        "stats": names.stats,
    }
    return JSONResponse(to_json(document))


@router.get("/projects/{project}/runs/{run}/incidents")
async def get_incidents(request: Request, project: Name, run: Name, superseded: bool = False) -> JSONResponse:
    """The run's incidents by onset; with `superseded`, also those that a later attempt took back."""
    found = await find(request, project, run)
    stored = await incidents.list_incidents(database_of(request), found.id, superseded=superseded)
    return JSONResponse({"incidents": [one.to_json() for one in stored]})


@router.get("/projects/{project}/runs/{run}/incidents/{sequence}")
async def get_incident(
    request: Request, project: Name, run: Name, sequence: Annotated[int, Path(ge=1, lt=1 << 31)]
) -> JSONResponse:
    """One incident by the number that notices and addresses of pages carry; also one that a later attempt took back.

    With the batches at which it began, where the run recorded `batch_id`.
    """
    database, found = database_of(request), await find(request, project, run)
    stored = await incidents.list_incidents(database, found.id, superseded=True)
    for one in stored:
        if one.sequence == sequence:
            # What is stored at the steps of one that was taken back is another attempt's.
            names = Schema(()) if one.superseded else await series.columns(database, found.id)
            batches = as_json(await read_batches(database, found.id, names, one.incident))
            return JSONResponse(one.to_json() | {"batches": batches})
    known = f"it has incidents 1 to {max(one.sequence for one in stored)}" if stored else "it has none"
    raise NotFound(
        f"run {project}/{run} has no incident {sequence}: {known}; "
        f"GET /v1/projects/{project}/runs/{run}/incidents?superseded=true lists them"
    )


@router.get("/projects/{project}/runs/{run}/series")
async def get_series(
    request: Request,
    project: Name,
    run: Name,
    name: Text = None,
    layer: Text = None,
    stat: Text = None,
    first: Annotated[int | None, Query(ge=0, lt=1 << 53, alias="from")] = None,
    last: Annotated[int | None, Query(ge=0, lt=1 << 53, alias="to")] = None,
    points: Annotated[int, Query(ge=1, le=MOST_POINTS)] = 1000,
    attempt: Annotated[int | None, Query(ge=1, lt=1 << 31)] = None,
) -> JSONResponse:
    """One scalar (`name`), one stat of one layer (`layer` and `stat`), or its maximum over all layers (`stat` alone).

    In at most `points` buckets. Each tells its first and last step, how many values it holds, how many of them are not
    finite, and their minimum, maximum and mean; over all layers, how many are not finite, and the maximum. A bucket of
    one step holds that step's value three times.
    """
    if (name is None) == (stat is None) or (layer is not None and stat is None):
        raise BadRequest(
            "ask for a scalar with ?name=, for a layer's stat with ?layer= and &stat=, or with ?stat= alone for the "
            "stat's maximum over all layers"
        )
    database, found = database_of(request), await find(request, project, run)
    options: dict[str, Any] = {"first": first, "last": last, "points": points, "attempt": attempt}
    try:
        if name is not None:
            values = await series.scalar_series(database, found.id, name, **options)
            return JSONResponse({"name": name, **_buckets(values)})
        if layer is None:
            every = await series.heat_map(database, found.id, stat or "", **options)
            return JSONResponse({"stat": stat, **_over_layers(every)})
        values = await series.stat_series(database, found.id, layer, stat or "", **options)
    except series.UnknownSeries as error:
        raise NotFound(str(error)) from None
    return JSONResponse({"layer": layer, "stat": stat, **_buckets(values)})


@router.get("/projects/{project}/runs/{run}/heatmap")
async def get_heat_map(
    request: Request,
    project: Name,
    run: Name,
    stat: Annotated[str, Query(min_length=1, max_length=512)],
    first: Annotated[int | None, Query(ge=0, lt=1 << 53, alias="from")] = None,
    last: Annotated[int | None, Query(ge=0, lt=1 << 53, alias="to")] = None,
    points: Annotated[int, Query(ge=1, le=1000)] = 120,
    attempt: Annotated[int | None, Query(ge=1, lt=1 << 31)] = None,
) -> JSONResponse:
    """The largest value of one stat of every layer in each of at most `points` buckets of steps."""
    database, found = database_of(request), await find(request, project, run)
    try:
        found_map = await series.heat_map(
            database, found.id, stat, first=first, last=last, points=points, attempt=attempt
        )
    except series.UnknownSeries as error:
        raise NotFound(str(error)) from None
    document = {
        "stat": stat,
        "layers": found_map.layers,
        "first": found_map.first.tolist(),
        "last": found_map.last.tolist(),
        "maximum": found_map.maximum.tolist(),
        "nonfinite": found_map.nonfinite.tolist(),
    }
    return JSONResponse(to_json(document))


@router.get("/projects/{project}/runs/{run}/steps/{step}")
async def get_step(
    request: Request, project: Name, run: Name, step: Annotated[int, Path(ge=1, lt=1 << 53)]
) -> JSONResponse:
    """Everything measured at one step: the scalars, and every stat of every layer."""
    found = await find(request, project, run)
    frames = await series.frames_at(database_of(request), found.id, step)
    if frames is None:
        raise NotFound(f"run {project}/{run} has no frame at step {step}")
    schema = frames.schema
    stats = {
        stat: dict(zip(schema.layers, frames.stats[0, :, k].tolist(), strict=True))
        for k, stat in enumerate(schema.stats)
        if frames.stats_present[0, k]
    }
    scalars = {
        name: float(frames.scalars[0, column])
        for column, name in enumerate(schema.scalars)
        if frames.scalars_present[0, column]
    }
    return JSONResponse(to_json({"step": step, "time": float(frames.times[0]), "scalars": scalars, "stats": stats}))


@router.get("/projects/{project}/runs/{run}/steps/{step}/layers")
async def get_top_layers(
    request: Request,
    project: Name,
    run: Name,
    step: Annotated[int, Path(ge=1, lt=1 << 53)],
    stat: Annotated[str, Query(min_length=1, max_length=512)],
    limit: Annotated[int, Query(ge=1, le=1000)] = 10,
) -> JSONResponse:
    """The layers with the largest values of a stat at one step, NaN before all numbers."""
    found = await find(request, project, run)
    frames = await series.frames_at(database_of(request), found.id, step)
    if frames is None or stat not in frames.schema.stats:
        what = "no frame" if frames is None else f"no stat {stat!r}"
        raise NotFound(f"run {project}/{run} has {what} at step {step}")
    column = frames.schema.stats.index(stat)
    if not frames.stats_present[0, column]:
        raise NotFound(f"stat {stat!r} was not measured at step {step}: some are measured every few steps only")
    values = frames.stats[0, :, column]
    order = np.argsort(-np.where(np.isnan(values), np.inf, values), kind="stable")
    order = order[np.argsort(~np.isnan(values[order]), kind="stable")][:limit]
    top = [{"layer": frames.schema.layers[place], "value": float(values[place])} for place in order]
    return JSONResponse(to_json({"step": step, "stat": stat, "layers": top}))


@router.get("/projects/{project}/runs/{run}/checkpoints")
async def get_checkpoints(request: Request, project: Name, run: Name) -> JSONResponse:
    """The run's checkpoints with how far each can be trusted: `good`, `suspect` or `bad`."""
    database, found = database_of(request), await find(request, project, run)
    counted = [one.incident for one in await incidents.list_incidents(database, found.id)]
    listed = await list_checkpoints(database, found.id)
    return JSONResponse(to_json({"checkpoints": [asdict(one) | {"trust": trust(one.step, counted)} for one in listed]}))


@router.get("/projects/{project}/runs/{run}/verdicts")
async def get_verdicts(request: Request, project: Name, run: Name) -> JSONResponse:
    """The gate's verdicts about exports of a run, newest first; also about a run of which no chunk ever came."""
    found = await list_verdicts(database_of(request), project=project, run=run)
    return JSONResponse({"verdicts": [verdict.to_json() for verdict in found]})


@router.get("/projects/{project}/runs/{run}/gaps")
async def get_gaps(request: Request, project: Name, run: Name, until: Step = None) -> JSONResponse:
    """Steps of the run without a frame, up to step `until`."""
    found = await find(request, project, run)
    return JSONResponse(
        {"gaps": [asdict(gap) for gap in await gaps.list_gaps(database_of(request), found.id, until=until)]}
    )


def database_of(request: Request) -> Database:
    """The app's database."""
    database: Database = request.app.state.database
    return database


async def find(request: Request, project: str, name: str) -> Run:
    """The run.

    Raises:
        NotFound: no chunk of it has come.
    """
    run = await runs.find_run(database_of(request), project, name)
    if run is None:
        raise NotFound(f"run {project}/{name} is not known: no chunk of it has come; GET /v1/runs lists those that are")
    return run


def _run(request: Request, run: Run) -> dict[str, Any]:
    document = {key: value for key, value in asdict(run).items() if key not in ("id", "config", "revision")}
    phase = run.phase(request.app.state.clock(), request.app.state.settings.stalled_seconds)
    return dict(to_json(document | {"phase": phase}))


def _buckets(found: Buckets) -> dict[str, Any]:
    columns = {
        name: getattr(found, name)[:, 0].tolist() for name in ("count", "nonfinite", "minimum", "maximum", "mean")
    }
    return dict(to_json({"first": found.first.tolist(), "last": found.last.tolist(), **columns}))


def _over_layers(found: series.HeatMap) -> dict[str, Any]:
    maximum = np.fmax.reduce(found.maximum, axis=0, initial=np.nan).tolist()
    nonfinite = found.nonfinite.sum(axis=0).tolist()
    columns = {"first": found.first.tolist(), "last": found.last.tolist(), "nonfinite": nonfinite, "maximum": maximum}
    return dict(to_json(columns))
