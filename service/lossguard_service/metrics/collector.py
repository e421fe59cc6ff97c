"""The page that Prometheus scrapes, made anew from the database at each scrape.

Bounded: of a run's layers the five worst, of its incidents the newest three, of scalars none but the loss, of reasons
for dropped frames those that are known. Two replicas that answer at the same moment give the same samples, but for what
each counts about itself.
"""

from collections.abc import Mapping, Sequence

from lossguard.trace.batches import Batch, sentence
from lossguard.wire.incident import SEVERITY
from lossguard.wire.numbers import from_json_number
from lossguard_service.metrics import names
from lossguard_service.metrics.exposition import Page, labels
from lossguard_service.store.fleet import Fleet
from lossguard_service.store.incidents import StoredIncident
from lossguard_service.store.runs import Run

STATUSES = ("healthy", "recovered", "diverged")


def shared(
    fleet: Fleet,
    batches: Mapping[tuple[int, int], Sequence[Batch]],
    *,
    now: float,
    stalled_seconds: float,
) -> bytes:
    """What every replica tells alike.

    Args:
        fleet: the snapshot.
        batches: of its newest incidents, by run and sequence.
        now: Unix seconds.
        stalled_seconds: a run that makes no step for so long is stalled.

    Returns:
        Prometheus' text format.
    """
    page = Page()
    who = {run.id: labels(("project", "run"), (run.project, run.name)) for run in fleet.runs}
    for run in fleet.runs:
        _run(page, who[run.id], run, fleet.gap_steps.get(run.id, 0), now, stalled_seconds)
        for reason, frames in fleet.drops.get(run.id, {}).items():
            page.add(names.RUN_DROPPED_FRAMES, f"{who[run.id]},{labels(('reason',), (reason,))}", frames)
    _incidents(page, who, fleet)
    for run_id, stored in fleet.recent:
        if told := batches.get((run_id, stored.sequence)):
            named = labels(("incident", "batches"), (str(stored.sequence), sentence(told)))
            page.add(names.RUN_INCIDENT_BATCHES, f"{who[run_id]},{named}", 1)
    for (project, outcome), count in sorted(fleet.verdicts.items()):
        page.add(names.VERDICTS, labels(names.VERDICTS.labels, (project, outcome)), count)
    for one in fleet.judged:
        check = next((check.name for check in one.checks if check.status != "pass"), "")
        about = (one.project, one.run, one.outcome, check, one.id)
        page.add(names.VERDICT_STEP, labels(names.VERDICT_STEP.labels, about), one.step)
    for destination, (count, oldest) in fleet.waiting.items():
        where = labels(("destination",), (destination,))
        page.add(names.WEBHOOK_WAITING, where, count)
        page.add(names.WEBHOOK_OLDEST, where, oldest)
    page.add(names.DATABASE_BYTES, "", fleet.database_bytes)
    return page.render()


def own(*, version: str, database: str, pending: int, collect_seconds: float) -> bytes:
    """What this replica tells of the moment; its counts are in `lossguard_service.metrics.replica`."""
    page = Page()
    page.add(names.REPLICA_INFO, labels(names.REPLICA_INFO.labels, (version, database)), 1)
    page.add(names.REPLICA_PENDING_CHUNKS, "", pending)
    page.add(names.REPLICA_COLLECT_SECONDS, "", collect_seconds)
    return page.render()


def _run(page: Page, who: str, run: Run, gap_steps: int, now: float, stalled_seconds: float) -> None:
    add = page.add
    for status in STATUSES:
        add(names.RUN_STATUS, f'{who},status="{status}"', int(run.status == status))
    add(names.RUN_STALLED, who, int(run.phase(now, stalled_seconds) == "stalled"))
    add(names.RUN_LAST_STEP, who, run.last_step)
    add(names.RUN_JUDGED_STEP, who, run.judged_step)
    add(names.RUN_HEARD_STEP, who, max(run.heard_step or 0, run.last_step or 0))
    add(names.RUN_LAST_PROGRESS, who, run.last_progress)
    add(names.RUN_LOSS, who, run.loss_last)
    add(names.RUN_WAITING_CHUNKS, who, run.waiting_chunks)
    add(names.RUN_GAP_STEPS, who, gap_steps)
    add(names.RUN_FRAMES, who, run.frames)
    for metric, key in (
        (names.RUN_NEWEST_FRAME, "time"),
        (names.RUN_STEPS_PER_SECOND, "steps_per_second"),
        (names.RUN_CLIPPING_RATIO, "clippy_ratio_max"),
    ):
        value = run.summary.get(key)
        add(metric, who, None if value is None else from_json_number(value))
    for layer, ratio in run.summary.get("top_layers", ()):
        add(names.RUN_LAYER_CLIPPING_RATIO, f"{who},{labels(('layer',), (layer,))}", from_json_number(ratio))


def _incidents(page: Page, who: dict[int, str], fleet: Fleet) -> None:
    total: dict[tuple[int, str], int] = {}
    for (run_id, kind, still_open), count in sorted(fleet.incidents.items()):
        total[run_id, kind] = total.get((run_id, kind), 0) + count
        if still_open and run_id in who:
            page.add(names.RUN_OPEN_INCIDENTS, f"{who[run_id]},{_kind(kind)}", count)
    for (run_id, kind), count in total.items():
        if run_id in who:
            page.add(names.RUN_INCIDENTS, f"{who[run_id]},{_kind(kind)}", count)
    for run_id, stored in fleet.recent:
        page.add(names.RUN_INCIDENT_ONSET, f"{who[run_id]},{_about(stored)}", stored.incident.onset_step)


def _about(stored: StoredIncident) -> str:
    one = stored.incident
    task, layer = one.tasks[0] if one.tasks else "", one.first_layer or ""
    rest = labels(
        ("incident", "task", "layer", "open"),
        (str(stored.sequence), task, layer, "true" if stored.is_open else "false"),
    )
    return f"{_kind(one.kind)},{rest}"


def _kind(kind: str) -> str:
    severity = next((value for name, value in SEVERITY.items() if name == kind), "warning")
    return f'kind="{kind}",severity="{severity}"'
