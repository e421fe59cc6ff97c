"""The four Grafana dashboards as data: fleet, run, gate, service.

Every query drops the labels that tell replicas apart, since each replica tells the same about a run. A test runs every
query against a real Prometheus that scrapes a real service with a diverging run, and each must return data.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from lossguard_service.metrics import names as n

RUN: Final = 'project="$project", run="$run"'
RATE: Final = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and how its series are called."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title, description: what it shows; the description says how to read it.
        queries: what it asks.
        kind: `stat` for one number now, `graph` over time, `table` for rows now.
        unit: Grafana's name of a unit.
        width: of 24 columns.
        red_from: a stat turns red from this value on; None for never.
        logarithmic: True for a logarithmic axis.
    """

    title: str
    description: str
    queries: tuple[Query, ...]
    kind: Literal["stat", "graph", "table"] = "graph"
    unit: str = "short"
    width: int = 12
    red_from: float | None = None
    logarithmic: bool = False


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard; `of_run` gives it variables for a project and a run, and a link to the run's page."""

    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...]
    of_run: bool = False


def _runs(metric: n.Metric, selector: str = "", by: str = "project, run") -> str:
    return f"max by ({by}) ({metric.name}{'{' + selector + '}' if selector else ''})"


_INCIDENTS: Final = "project, run, kind, severity, task, layer"

FLEET: Final = Board(
    "lossguard-fleet",
    "Lossguard: fleet",
    "Every run that trains: which are broken, which are silent, how fast they are.",
    (
        Panel(
            "Diverged runs",
            "Runs whose model is broken now.",
            (Query(f"sum({_runs(n.RUN_STATUS, 'status=' + json.dumps('diverged'))})"),),
            "stat",
            width=6,
            red_from=1,
        ),
        Panel(
            "Open critical incidents",
            "Full divergences, NaN or Inf, and weights that stopped moving.",
            (
                Query(
                    f"sum({_runs(n.RUN_OPEN_INCIDENTS, 'severity=' + json.dumps('critical'), 'project, run, kind')}) "
                    "or vector(0)"
                ),
            ),
            "stat",
            width=6,
            red_from=1,
        ),
        Panel(
            "Silent runs",
            "No step for longer than `stalled_seconds`, and no goodbye.",
            (Query(f"sum({_runs(n.RUN_STALLED)})"),),
            "stat",
            width=6,
            red_from=1,
        ),
        Panel("Active runs", "Runs heard of lately.", (Query(f"count({_runs(n.RUN_LAST_STEP)})"),), "stat", width=6),
        Panel(
            "Incidents, open or just over",
            "The value is the onset step; task and layer are those that were hit first.",
            (Query(_runs(n.RUN_INCIDENT_ONSET, "", f"{_INCIDENTS}, open")),),
            "table",
            width=24,
        ),
        Panel(
            "Runs by state",
            "How many runs are healthy, recovered, diverged.",
            (Query(f"sum by (status) ({_runs(n.RUN_STATUS, '', 'project, run, status')})", "{{status}}"),),
        ),
        Panel(
            "Steps per second",
            "Over the newest chunk of each run.",
            (Query(_runs(n.RUN_STEPS_PER_SECOND), "{{project}}/{{run}}"),),
        ),
        Panel(
            "Largest Clippy ratio",
            "How many times over its bound the worst layer's update is; above 1, Clippy would clip it.",
            (Query(_runs(n.RUN_CLIPPING_RATIO), "{{project}}/{{run}}"),),
            logarithmic=True,
        ),
        Panel(
            "Frames dropped by trainers",
            "Per second; anything but 0 leaves gaps that the gate knows of.",
            (
                Query(
                    f"max by (project, run) (rate({n.RUN_DROPPED_FRAMES.name}[{RATE}]))",
                    "{{project}}/{{run}}",
                ),
            ),
        ),
    ),
)

ONE_RUN: Final = Board(
    "lossguard-run",
    "Lossguard: run",
    "One run: its state, its incidents, the layers with the largest updates. Charts per task are on its page.",
    (
        Panel(
            "State",
            "What the detectors say as of the judged step.",
            (Query(f"{_runs(n.RUN_STATUS, RUN, 'status')} == 1", "{{status}}"),),
            "stat",
            width=6,
        ),
        Panel("Last step", "The last step stored.", (Query(f"max({n.RUN_LAST_STEP.name}{{{RUN}}})"),), "stat", width=6),
        Panel(
            "Steps per second",
            "Over the newest chunk.",
            (Query(f"max({n.RUN_STEPS_PER_SECOND.name}{{{RUN}}})"),),
            "stat",
            width=6,
        ),
        Panel(
            "Since the last new step",
            "A run that is silent for long is stalled.",
            (Query(f"time() - max({n.RUN_LAST_PROGRESS.name}{{{RUN}}})"),),
            "stat",
            unit="s",
            width=6,
        ),
        Panel(
            "Incidents, open or just over",
            "The value is the onset step; task and layer are those that were hit first.",
            (Query(_runs(n.RUN_INCIDENT_ONSET, RUN, f"{_INCIDENTS}, open")),),
            "table",
            width=24,
        ),
        Panel(
            "Loss",
            "The total. It may look normal while a task is broken: trust the state, not this line.",
            (Query(f"max({n.RUN_LOSS.name}{{{RUN}}})", "loss"),),
            logarithmic=True,
        ),
        Panel(
            "Clippy ratio, worst layers",
            "How many times over its bound a layer's update is; above 1, Clippy would clip it.",
            (Query(_runs(n.RUN_LAYER_CLIPPING_RATIO, RUN, "layer"), "{{layer}}"),),
            logarithmic=True,
        ),
        Panel(
            "Open incidents",
            "By kind.",
            (Query(_runs(n.RUN_OPEN_INCIDENTS, RUN, "kind"), "{{kind}}"),),
        ),
        Panel(
            "Incidents so far",
            "By kind, ended ones included: a line that climbs is a run that recovers again and again.",
            (Query(_runs(n.RUN_INCIDENTS, RUN, "kind"), "{{kind}}"),),
        ),
        Panel(
            "Stored and judged steps",
            "They part where a chunk is missing.",
            (
                Query(f"max({n.RUN_LAST_STEP.name}{{{RUN}}})", "stored"),
                Query(f"max({n.RUN_JUDGED_STEP.name}{{{RUN}}})", "judged"),
            ),
        ),
        Panel(
            "Telemetry",
            "Chunks that wait for a gap to fill, and frames that the trainer's side dropped.",
            (
                Query(f"max({n.RUN_WAITING_CHUNKS.name}{{{RUN}}})", "waiting chunks"),
                Query(f"max({n.RUN_DROPPED_FRAMES.name}{{{RUN}}})", "dropped frames"),
            ),
        ),
    ),
    of_run=True,
)

