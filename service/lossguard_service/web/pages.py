"""The pages' routes: read, make a view, render.

Every page is whole without JavaScript but for its charts. Names from outside are escaped by the templates and by
nothing else. The content security policy allows nothing inline and nothing from elsewhere; a page that is built from
a user's text can therefore not become a script, even if an escape were missed.
"""

import asyncio
import gzip
import json
import time
from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from lossguard.wire.numbers import to_json
from lossguard_service.incidents.batches import read_batches
from lossguard_service.store import drops
from lossguard_service.store.checkpoints import list_checkpoints
from lossguard_service.store.database import Database
from lossguard_service.store.gaps import list_gaps
from lossguard_service.store.incidents import list_incidents, open_incidents
from lossguard_service.store.record import config_of
from lossguard_service.store.runs import Run, find_run, list_attempts, list_runs
from lossguard_service.store.series import HeatMap, UnknownSeries, columns, heat_map, scalar_series
from lossguard_service.store.verdicts import list_verdicts
from lossguard_service.web import charts, compare, evidence, factors, layers, runs_view
from lossguard_service.web.admit import admit, anybody, home, reader, viewer_of
from lossguard_service.web.apart import Apart, first_difference
from lossguard_service.web.render import SECURITY, Renderer
from lossguard_service.web.run_view import RunFacts, incident_view, loudest, run_view
from lossguard_service.web.runbooks import runbook
from lossguard_service.web.spark import EMPTY, Spark, spark

MOST_RUNS: Final = 2000
SPARK_POINTS: Final = 60


