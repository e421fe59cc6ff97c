"""The only list of metric names. Dashboards, alert rules and docs use these constants and nothing else.

Metrics of runs come from the database, so every replica gives the same answer; metrics of the replica itself begin with
`lossguard_replica_`. Series of finished and forgotten runs disappear.
"""

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's name, kind, help and labels. The name is the one on the page, `_total` included."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


_RUN: Final = ("project", "run")

RUN_STATUS: Final = Metric(
    "lossguard_run_status", "gauge", "1 for the run's status (healthy, recovered, diverged), else 0.", (*_RUN, "status")
)
RUN_STALLED: Final = Metric("lossguard_run_stalled", "gauge", "1 if the run is silent for too long, else 0.", _RUN)
RUN_LAST_STEP: Final = Metric("lossguard_run_last_step", "gauge", "The run's last step that was stored.", _RUN)
RUN_JUDGED_STEP: Final = Metric(
    "lossguard_run_judged_step", "gauge", "The last step that the detectors have seen.", _RUN
)
RUN_STEPS_PER_SECOND: Final = Metric("lossguard_run_steps_per_second", "gauge", "Speed over the newest chunk.", _RUN)
RUN_LAST_PROGRESS: Final = Metric(
    "lossguard_run_last_progress_timestamp_seconds", "gauge", "When the run's last step last rose, Unix seconds.", _RUN
)
RUN_LOSS: Final = Metric("lossguard_run_loss", "gauge", "The run's last loss; NaN is told as it is.", _RUN)
RUN_OPEN_INCIDENTS: Final = Metric(
    "lossguard_run_open_incidents", "gauge", "Open incidents of the run.", (*_RUN, "kind", "severity")
)
RUN_INCIDENTS: Final = Metric(
    "lossguard_run_incidents", "gauge", "Incidents of the run, ended ones included.", (*_RUN, "kind", "severity")
)
RUN_INCIDENT_ONSET: Final = Metric(
    "lossguard_run_incident_onset_step",
    "gauge",
    "Onset of the run's three newest incidents that are open, or were within 15 minutes; notices left out.",
    (*_RUN, "kind", "severity", "incident", "task", "layer", "open"),
)
RUN_CLIPPING_RATIO: Final = Metric(
    "lossguard_run_clipping_ratio_max",
    "gauge",
    "Largest Clippy ratio over layers in the newest chunk; above 1 clips.",
    _RUN,
)
RUN_LAYER_CLIPPING_RATIO: Final = Metric(
    "lossguard_run_layer_clipping_ratio",
    "gauge",
    "Clippy ratio of the five worst layers in the newest chunk.",
    (*_RUN, "layer"),
)
RUN_WAITING_CHUNKS: Final = Metric(
    "lossguard_run_waiting_chunks", "gauge", "Chunks that came early and wait for a gap to fill.", _RUN
)
RUN_FRAMES: Final = Metric("lossguard_run_frames_total", "counter", "Frames stored.", _RUN)
RUN_DROPPED_FRAMES: Final = Metric(
    "lossguard_run_dropped_frames_total", "counter", "Frames that the trainer's side dropped and counted.", _RUN
)
VERDICTS: Final = Metric("lossguard_verdicts_total", "counter", "Verdicts given by the gate.", ("project", "outcome"))
REPLICA_PENDING_CHUNKS: Final = Metric(
    "lossguard_replica_pending_chunks", "gauge", "Chunks in work in this replica right now."
)
REPLICA_REQUEST_SECONDS: Final = Metric(
    "lossguard_replica_request_seconds",
    "histogram",
    "Time to answer a request in this replica.",
    ("method", "route", "status"),
)
REPLICA_COLLECT_SECONDS: Final = Metric(
    "lossguard_replica_collect_seconds", "gauge", "Time that reading the database for this page took."
)
GUARD_UNJUDGED: Final = Metric(
    "lossguard_guard_unjudged_version",
    "gauge",
    "1 for each version in a serving folder, or in its quarantine, without a valid verdict.",
    ("folder", "version", "moved"),
)
"""Told by `lossguard gate guard`, not by the service; lossguard.gate.exposition spells the same."""

ALL: Final = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
