"""What happened in this replica: requests, transactions, webhooks, the process. Other replicas tell something else.

Counted in a registry of its own, which the app hands down; nothing is global. Labels are bounded: a client that makes
up paths or methods makes no new series.
"""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lossguard_service.metrics import names
from lossguard_service.store.bytes import ByteStore
from lossguard_service.store.database import Database
from lossguard_service.store.hot import Guarded, Hot

T = TypeVar("T")
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_METHODS: Final = ("GET", "PUT", "POST", "DELETE", "HEAD")
_PROCESS: Final = {
    one.name.removesuffix("_total"): one
    for one in (names.PROCESS_CPU, names.PROCESS_MEMORY, names.PROCESS_OPEN_FILES, names.PROCESS_START)
}


class Replica:
    """The counts of one replica."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._requests = self._histogram(names.REPLICA_REQUEST_SECONDS)
        self._transactions = self._histogram(names.REPLICA_DATABASE_SECONDS)
        self._failures = self._counter(names.REPLICA_DATABASE_ERRORS)
        self._webhooks = self._counter(names.REPLICA_WEBHOOK_ANSWERS)
        for kind in ("read", "write"):
            self._failures.labels(kind)
        self._process = ProcessCollector(registry=None)

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Chosen(self._registry, self._process))
        return bytes(generate_latest(registry))

    def heard(self, destination: str, outcome: str) -> None:
        """Count what came of telling a webhook: `sent`, `failed` or `given_up`."""
        self._webhooks.labels(destination, outcome).inc()

    def watch(self, database: Database) -> "Watched":
        """The database with a clock around its transactions."""
        return Watched(database, self._transactions, self._failures)

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The app with a clock around its requests: an ASGI middleware."""
        series: dict[tuple[str, str, str], Histogram] = {}

        async def timed(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            start, status = time.perf_counter(), 500

            async def look(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, look)
            finally:
                # Unknown paths and methods share one label each: clients must not be able to make new series.
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                key = method, route, str(status)
                # The library's own look-up takes a lock and makes each label anew.
                seconds = series.get(key) or series.setdefault(key, self._requests.labels(*key))
                seconds.observe(time.perf_counter() - start)

        return timed

    def _histogram(self, metric: names.Metric) -> Histogram:
        return Histogram(metric.name, metric.help, metric.labels, registry=self._registry, buckets=_BUCKETS)

    def _counter(self, metric: names.Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self._registry)


class Watched:
    """A `Database` that times another one's transactions."""

    def __init__(self, database: Database, seconds: Histogram, failures: Counter) -> None:
        self._database = database
        self._seconds = seconds
        self._failures = failures
        # The library's own look-up takes a lock and makes each label anew.
        self._by_kind: dict[str, Histogram] = {}

    @property
    def name(self) -> str:
        """See `Database`."""
        return self._database.name

    @property
    def bytes(self) -> ByteStore:
        """See `Database`."""
        return self._database.bytes

    @property
    def is_far(self) -> bool:
        """See `Database`."""
        return self._database.is_far

    async def read(self, function: Callable[[Connection], T]) -> T:
        """See `Database`."""
        return await self._timed("read", self._database.read, function)

    async def glance(self, select: Hot, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """See `Database`."""
        return await self._timed("read", self._database.glance, select, values)

    async def write(self, function: Callable[[Connection], T]) -> T:
        """See `Database`."""
        return await self._timed("write", self._database.write, function)

    async def at_once(
        self, guarded: Guarded, values: Mapping[str, Any], size: int, *, together: bool = False
    ) -> bool | None:
        """See `Database`."""
        return await self._timed("write", self._database.at_once, guarded, values, size, together=together)

    async def close(self) -> None:
        """See `Database`."""
        await self._database.close()

    async def _timed(self, kind: str, run: Callable[..., Awaitable[T]], *given: Any, **named: Any) -> T:
        start = time.perf_counter()
        try:
            return await run(*given, **named)
        except (SQLAlchemyError, OSError):
            self._failures.labels(kind).inc()
            raise
        finally:
            seconds = self._by_kind.get(kind) or self._by_kind.setdefault(kind, self._seconds.labels(kind))
            seconds.observe(time.perf_counter() - start)


class _Chosen:
    """A collector of what we count and what we want to know of the process, under our help texts."""

    def __init__(self, registry: CollectorRegistry, process: ProcessCollector) -> None:
        self._registry = registry
        self._process = process

    def collect(self) -> Iterator[Metric]:
        """The families; the times at which counters were made, which the client library adds, are left out."""
        for family in self._registry.collect():
            family.samples = [one for one in family.samples if not one.name.endswith("_created")]
            yield family
        for family in self._process.collect():
            known = _PROCESS.get(family.name)
            if known is not None:
                family.documentation = known.help
                yield family