class Pages:
    """The pages over one database."""

    def __init__(
        self, database: Database, renderer: Renderer, *, stalled_seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._stalled_seconds = stalled_seconds
        self._clock = clock
        self.renderer = renderer
        self._sparks: dict[int, tuple[int | None, Spark]] = {}

    async def runs(self, request: Request) -> Response:
        """The list of runs."""
        query = runs_view.Query.of(request.query_params)
        mine = viewer_of(request).project
        found, opened = await asyncio.gather(
            list_runs(self._database, project=mine, limit=MOST_RUNS), open_incidents(self._database, limit=MOST_RUNS)
        )
        if mine is not None:
            ids = {run.id for run in found}
            opened = [one for one in opened if one[0] in ids]
        view = runs_view.view(
            found,
            opened,
            query,
            now=self._clock(),
            stalled_seconds=self._stalled_seconds,
            address=_address(request),
        )

        async def complete(row: runs_view.RunRow) -> runs_view.RunRow:
            line, verdicts = await asyncio.gather(
                self._spark(row.run),
                list_verdicts(self._database, project=row.run.project, run=row.run.name, limit=1),
            )
            return runs_view.complete(row, line, verdicts)

        rows = await asyncio.gather(*map(complete, view.rows))
        return self._render(request, "runs.html", page="runs", view=runs_view.with_rows(view, rows))

    async def run(self, request: Request, project: str, run: str) -> Response:
        """One run."""
        facts = await self._facts(request, project, run)
        if facts is None:
            return self._missing(
                request, f"No run called {run} in project {project} has sent anything to this service."
            )
        loud = loudest(facts.incidents)
        batches = await asyncio.gather(
            *(read_batches(self._database, facts.run.id, facts.columns, one.incident) for one in loud)
        )
        told = {one.sequence: found for one, found in zip(loud, batches, strict=True)}
        return self._render(request, "run.html", page="run", view=run_view(facts, told))

    async def incident(self, request: Request, project: str, run: str, sequence: int) -> Response:
        """One incident."""
        facts = await self._facts(request, project, run)
        if facts is None:
            return self._missing(
                request, f"No run called {run} in project {project} has sent anything to this service."
            )
        stored = next((one for one in facts.incidents if one.sequence == sequence), None)
        if stored is None:
            return self._missing(request, f"Run {run} has no incident {sequence}.")
        seen = await evidence.read(self._database, facts.run.id, facts.columns, stored, facts.attempts)
        return self._render(request, "incident.html", page="incident", view=incident_view(facts, stored, seen))

    async def layers(self, request: Request, project: str, run: str) -> Response:
        """How the layers of a run went."""
        found = await find_run(self._database, project, run)
        if found is None:
            return self._missing(
                request, f"No run called {run} in project {project} has sent anything to this service."
            )
        names = await columns(self._database, found.id)
        wanted = [stat for stat in layers.STATS if stat in names.stats]
        maps = await asyncio.gather(
            *(heat_map(self._database, found.id, stat, points=layers.POINTS) for stat in wanted)
        )
        incidents = await list_incidents(self._database, found.id)
        search, rows = request.query_params.get("q", "").strip()[:200], request.query_params.get("rows")
        most = layers.ALL_ROWS if rows == "all" else layers.MOST_ROWS
        view = layers.view(found, dict(zip(wanted, maps, strict=True)), incidents, search, most)
        return self._render(request, "layers.html", page="layers", view=view)

    async def charts(self, request: Request, project: str, run: str) -> Response:
        """The data of a run's line charts."""
        found = await find_run(self._database, project, run)
        if found is None:
            return _json({"title": "unknown run"}, 404)
        names = await columns(self._database, found.id)
        plan = charts.plan(charts.tasks_of(found.config, names.scalars), names.scalars)
        first, last = _step(request, "from"), _step(request, "to")
        document = await charts.read_charts(self._database, found.id, plan, first, last)
        return await asyncio.to_thread(_json, document, request=request)

    async def heatmap(self, request: Request, project: str, run: str) -> Response:
        """The data of a run's heat map."""
        found = await find_run(self._database, project, run)
        if found is None:
            return _json({"title": "unknown run"}, 404)
        stat = request.query_params.get("stat", "")
        try:
            heat = await self._heat(found.id, stat, _step(request, "from"), _step(request, "to"))
        except UnknownSeries as error:
            return _json({"title": str(error)}, 404)
        return await asyncio.to_thread(lambda: _json(charts.heat_document(heat), request=request))

    async def _heat(self, run_id: int, stat: str, first: int | None, last: int | None) -> HeatMap:
        """A stat that was measured, or a factor made from some."""
        reach: dict[str, Any] = {"first": first, "last": last, "points": charts.HEAT_POINTS}
        one = factors.FACTORS.get(stat)
        if one is None:
            return await heat_map(self._database, run_id, stat, **reach)
        maps = [await heat_map(self._database, run_id, name, **reach) for name in one.stats]
        rate = await scalar_series(self._database, run_id, factors.LEARNING_RATE, **reach) if one.needs_rate else None
        return factors.factor(stat, maps[0], maps[1] if len(maps) > 1 else None, rate)

    async def comparison(self, request: Request) -> Response:
        """Several runs side by side."""
        sides = await self._sides(request)
        wanted = compare.pairs(sides)
        parts = await asyncio.gather(*(self._apart(sides[one], sides[other]) for one, other in wanted))
        view = compare.view(sides, dict(zip(wanted, parts, strict=True)), f"/compare.json?{request.url.query}")
        return self._render(request, "compare.html", page="compare", view=view)

    async def comparison_data(self, request: Request) -> Response:
        """The data of a comparison's charts."""
        sides = await self._sides(request)
        return await asyncio.to_thread(lambda: _json(compare.document(sides), request=request))

    async def _sides(self, request: Request) -> list[compare.Side]:
        first, last = _step(request, "from"), _step(request, "to")

        async def side(project: str, name: str) -> compare.Side | None:
            run = await find_run(self._database, project, name)
            if run is None:
                return None
            names = await columns(self._database, run.id)
            plan = charts.plan(charts.tasks_of(run.config, names.scalars), names.scalars)
            data = await charts.read_scalars(self._database, run.id, plan, first, last)
            config = await self._database.read(lambda connection: config_of(connection, run.id, 1))
            return compare.Side(run, config, names.scalars, data)

        found = await asyncio.gather(*(side(*one) for one in compare.chosen(request.query_params.getlist("run"))))
        return [one for one in found if one is not None]

    async def _apart(self, one: compare.Side, other: compare.Side) -> Apart | None:
        names = compare.shared_scalars(one, other)
        if not names:
            return None
        about = one.data[names[0]], other.data[names[0]]
        return await first_difference(self._database, one.run.id, other.run.id, names, about)

    async def runbook(self, request: Request, name: str) -> Response:
        """What to do about an alert."""
        blocks = await asyncio.to_thread(runbook, name)
        if blocks is None:
            return self._missing(request, f"There is no runbook called {name}.")
        return self._render(request, "runbook.html", page="runbook", name=name, blocks=blocks)

    async def static(self, request: Request, digest: str, name: str) -> Response:
        """A static file."""
        return await asyncio.to_thread(self.renderer.assets.respond, request, digest, name)

    async def _facts(self, request: Request, project: str, name: str) -> RunFacts | None:
        found = await find_run(self._database, project, name)
        if found is None:
            return None
        attempts, incidents, verdicts, checkpoints, gaps, names = await asyncio.gather(
            list_attempts(self._database, found.id),
            list_incidents(self._database, found.id, superseded=True),
            list_verdicts(self._database, project=project, run=name, limit=20),
            list_checkpoints(self._database, found.id),
            list_gaps(self._database, found.id),
            columns(self._database, found.id),
        )
        return RunFacts(
            run=found,
            attempts=attempts,
            incidents=incidents,
            verdicts=verdicts,
            checkpoints=checkpoints,
            gaps=gaps,
            dropped=await self._database.read(lambda connection: drops.of_run(connection, found.id)),
            columns=names,
            now=self._clock(),
            stalled_seconds=self._stalled_seconds,
            address=_address(request),
        )

    async def _spark(self, run: Run) -> Spark:
        """A run's sparkline, kept until the run has new steps: the list of runs asks for it every few seconds."""
        kept = self._sparks.get(run.id)
        if kept is not None and kept[0] == run.last_step:
            return kept[1]
        try:
            line = spark(await scalar_series(self._database, run.id, "loss", points=SPARK_POINTS))
        except UnknownSeries:
            line = EMPTY
        if len(self._sparks) >= MOST_RUNS:
            self._sparks.clear()
        self._sparks[run.id] = (run.last_step, line)
        return line

    def _render(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        return self.renderer.render(request, template, status, **values)

    def _missing(self, request: Request, detail: str) -> Response:
        return self._render(request, "error.html", 404, page="error", title="Not found", detail=detail)


def router(pages: Pages) -> APIRouter:
    """The routes of what everybody with the scope `read` may see."""
    routes = APIRouter(include_in_schema=False)
    run, reads = "/runs/{project}/{run}", [Depends(reader)]
    routes.add_api_route("/", pages.runs, methods=["GET"], dependencies=[Depends(home)])
    for path, page in (("/compare", pages.comparison), ("/compare.json", pages.comparison_data)):
        routes.add_api_route(path, page, methods=["GET"], dependencies=[Depends(_all_compared)])
    routes.add_api_route("/runbooks/{name}", pages.runbook, methods=["GET"], dependencies=[Depends(anybody)])
    routes.add_api_route(f"{run}/charts.json", pages.charts, methods=["GET"], dependencies=reads)
    routes.add_api_route(f"{run}/heatmap.json", pages.heatmap, methods=["GET"], dependencies=reads)
    routes.add_api_route(f"{run}/incidents/{{sequence:int}}", pages.incident, methods=["GET"], dependencies=reads)
    routes.add_api_route(f"{run}/layers", pages.layers, methods=["GET"], dependencies=reads)
    routes.add_api_route(run, pages.run, methods=["GET"], dependencies=reads)
    # Without a token: they are the same for everybody, and the login page needs them.
    routes.add_api_route("/static/{digest}/{name}", pages.static, methods=["GET"])
    return routes


async def _all_compared(request: Request) -> None:
    """Every run of a comparison may be read."""
    await anybody(request)
    for project, _ in compare.chosen(request.query_params.getlist("run")):
        await admit(request, "read", project)


def _json(document: Any, status: int = 200, *, request: Request | None = None) -> Response:
    body = json.dumps(to_json(document), separators=(",", ":"), allow_nan=False).encode()
    headers = dict(SECURITY)
    if request is not None and "gzip" in request.headers.get("accept-encoding", ""):
        # Digits and commas: a quarter of the bytes, for a few milliseconds.
        body = gzip.compress(body, 1, mtime=0)
        headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    return Response(body, status, headers=headers, media_type="application/json")


def _step(request: Request, name: str) -> int | None:
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def _address(request: Request) -> str:
    return str(request.base_url).rstrip("/")
