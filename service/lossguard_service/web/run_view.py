"""A run and an incident as their templates need them. Pure: everything was read before."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import numpy as np

from lossguard.trace.batches import Batch
from lossguard.wire.frame import Schema
from lossguard.wire.numbers import from_json_number
from lossguard.wire.stats import CLIPPY_RATIO, MEANING
from lossguard.wire.verdict import Check, Verdict
from lossguard_service.store.checkpoints import Checkpoint, Trust, rollback_target, trust
from lossguard_service.store.gaps import Gap
from lossguard_service.store.incidents import StoredIncident
from lossguard_service.store.lineage import Attempt
from lossguard_service.store.runs import Run
from lossguard_service.web import charts, factors, story
from lossguard_service.web.evidence import Evidence, batches_text
from lossguard_service.web.runbooks import FOR_KIND
from lossguard_service.web.trials import flat
from lossguard_service.web.words import (
    KINDS,
    OUTCOMES,
    PHASES,
    STATES,
    count,
    incident_path,
    listing,
    number,
    run_path,
    whole,
)

MOST_BANDS: Final = 200
MOST_WITH_BATCHES: Final = 3
_NOT_PASSED: Final = ("block", "insufficient_data")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """All that was read about a run.

    Attributes:
        run, attempts, incidents, verdicts, checkpoints, gaps: as the store gives them; incidents with superseded ones.
        dropped: frames that the trainer's side dropped, by reason.
        columns: the names of its scalars, layers and stats.
        now: Unix seconds.
        stalled_seconds: how long a run may be silent.
        address: the service's own, for examples.
    """

    run: Run
    attempts: Sequence[Attempt]
    incidents: Sequence[StoredIncident]
    verdicts: Sequence[Verdict]
    checkpoints: Sequence[Checkpoint]
    gaps: Sequence[Gap]
    dropped: Mapping[str, int]
    columns: Schema
    now: float
    stalled_seconds: float
    address: str

    def target(self) -> Checkpoint | None:
        """The checkpoint to go back to."""
        return rollback_target(self.checkpoints, [one.incident for one in self.incidents if not one.superseded])


@dataclass(frozen=True, slots=True)
class Stat:
    """An option of the heat map."""

    name: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Tracks:
    """The charts of a page: where their data is, and what is drawn over it."""

    data_path: str
    heat_path: str
    first_step: int | None
    last_step: int | None
    bands: tuple[dict[str, Any], ...]
    stats: tuple[Stat, ...]
    stat: str
    focus: tuple[int, int] | None
    script: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """A row of newest values."""

    name: str
    kind: str
    hit: str
    loss: str
    normalized: str
    auc: str
    label_mean: str
    prediction_mean: str
    spread: str


@dataclass(frozen=True, slots=True)
class IncidentRow:
    """One incident of a run; `batches` is empty where the run recorded none."""

    stored: StoredIncident
    label: str
    tone: str
    href: str
    where: str
    timeline: tuple[story.Moment, ...]
    batches: str
    runbook: str


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """One verdict; its checks by whether they passed, the worst first."""

    verdict: Verdict
    label: str
    seconds: float
    failed: tuple[Check, ...]
    passed: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """One checkpoint."""

    checkpoint: Checkpoint
    trust: Trust
    target: bool


@dataclass(frozen=True, slots=True)
class RunView:
    """A run's page."""

    run: Run
    project_href: str
    status_label: str
    phase_label: str
    seen_seconds: float
    headline: story.Headline
    headline_href: str
    tasks: tuple[Task, ...]
    scalar_count: int
    tracks: Tracks
    incidents: tuple[IncidentRow, ...]
    verdicts: tuple[VerdictRow, ...]
    attempts: tuple[Attempt, ...]
    gaps: str
    checkpoints: tuple[CheckpointRow, ...]
    config: tuple[tuple[str, str], ...]
    gate_name: str
    layers_href: str
    address: str


@dataclass(frozen=True, slots=True)
class IncidentView:
    """An incident's page."""

    run: Run
    project_href: str
    run_href: str
    stored: StoredIncident
    label: str
    tone: str
    state_label: str
    opened_seconds: float
    headline: story.Headline
    timeline: tuple[story.Moment, ...]
    evidence: Evidence
    runbook: str
    tracks: Tracks


