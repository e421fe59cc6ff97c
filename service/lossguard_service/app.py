"""Composes the service, once, by hand: settings in, an ASGI application out. Nothing happens at import.

Starting migrates the database; stopping finishes what is queued. Everything that has state hangs on `app.state`.
"""

import asyncio
import gzip
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from lossguard_service import __doc__ as about
from lossguard_service import errors, exporting, reading, tokens
from lossguard_service.auth import Guard, require
from lossguard_service.gate.admin import router as gate_admin_routes
from lossguard_service.gate.again import Again
from lossguard_service.gate.judge import Gate
from lossguard_service.gate.routes import router as gate_routes
from lossguard_service.incidents.batches import FlaggedBatches
from lossguard_service.incidents.detectors import Detectors
from lossguard_service.incidents.liveness import Watch
from lossguard_service.ingest.accept import Ingest
from lossguard_service.ingest.direct import Direct
from lossguard_service.ingest.routes import router as ingest_routes
from lossguard_service.metrics import collector
from lossguard_service.metrics.replica import Replica
from lossguard_service.rates import Rates
from lossguard_service.settings import Settings, is_loopback
from lossguard_service.store.bytes import BytesError, ByteStore
from lossguard_service.store.cleanup import clean_up
from lossguard_service.store.compact import compact, retain
from lossguard_service.store.database import Database, open_database
from lossguard_service.store.fleet import fleet
from lossguard_service.store.migrate import migrate, pending
from lossguard_service.store.objects import open_objects
from lossguard_service.store.ownership import identify
from lossguard_service.web import site
from lossguard_service.webhooks import Webhooks, destinations

log = logging.getLogger(__name__)
REHEARSAL_SECONDS = 5.0
"""A store of objects that does not answer must not keep the service from starting."""
GOODBYE_SECONDS = 300.0
"""A run that ended stays so long in `/metrics`: a few scrapes."""


