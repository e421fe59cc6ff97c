"""The dashboard of the service itself: what its replicas are asked, how long they take, how far they are behind."""

from typing import Final

from dashboards.board import RATE, Board, Panel, Query, of_runs
from lossguard_service.metrics import names as n

BY_REPLICA: Final = "{{instance}}"


def _high(metric: n.Metric, by: str) -> str:
    """The 99th percentile of a histogram."""
    return f"histogram_quantile(0.99, sum by (le, {by}) (rate({metric.name}_bucket[{RATE}])))"


SERVICE: Final = Board(
    "lossguard-service",
    "Lossguard: service health",
    "The replicas: what they are asked, how long they take, how far ingest and detectors are behind.",
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
            (Query(f"sum({of_runs(n.RUN_LAST_STEP)} - {of_runs(n.RUN_JUDGED_STEP)})"),),
            "stat",
            width=6,
        ),
        Panel(
            "Chunks that wait",
            "For one that has not come.",
            (Query(f"sum({of_runs(n.RUN_WAITING_CHUNKS)})"),),
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
            (Query(_high(n.REPLICA_REQUEST_SECONDS, "route"), "{{route}}"),),
            unit="s",
        ),
        Panel(
            "Ingest lag",
            "The ten runs whose frames come latest: from measured, by the trainer's clock, until last heard of.",
            (
                Query(
                    f"topk(10, {of_runs(n.RUN_LAST_PROGRESS)} - {of_runs(n.RUN_NEWEST_FRAME)})", "{{project}}/{{run}}"
                ),
            ),
            unit="s",
            leads_to_run=True,
        ),
        Panel(
            "Chunks in work",
            "By replica; at `max_pending_chunks` it answers 503.",
            (Query(n.REPLICA_PENDING_CHUNKS.name, BY_REPLICA),),
        ),
        Panel(
            "Transactions, 99th percentile",
            "Waiting for their turn included; a write is one chunk.",
            (Query(_high(n.REPLICA_DATABASE_SECONDS, "kind"), "{{kind}}"),),
            unit="s",
        ),
        Panel(
            "Transactions that failed",
            "Per second, by replica: the database refused them or did not answer.",
            (Query(f"rate({n.REPLICA_DATABASE_ERRORS.name}[{RATE}])", BY_REPLICA + " {{kind}}"),),
        ),
        Panel(
            "Size of the database",
            "Chunks, segments, indexes.",
            (Query(f"max({n.DATABASE_BYTES.name})", "bytes"),),
            unit="bytes",
        ),
        Panel(
            "Time to read the database for a scrape",
            "By replica.",
            (Query(n.REPLICA_COLLECT_SECONDS.name, BY_REPLICA),),
            unit="s",
        ),
        Panel(
            "Notices that wait for webhooks",
            "By destination: how many, and for how many seconds the oldest has waited.",
            (
                Query(f"max by (destination) ({n.WEBHOOK_WAITING.name})", "{{destination}}"),
                Query(f"time() - max by (destination) ({n.WEBHOOK_OLDEST.name})", "{{destination}} oldest"),
            ),
        ),
        Panel(
            "Tries to tell webhooks",
            "So far, of all replicas.",
            (
                Query(
                    f"sum by (destination, outcome) ({n.REPLICA_WEBHOOK_ANSWERS.name})", "{{destination}} {{outcome}}"
                ),
            ),
        ),
        Panel("CPU", "Cores, by replica.", (Query(f"rate({n.PROCESS_CPU.name}[{RATE}])", BY_REPLICA),)),
        Panel("Memory", "By replica.", (Query(n.PROCESS_MEMORY.name, BY_REPLICA),), unit="bytes"),
        Panel(
            "Open files",
            "By replica; a line that climbs for days is a leak.",
            (Query(n.PROCESS_OPEN_FILES.name, BY_REPLICA),),
        ),
        Panel(
            "Replicas",
            "Version and database; the value is for how many seconds the process has run.",
            (
                Query(
                    f"(time() - max by (instance) ({n.PROCESS_START.name})) * on (instance) "
                    f"group_right max by (instance, version, database) ({n.REPLICA_INFO.name})"
                ),
            ),
            "table",
            unit="s",
        ),
    ),
)