GATE: Final = Board(
    "lossguard-gate",
    "Lossguard: gate",
    "What the gate answered to release pipelines.",
    (
        Panel(
            "Verdicts so far",
            "Since the service exists.",
            (Query(f"sum by (outcome) ({_runs(n.VERDICTS, '', 'project, outcome')})", "{{outcome}}"),),
            "stat",
            width=12,
        ),
        Panel(
            "Share that passed",
            "Of all verdicts.",
            (
                Query(
                    f"sum({_runs(n.VERDICTS, 'outcome=' + json.dumps('pass'), 'project')} or vector(0)) "
                    f"/ sum({_runs(n.VERDICTS, '', 'project, outcome')})"
                ),
            ),
            "stat",
            unit="percentunit",
            width=12,
        ),
        Panel(
            "Verdicts by project",
            "Everything but pass is a release that did not happen.",
            (Query(_runs(n.VERDICTS, "", "project, outcome"), "{{project}} {{outcome}}"),),
            width=24,
        ),
    ),
)

SERVICE: Final = Board(
    "lossguard-service",
    "Lossguard: service health",
    "The replicas: what they are asked, how long they take, how far the detectors are.",
    (
        Panel("Replicas up", "Of those that are scraped.", (Query('sum(up{job="lossguard"})'),), "stat", width=6),
        Panel(
            "Frames stored per second",
            "Of all active runs.",
            (Query(f"sum(max by (project, run) (rate({n.RUN_FRAMES.name}[{RATE}])))"),),
            "stat",
            width=6,
        ),
        Panel(
            "Steps not judged yet",
            "Of all active runs; more than 0 for long means gaps.",
            (Query(f"sum({_runs(n.RUN_LAST_STEP)} - {_runs(n.RUN_JUDGED_STEP)})"),),
            "stat",
            width=6,
        ),
        Panel(
            "Chunks that wait",
            "For one that has not come.",
            (Query(f"sum({_runs(n.RUN_WAITING_CHUNKS)})"),),
            "stat",
            width=6,
        ),
        Panel(
            "Requests per second",
            "By route and status.",
            (
                Query(
                    f"sum by (method, route, status) (rate({n.REPLICA_REQUEST_SECONDS.name}_count[{RATE}]))",
                    "{{method}} {{route}} {{status}}",
                ),
            ),
        ),
        Panel(
            "Time to answer, 99th percentile",
            "By route.",
            (
                Query(
                    "histogram_quantile(0.99, sum by (le, route) "
                    f"(rate({n.REPLICA_REQUEST_SECONDS.name}_bucket[{RATE}])))",
                    "{{route}}",
                ),
            ),
            unit="s",
        ),
        Panel(
            "Chunks in work",
            "By replica; at `max_pending_chunks` it answers 503.",
            (Query(n.REPLICA_PENDING_CHUNKS.name, "{{instance}}"),),
        ),
        Panel(
            "Time to read the database for a scrape",
            "By replica.",
            (Query(n.REPLICA_COLLECT_SECONDS.name, "{{instance}}"),),
            unit="s",
        ),
    ),
)

BOARDS: Final = (FLEET, ONE_RUN, GATE, SERVICE)
ANNOTATIONS: Final = (
    (
        "Incidents",
        "red",
        f"max by (project, run, kind, task, layer) ({n.RUN_INCIDENT_ONSET.name})",
    ),
    (
        "Refused exports",
        "orange",
        f'max by (project, outcome) ({n.VERDICTS.name}{{outcome!="pass"}} - '
        f'({n.VERDICTS.name}{{outcome!="pass"}} offset 1m or {n.VERDICTS.name}{{outcome!="pass"}} * 0)) > 0',
    ),
)


def expressions(boards: Sequence[Board] = BOARDS) -> list[tuple[str, str]]:
    """Every query with where it stands."""
    panels = [
        (f"{board.uid}: {panel.title}", query.expression)
        for board in boards
        for panel in board.panels
        for query in panel.queries
    ]
    return panels + [(f"annotation: {name}", expression) for name, _, expression in ANNOTATIONS]
