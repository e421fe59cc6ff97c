"""The four Grafana dashboards: fleet, run, gate, and service health.

Every query drops the labels that tell replicas apart, since each replica tells the same about a run. A test runs every
query against a real Prometheus that scrapes a real service with a diverging run, and each must return data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dashboards.board import RATE, Board, Panel, Query, of_runs
from dashboards.health import SERVICE
from lossguard_service.metrics import names as n

RUN: Final = 'project="$project", run="$run"'
PROJECT: Final = 'project=~"$project"'
NAMED: Final = "{{project}}/{{run}}"
_INCIDENTS: Final = "project, run, kind, severity, task, layer, open"
_VERDICTS: Final = "project, run, outcome, check"

FLEET: Final = Board(
    "lossguard-fleet",
    "Lossguard: fleet",
    "Every run that trains: which are broken, which are silent, how fast they are.",
    (
        Panel(
            "Diverged runs",
            "Runs whose model is broken now.",
            (Query("sum(" + of_runs(n.RUN_STATUS, PROJECT + ', status="diverged"') + ")"),),
            "stat",
            width=6,
            red_from=1,
        ),
        Panel(
            "Open critical incidents",
            "Full divergences, NaN or Inf, and weights that stopped moving.",
            (
                Query(
                    "sum("
                    + of_runs(n.RUN_OPEN_INCIDENTS, PROJECT + ', severity="critical"', "project, run, kind")
                    + ") or vector(0)"
                ),
            ),
            "stat",
            width=6,
            red_from=1,
        ),
        Panel(
            "Silent runs",
            "No step for longer than `stalled_seconds`, and no goodbye.",
            (Query(f"sum({of_runs(n.RUN_STALLED, PROJECT)})"),),
            "stat",
            width=6,
            red_from=1,
        ),
        Panel(
            "Active runs",
            "Runs heard of lately.",
            (Query(f"count({of_runs(n.RUN_LAST_STEP, PROJECT)})"),),
            "stat",
            width=6,
        ),
        Panel(
            "Incidents, open or just over",
            "The value is the onset step; task and layer are those hit first. A click leads to the run's page.",
            (Query(of_runs(n.RUN_INCIDENT_ONSET, PROJECT, _INCIDENTS)),),
            "table",
            width=24,
            leads_to_run=True,
        ),
        Panel(
            "Runs by state",
            "How many runs are healthy, recovered, diverged.",
            (Query(f"sum by (status) ({of_runs(n.RUN_STATUS, PROJECT, 'project, run, status')})", "{{status}}"),),
        ),
        Panel(
            "Steps per second",
            "Over the newest chunk of each run.",
            (Query(of_runs(n.RUN_STEPS_PER_SECOND, PROJECT), NAMED),),
            leads_to_run=True,
        ),
        Panel(
            "Largest Clippy ratio",
            "How many times over its bound the worst layer's update is; above 1, Clippy would clip it.",
            (Query(of_runs(n.RUN_CLIPPING_RATIO, PROJECT), NAMED),),
            logarithmic=True,
            leads_to_run=True,
        ),
        Panel(
            "Since the last new step",
            "By run: a line that climbs is a run that is silent.",
            (Query(f"time() - {of_runs(n.RUN_LAST_PROGRESS, PROJECT)}", NAMED),),
            unit="s",
            leads_to_run=True,
        ),
        Panel(
            "Frames dropped by trainers",
            "Per second and by reason; anything but 0 leaves gaps that the gate knows of.",
            (
                Query(
                    f"max by (project, run, reason) (rate({n.RUN_DROPPED_FRAMES.name}{{{PROJECT}}}[{RATE}]))",
                    NAMED + " {{reason}}",
                ),
            ),
            leads_to_run=True,
        ),
        Panel(
            "Steps missing in gaps",
            "Before the first chunk that waits; detectors and gate stand still before the gap.",
            (Query(of_runs(n.RUN_GAP_STEPS, PROJECT), NAMED),),
            leads_to_run=True,
        ),
    ),
    variables=("project",),
)

ONE_RUN: Final = Board(
    "lossguard-run",
    "Lossguard: run",
    "One run: its state, its incidents, the layers with the largest updates. Charts per task are on its page.",
    (
        Panel(
            "State",
            "What the detectors say as of the judged step.",
            (Query(f"{of_runs(n.RUN_STATUS, RUN, 'status')} == 1", "{{status}}"),),
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
            "The value is the onset step; task and layer are those hit first. A click leads to the run's page.",
            (Query(of_runs(n.RUN_INCIDENT_ONSET, RUN, _INCIDENTS)),),
            "table",
            width=24,
            leads_to_run=True,
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
            (Query(of_runs(n.RUN_LAYER_CLIPPING_RATIO, RUN, "layer"), "{{layer}}"),),
            logarithmic=True,
        ),
        Panel(
            "Open incidents",
            "By kind.",
            (Query(of_runs(n.RUN_OPEN_INCIDENTS, RUN, "kind"), "{{kind}}"),),
        ),
        Panel(
            "Incidents so far",
            "By kind, ended ones included: a line that climbs is a run that recovers again and again.",
            (Query(of_runs(n.RUN_INCIDENTS, RUN, "kind"), "{{kind}}"),),
        ),
        Panel(
            "Steps: of the trainer, stored, judged",
            "The first two part when telemetry is late, the last two where a chunk is missing.",
            (
                Query(f"max({n.RUN_HEARD_STEP.name}{{{RUN}}})", "trainer"),
                Query(f"max({n.RUN_LAST_STEP.name}{{{RUN}}})", "stored"),
                Query(f"max({n.RUN_JUDGED_STEP.name}{{{RUN}}})", "judged"),
            ),
        ),
        Panel(
            "Gaps",
            "Chunks that wait for a gap to fill, and how many steps are missing before them.",
            (
                Query(f"max({n.RUN_WAITING_CHUNKS.name}{{{RUN}}})", "waiting chunks"),
                Query(f"max({n.RUN_GAP_STEPS.name}{{{RUN}}})", "missing steps"),
            ),
        ),
        Panel(
            "Frames dropped by the trainer's side",
            "By reason; they are never judged.",
            (Query(of_runs(n.RUN_DROPPED_FRAMES, RUN, "reason"), "{{reason}}"),),
        ),
        Panel(
            "Ingest lag",
            "Time from when the newest frame was measured, by the trainer's clock, until the run was last heard of.",
            (Query(f"max({n.RUN_LAST_PROGRESS.name}{{{RUN}}}) - max({n.RUN_NEWEST_FRAME.name}{{{RUN}}})", "lag"),),
            unit="s",
        ),
    ),
    variables=("project", "run"),
)

GATE: Final = Board(
    "lossguard-gate",
    "Lossguard: gate",
    "What the gate answered to release pipelines, and what its guards found in serving folders.",
    (
        Panel(
            "Verdicts so far",
            "Since the service exists.",
            (Query(f"sum by (outcome) ({of_runs(n.VERDICTS, PROJECT, 'project, outcome')})", "{{outcome}}"),),
            "stat",
        ),
        Panel(
            "Share that passed",
            "Of all verdicts.",
            (
                Query(
                    "(sum("
                    + of_runs(n.VERDICTS, PROJECT + ', outcome="pass"', "project")
                    + f") or vector(0)) / sum({of_runs(n.VERDICTS, PROJECT, 'project, outcome')})"
                ),
            ),
            "stat",
            unit="percentunit",
        ),
        Panel(
            "Verdicts of the last 15 minutes",
            "The value is the export's step, the check the first one that failed. A click leads to the run's page.",
            (Query(of_runs(n.VERDICT_STEP, PROJECT, _VERDICTS)),),
            "table",
            width=24,
            leads_to_run=True,
        ),
        Panel(
            "Verdicts by project",
            "Everything but pass is a release that did not happen.",
            (Query(of_runs(n.VERDICTS, PROJECT, "project, outcome"), "{{project}} {{outcome}}"),),
        ),
        Panel(
            "Unjudged versions in serving folders",
            "Seen by `lossguard gate guard`, in sight or moved away; anything but 0 went around the gate.",
            (Query(f"count(max by (instance, folder, version) ({n.GUARD_UNJUDGED.name})) or vector(0)", "versions"),),
        ),
    ),
    variables=("project",),
)

BOARDS: Final = (FLEET, ONE_RUN, GATE, SERVICE)


@dataclass(frozen=True, slots=True)
class Annotation:
    """Marks on every chart; the query's labels fill the braces of title and text."""

    name: str
    colour: str
    metric: n.Metric
    by: str
    title: str
    text: str

    def expression(self, board: Board) -> str:
        """The query, for the runs that the board is about."""
        about = RUN if "run" in board.variables else PROJECT if "project" in board.variables else ""
        return of_runs(self.metric, about, self.by)


ANNOTATIONS: Final = (
    Annotation(
        "Incidents",
        "red",
        n.RUN_INCIDENT_ONSET,
        "project, run, kind, task, layer",
        "{{kind}}",
        "{{project}}/{{run}} {{task}} {{layer}}",
    ),
    Annotation(
        "Verdicts",
        "orange",
        n.VERDICT_STEP,
        _VERDICTS,
        "gate: {{outcome}}",
        "{{project}}/{{run}} {{check}}",
    ),
)


def expressions(boards: Sequence[Board] = BOARDS) -> list[tuple[str, str]]:
    """Every query with where it stands."""
    found = []
    for board in boards:
        found += [
            (f"{board.uid}: {panel.title} {query.legend}".strip(), query.expression)
            for panel in board.panels
            for query in panel.queries
        ]
        found += [(f"{board.uid}: annotation {one.name}", one.expression(board)) for one in ANNOTATIONS]
    return found
