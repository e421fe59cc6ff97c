"""The only list of metric names. Dashboards, alert rules and docs use these constants and nothing else.

Metrics of runs, verdicts, webhooks and the database come from the database, so every replica gives the same answer;
metrics of the replica itself begin with `lossguard_replica_`, those of its process with `process_`. Series of finished
and forgotten runs disappear.
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
RUN_INCIDENT_BATCHES: Final = Metric(
    "lossguard_run_incident_batches_info",
    "gauge",
    "1; batches: those at the beginning of the incidents above, 12 at most, of runs that record batch_id.",
    (*_RUN, "incident", "batches"),
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
RUN_NEWEST_FRAME: Final = Metric(
    "lossguard_run_newest_frame_timestamp_seconds",
    "gauge",
    "When the newest judged frame was measured, by the trainer's clock, Unix seconds.",
    _RUN,
)
RUN_HEARD_STEP: Final = Metric(
    "lossguard_run_heard_step",
    "gauge",
    "The trainer's last step by its heartbeats, or the last one stored if that is later.",
    _RUN,
)
RUN_WAITING_CHUNKS: Final = Metric(
    "lossguard_run_waiting_chunks", "gauge", "Chunks that came early and wait for a gap to fill.", _RUN
)
RUN_GAP_STEPS: Final = Metric(
    "lossguard_run_gap_steps",
    "gauge",
    "Steps between the last one before the gap and the first one that waits behind it; 0 without a gap.",
    _RUN,
)
RUN_FRAMES: Final = Metric("lossguard_run_frames_total", "counter", "Frames stored.", _RUN)
RUN_DROPPED_FRAMES: Final = Metric(
    "lossguard_run_dropped_frames_total",
    "counter",
    "Frames that the trainer's side dropped and counted, by reason.",
    (*_RUN, "reason"),
)
VERDICTS: Final = Metric("lossguard_verdicts_total", "counter", "Verdicts given by the gate.", ("project", "outcome"))
VERDICT_STEP: Final = Metric(
    "lossguard_gate_verdict_step",
    "gauge",
    "Step of exports that the gate judged within 15 minutes, at most 100, refused first; check: the first that failed.",
    (*_RUN, "outcome", "check", "verdict"),
)
WEBHOOK_WAITING: Final = Metric(
    "lossguard_webhook_waiting_notices", "gauge", "Notices that have not reached their webhook yet.", ("destination",)
)
WEBHOOK_OLDEST: Final = Metric(
    "lossguard_webhook_oldest_notice_timestamp_seconds",
    "gauge",
    "When the oldest notice that still waits for its webhook came about, Unix seconds.",
    ("destination",),
)
DATABASE_BYTES: Final = Metric("lossguard_database_bytes", "gauge", "Size of the database.")
REPLICA_INFO: Final = Metric(
    "lossguard_replica_info", "gauge", "1, with this replica's version and kind of database.", ("version", "database")
)
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
REPLICA_DATABASE_SECONDS: Final = Metric(
    "lossguard_replica_database_seconds",
    "histogram",
    "Time of a transaction of this replica, waiting for its turn included.",
    ("kind",),
)
REPLICA_DATABASE_ERRORS: Final = Metric(
    "lossguard_replica_database_errors_total",
    "counter",
    "Transactions of this replica that the database refused or did not answer.",
    ("kind",),
)
REPLICA_WEBHOOK_ANSWERS: Final = Metric(
    "lossguard_replica_webhook_answers_total",
    "counter",
    "What came of this replica's tries to tell a webhook: sent, failed (tried again later) or given_up.",
    ("destination", "outcome"),
)
PROCESS_CPU: Final = Metric(
    "process_cpu_seconds_total", "counter", "CPU time of this replica's process, user and system."
)
PROCESS_MEMORY: Final = Metric("process_resident_memory_bytes", "gauge", "Memory that this replica's process holds.")
PROCESS_OPEN_FILES: Final = Metric("process_open_fds", "gauge", "File descriptors that this replica's process holds.")
PROCESS_START: Final = Metric(
    "process_start_time_seconds", "gauge", "When this replica's process started, Unix seconds."
)
GUARD_UNJUDGED: Final = Metric(
    "lossguard_guard_unjudged_version",
    "gauge",
    "1 for each version in a serving folder, or in its quarantine, without a valid verdict.",
    ("folder", "version", "moved"),
)
"""Told by `lossguard gate guard`, not by the service; lossguard.gate.exposition spells the same."""

ALL: Final = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