def run_view(facts: RunFacts, batches: Mapping[int, Sequence[Batch]]) -> RunView:
    """The page of a run; `batches` by the sequence of the incident that they came at."""
    run = facts.run
    phase = run.phase(facts.now, facts.stalled_seconds)
    target = facts.target()
    card = story.headline(run, facts.incidents, phase, facts.now - run.last_progress, target)
    counted = [one.incident for one in facts.incidents if not one.superseded]
    return RunView(
        run=run,
        project_href=_project_path(run.project),
        status_label=STATES[run.status],
        phase_label=PHASES[phase],
        seen_seconds=facts.now - run.last_seen,
        headline=card,
        headline_href=incident_path(run.project, run.name, card.sequence) if card.sequence is not None else "",
        tasks=_tasks(facts),
        scalar_count=len(facts.columns.scalars),
        tracks=_tracks(facts, None),
        incidents=tuple(
            _incident(run, one, batches.get(one.sequence, ()))
            for one in sorted(facts.incidents, key=lambda one: (one.superseded, one.incident.onset_step, one.sequence))
        ),
        verdicts=tuple(
            VerdictRow(
                one,
                OUTCOMES[one.outcome],
                facts.now - one.created,
                tuple(check for answer in _NOT_PASSED for check in one.checks if check.status == answer),
                tuple(check for check in one.checks if check.status == "pass"),
            )
            for one in facts.verdicts
        ),
        attempts=tuple(facts.attempts),
        gaps=_gaps(facts),
        checkpoints=tuple(CheckpointRow(one, trust(one.step, counted), one == target) for one in facts.checkpoints),
        config=tuple(flat(run.config).items()),
        layers_href=f"{run_path(run.project, run.name)}/layers",
        gate_name=f"{run.project}/{run.name}",
        address=facts.address,
    )


def loudest(incidents: Sequence[StoredIncident]) -> list[StoredIncident]:
    """The incidents whose batches a run's page tells; the others' are on their own pages."""
    return sorted((one for one in incidents if not one.superseded), key=story.rank)[:MOST_WITH_BATCHES]


def _incident(run: Run, stored: StoredIncident, batches: Sequence[Batch]) -> IncidentRow:
    incident = stored.incident
    tasks = f"{'task' if len(incident.tasks) == 1 else 'tasks'} {listing(incident.tasks)}" if incident.tasks else ""
    layer = f"layer {incident.first_layer}" if incident.first_layer else ""
    return IncidentRow(
        stored,
        KINDS[incident.kind],
        _tone(stored),
        incident_path(run.project, run.name, stored.sequence),
        ", ".join(filter(None, (tasks, layer))),
        story.timeline(stored, run.judged_step),
        batches_text(batches),
        FOR_KIND.get(incident.kind, ""),
    )


def incident_view(facts: RunFacts, stored: StoredIncident, evidence: Evidence) -> IncidentView:
    """The page of one incident."""
    run, incident = facts.run, stored.incident
    moments = [incident.onset_step, incident.detected_step, incident.peak_step]
    moments += [step for step in (incident.first_signal_step, incident.end_step) if step is not None]
    reach = max(40, max(moments) - min(moments))
    state = "Superseded" if stored.superseded else "Open" if stored.is_open else "Over"
    return IncidentView(
        run=run,
        project_href=_project_path(run.project),
        run_href=run_path(run.project, run.name),
        stored=stored,
        label=KINDS[incident.kind],
        tone=_tone(stored),
        state_label=state,
        opened_seconds=facts.now - stored.opened,
        headline=story.of_incident(stored, facts.target(), run.last_step),
        timeline=story.timeline(stored, run.judged_step),
        evidence=evidence,
        runbook=FOR_KIND.get(incident.kind, ""),
        tracks=_tracks(
            facts,
            (
                max(run.first_step or 1, min(moments) - reach),
                min(run.last_step or max(moments), max(moments) + reach),
            ),
        ),
    )