def create_app(settings: Settings, *, clock: Callable[[], float] = time.time) -> FastAPI:
    """The service.

    Args:
        settings: see `Settings`.
        clock: Unix seconds; tests hand in their own.

    Raises:
        DatabaseUrlError: `settings.database` names no database that we can use.
        BytesUrlError: `settings.bytes_url` names no object store that we can use.
    """
    replica = Replica()
    objects = None if settings.bytes_url is None else open_objects(settings.bytes_url)
    byte_store = ByteStore(objects, keep_seconds=3600 * settings.bytes_keep_hours, clock=clock)
    database: Database = replica.watch(
        open_database(settings.database, connections=settings.connections, bytes=byte_store)
    )
    addresses = destinations(settings)
    told = [one.key for one in addresses]
    secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else None
    webhooks = Webhooks(database, addresses, clock, secret=secret, public_url=settings.public_url, heard=replica.heard)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await migrate(database)
        if objects is not None:
            await identify(database, now=clock())
            try:
                await byte_store.where()
            except BytesError as error:
                # Reads of what is in the database, the gate and the pages work; chunks are refused until it answers.
                log.error("%s; `lossguard doctor` tells when it answers", error)
        await _warm(app)
        watch = Watch(
            database,
            clock,
            stalled_seconds=settings.stalled_seconds,
            sweep_seconds=settings.sweep_seconds,
            destinations=told,
        )
        background = [
            asyncio.create_task(_for_ever(seconds, work))
            for seconds, work in (
                (settings.sweep_seconds, watch.look),
                (settings.webhook_seconds, webhooks.deliver),
                (settings.compact_seconds, lambda: _compact(database, settings, clock)),
                (
                    settings.compact_seconds,
                    lambda: clean_up(database, now=clock(), round_seconds=settings.compact_seconds),
                ),
            )
        ]
        try:
            yield
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await database.close()

    app = Direct(title="Lossguard", description=about or "", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.settings = settings
    app.state.clock = clock
    app.state.database = database
    admin_token = settings.admin_token.get_secret_value() if settings.admin_token else None
    app.state.guard = Guard(database, admin_token, clock, is_reachable=not is_loopback(settings.host))
    app.state.rates = Rates(settings.token_chunks_per_second, settings.token_bytes_per_second, clock)
    app.state.ingest = Ingest(
        database,
        Detectors(runs=settings.detector_runs),
        clock,
        max_pending=settings.max_pending_chunks,
        remembered=settings.detector_runs,
        destinations=told,
    )
    app.state.webhooks = webhooks
    app.state.gate = Gate(database, clock)
    app.state.batches = FlaggedBatches(database)
    app.state.replica = replica
    app.state.told = told
    app.add_middleware(Again, gate=app.state.gate, guard=app.state.guard)
    app.add_middleware(replica.wrap)
    app.include_router(ingest_routes)
    app.shorten(replica.wrap)
    app.include_router(reading.router)
    app.include_router(exporting.router)
    app.include_router(gate_routes)
    app.include_router(gate_admin_routes)
    app.include_router(tokens.router)
    site.install(app, database, app.state.guard, app.state.gate.policies, settings.stalled_seconds, clock)
    app.add_api_route("/healthz", _healthz, methods=["GET"], tags=["service"], response_class=PlainTextResponse)
    app.add_api_route(
        "/readyz",
        _readyz,
        methods=["GET"],
        tags=["service"],
        response_class=PlainTextResponse,
        responses=errors.refusals(503),
    )
    app.add_api_route(
        "/metrics",
        _metrics,
        methods=["GET"],
        tags=["service"],
        response_class=PlainTextResponse,
        dependencies=[Depends(require("read"))],
        responses=errors.refusals(401, 403, 503),
    )
    errors.install(app)
    return app


async def _healthz() -> str:
    """The process answers."""
    return "ok\n"


async def _readyz(
    request: Request,
    bytes: Annotated[bool, Query(description="Ask the object store too, if there is one.")] = False,
) -> str:
    """The database answers and has this version's schema, or a later one. Without its object store much still works."""
    if await pending(request.app.state.database):
        raise errors.Busy(
            "the database is at an earlier schema than this version's: migration is under way", retry_after=2
        )
    if not bytes:
        return "ready\n"
    where = await request.app.state.database.bytes.where()
    return f"ready; bytes of chunks and segments: {where}\n"


async def _metrics(request: Request) -> Response:
    """What Prometheus scrapes."""
    state = request.app.state
    settings: Settings = state.settings
    now, start = state.clock(), time.perf_counter()
    found = await fleet(
        state.database,
        now=now,
        active_seconds=settings.active_seconds,
        goodbye_seconds=GOODBYE_SECONDS,
        destinations=state.told,
    )
    batches = await state.batches.of(found.recent)
    collect_seconds = time.perf_counter() - start
    body = await asyncio.to_thread(collector.shared, found, batches, now=now, stalled_seconds=settings.stalled_seconds)
    body += collector.own(
        version=version("lossguard"),
        database=state.database.name,
        pending=state.ingest.pending,
        collect_seconds=collect_seconds,
    )
    headers = {"vary": "accept-encoding"}
    body += state.replica.page()
    if "gzip" in request.headers.get("accept-encoding", ""):
        # Twenty times smaller for 4 ms per thousand runs; Prometheus asks for it.
        body, headers = gzip.compress(body, 1), {**headers, "content-encoding": "gzip"}
    return Response(body, media_type=CONTENT_TYPE_LATEST, headers=headers)


async def _warm(app: FastAPI) -> None:
    """Do now what the first requests would pay for: the framework builds its routes when they are first looked at."""
    scope = {"type": "http", "method": "GET", "path": "/", "root_path": "", "headers": [], "app": app}
    for route in app.router.routes:
        route.matches(scope)
    try:
        async with asyncio.timeout(REHEARSAL_SECONDS):
            await app.state.gate.rehearse()
    except Exception:
        # Whoever asks about this run will hear of it; the others must not go without a service.
        log.exception("the gate's rehearsal failed")


async def _for_ever(seconds: float, work: Callable[[], Awaitable[object]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception:
            # The next round may find the database again; a service that stopped looking would call silence health.
            log.exception("background work failed")


async def _compact(database: Database, settings: Settings, clock: Callable[[], float]) -> None:
    await compact(database, now=clock())
    seconds = None if settings.full_days is None else 86_400 * settings.full_days
    of_projects = {project: 86_400 * days for project, days in settings.days_of_projects().items()}
    await retain(database, now=clock(), full_seconds=seconds, of_projects=of_projects)
