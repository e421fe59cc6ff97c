"""The page that Prometheus scrapes, made anew from the database at each scrape.

Bounded: of a run's layers the five worst, of scalars none but the loss. What happened in this replica (requests,
chunks in work) is counted in a registry of its own, handed in; nothing is global.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lossguard.wire.incident import SEVERITY
from lossguard.wire.numbers import from_json_number
from lossguard_service.metrics import names
from lossguard_service.store.fleet import Fleet
from lossguard_service.store.runs import Run

STATUSES = ("healthy", "recovered", "diverged")
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Requests:
    """ASGI middleware that times requests by route; one per replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        metric = names.REPLICA_REQUEST_SECONDS
        self._seconds = Histogram(metric.name, metric.help, metric.labels, registry=self.registry, buckets=_BUCKETS)

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The app with a clock around it."""

        async def timed(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            start, status = time.perf_counter(), 500

            async def watch(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, watch)
            finally:
                # Unknown paths and methods share one label each: clients must not be able to make new series.
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in ("GET", "PUT", "POST", "DELETE", "HEAD") else "other"
                self._seconds.labels(method, route, str(status)).observe(time.perf_counter() - start)

        return timed


class _Families:
    """A collector over families made beforehand."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """The families."""
        yield from self._families


def page(
    fleet: Fleet, requests: Requests, *, now: float, stalled_seconds: float, pending: int, collect_seconds: float
) -> bytes:
    """The page in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    families = [*_runs(fleet, now, stalled_seconds)]
    verdicts = _family(names.VERDICTS)
    for (project, outcome), count in sorted(fleet.verdicts.items()):
        verdicts.add_metric([project, outcome], count)
    for metric, value in ((names.REPLICA_PENDING_CHUNKS, pending), (names.REPLICA_COLLECT_SECONDS, collect_seconds)):
        families.append(_family(metric))
        families[-1].add_metric([], value)
    registry.register(_Families([*families, verdicts]))
    return bytes(generate_latest(registry) + generate_latest(requests.registry))


def _runs(fleet: Fleet, now: float, stalled_seconds: float) -> list[Any]:
    families: dict[str, Any] = {}

    def add(metric: names.Metric, labels: list[str], value: float | None) -> None:
        if metric.name not in families:
            families[metric.name] = _family(metric)
        if value is not None:
            families[metric.name].add_metric(labels, value)

    by_id = {run.id: run for run in fleet.runs}
    for run in fleet.runs:
        who = [run.project, run.name]
        for status in STATUSES:
            add(names.RUN_STATUS, [*who, status], float(run.status == status))
        add(names.RUN_STALLED, who, float(run.phase(now, stalled_seconds) == "stalled"))
        add(names.RUN_LAST_STEP, who, run.last_step)
        add(names.RUN_JUDGED_STEP, who, run.judged_step)
        add(names.RUN_LAST_PROGRESS, who, run.last_progress)
        add(names.RUN_LOSS, who, run.loss_last)
        add(names.RUN_WAITING_CHUNKS, who, run.waiting_chunks)
        add(names.RUN_FRAMES, who, run.frames)
        add(names.RUN_DROPPED_FRAMES, who, run.dropped_frames)
        _summary(add, run)
    total: dict[tuple[int, str], int] = {}
    for (run_id, kind, still_open), count in sorted(fleet.incidents.items()):
        total[run_id, kind] = total.get((run_id, kind), 0) + count
        if still_open and run_id in by_id:
            add(names.RUN_OPEN_INCIDENTS, _incident(by_id[run_id], kind), count)
    for (run_id, kind), count in total.items():
        if run_id in by_id:
            add(names.RUN_INCIDENTS, _incident(by_id[run_id], kind), count)
    for run_id, stored in fleet.recent:
        one = stored.incident
        task, layer = one.tasks[0] if one.tasks else "", one.first_layer or ""
        labels = [str(stored.sequence), task, layer, "true" if stored.is_open else "false"]
        add(names.RUN_INCIDENT_ONSET, _incident(by_id[run_id], one.kind) + labels, one.onset_step)
    return list(families.values())


def _summary(add: Any, run: Run) -> None:
    who = [run.project, run.name]
    speed, worst = run.summary.get("steps_per_second"), run.summary.get("clippy_ratio_max")
    add(names.RUN_STEPS_PER_SECOND, who, None if speed is None else from_json_number(speed))
    add(names.RUN_CLIPPING_RATIO, who, None if worst is None else from_json_number(worst))
    for layer, ratio in run.summary.get("top_layers", []):
        add(names.RUN_LAYER_CLIPPING_RATIO, [*who, layer], from_json_number(ratio))


def _incident(run: Run, kind: str) -> list[str]:
    severity = next((value for name, value in SEVERITY.items() if name == kind), "warning")
    return [run.project, run.name, kind, severity]


def _family(metric: names.Metric) -> Any:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return kind(metric.name, metric.help, labels=list(metric.labels))