def _tracks(facts: RunFacts, focus: tuple[int, int] | None) -> Tracks:
    run = facts.run
    path = run_path(run.project, run.name)
    bands = tuple(
        {
            "first": one.incident.onset_step,
            "last": one.incident.end_step if one.incident.end_step is not None else run.last_step,
            "open": one.is_open,
            "tone": one.incident.severity,
            "label": KINDS[one.incident.kind],
            "number": one.sequence,
        }
        for one in sorted(facts.incidents, key=story.rank)[:MOST_BANDS]
        if not one.superseded
    )
    stats = tuple(Stat(name, MEANING.get(name, "")) for name in facts.columns.stats)
    stats += tuple(Stat(*one) for one in factors.possible(facts.columns).items())
    names = [stat.name for stat in stats]
    tasks = charts.tasks_of(run.config, facts.columns.scalars)
    return Tracks(
        data_path=f"{path}/charts.json",
        heat_path=f"{path}/heatmap.json",
        first_step=run.first_step,
        last_step=run.last_step,
        bands=bands,
        stats=stats,
        stat="gradient_norm" if "gradient_norm" in names else CLIPPY_RATIO if CLIPPY_RATIO in names else "",
        focus=focus,
        script={
            "bands": list(bands),
            "attempts": [
                {"number": one.number, "step": one.start_step}
                for one in facts.attempts
                if one.number > 1 and one.start_step is not None
            ],
            "tasks": list(tasks),
        },
    )


def _tasks(facts: RunFacts) -> tuple[Task, ...]:
    last = facts.run.summary.get("scalars")
    newest: Mapping[str, Any] = last if isinstance(last, Mapping) else {}
    hits: dict[str, str] = {}
    for one in sorted(facts.incidents, key=story.rank, reverse=True):
        if not one.superseded and one.incident.severity != "info":
            for task in one.incident.tasks:
                hits[task] = f"{'hit' if one.is_open else 'was hit'} at step {whole(one.incident.onset_step)}"

    def value(name: str) -> str:
        return number(newest[name]) if name in newest else "–"

    rows = []
    for task, kind in charts.tasks_of(facts.run.config, facts.columns.scalars).items():
        rows.append(
            Task(
                name=task,
                kind=kind,
                hit=hits.get(task, ""),
                loss=value(f"loss/{task}"),
                normalized=_normalized(newest, task) if kind == "binary" else "–",
                auc=value(f"batch_auc/{task}"),
                label_mean=value(f"label_mean/{task}"),
                prediction_mean=value(f"prediction_mean/{task}"),
                spread=value(f"prediction_std/{task}"),
            )
        )
    return tuple(rows)


def _normalized(newest: Mapping[str, Any], task: str) -> str:
    if not {f"loss/{task}", f"label_mean/{task}"} <= newest.keys():
        return "–"
    base = float(charts.entropy(np.array([from_json_number(newest[f"label_mean/{task}"])]))[0])
    loss = from_json_number(newest[f"loss/{task}"])
    return number(loss / base) if base > 0 else "NaN" if math.isnan(loss) else "–"


def _tone(stored: StoredIncident) -> str:
    if stored.superseded:
        return "quiet"
    return stored.incident.severity if stored.is_open or stored.incident.severity == "info" else "warning"


_WHY: Final = {
    "dropped": "the trainer's side dropped them",
    "missing_chunk": "their chunk has not come: it still may, unless the trainer died before it was sealed",
    "missing_start": "the attempt's first chunk has not come, so nobody knows where it began",
}


def _gaps(facts: RunFacts) -> str:
    said = []
    if facts.gaps:
        missing = sum(gap.steps for gap in facts.gaps)
        first = facts.gaps[0]
        where = f"steps {whole(first.first_step)} to {whole(first.last_step)} of attempt {first.attempt}"
        more = f" and {count(len(facts.gaps) - 1, 'more gap')}" if len(facts.gaps) > 1 else ""
        said.append(f"{count(missing, 'step')} without a frame that counts: {where} ({_WHY[first.kind]}){more}.")
    if facts.dropped:
        reasons = ", ".join(f"{whole(frames)} {reason}" for reason, frames in sorted(facts.dropped.items()))
        said.append(f"Dropped on the trainer's side: {reasons}.")
    return " ".join(said)


def _project_path(project: str) -> str:
    return f"/?{urlencode({'project': project})}"
