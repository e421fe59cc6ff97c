"""Facts from the store: one consistent snapshot of everything a verdict rests on.

Guarantees. Reads only. What the store does not hold stays unknown in the facts; nothing is filled in.
"""

import math
from collections.abc import Mapping
from typing import Any

from lossguard_service.gate.facts import Attempt, Canary, Drops, Facts, Scan, Span, window_of
from lossguard_service.store.checkpoints import rollback_target
from lossguard_service.store.database import Database
from lossguard_service.store.evidence import Evidence, find_evidence


async def gather(
    database: Database,
    *,
    project: str,
    run: str,
    step: int,
    artifact_digest: str,
    now: float,
    window_steps: int,
    attempt: str | None = None,
    metrics: Mapping[str, float] | None = None,
    previous_metrics: Mapping[str, float] | None = None,
    scan: Scan | None = None,
    canary: Canary | None = None,
) -> Facts:
    """All facts about one export.

    Args:
        database: where they are.
        project, run, step, artifact_digest, attempt, metrics, scan, canary: as the request says.
        now: Unix seconds.
        window_steps: how many of the last steps' scalars are wanted.
        previous_metrics: those of the last export that passed.
    """
    first = max(1, step - window_steps + 1)
    evidence = await find_evidence(database, project, run, first, max(step, 1))
    said: dict[str, Any] = {
        "project": project, "run": run, "step": step, "artifact_digest": artifact_digest, "attempt": attempt,
        "metrics": dict(metrics or {}), "previous_metrics": dict(previous_metrics or {}),
        "scan": scan, "canary": canary,
    }  # fmt: skip
    if evidence is None:
        return Facts(**said)
    config = evidence.run.config
    return Facts(
        **said,
        run_known=True,
        attempts=tuple(
            Attempt(one.number, one.key, one.start_step, one.last_step, one.stop_reason) for one in evidence.attempts
        ),
        spans=tuple(Span(one.attempt, one.first, one.last) for one in evidence.spans),
        drops=tuple(Drops(one.attempt, one.first_step, one.counts) for one in evidence.drops),
        judged_step=evidence.run.judged_step,
        silent_seconds=max(0.0, now - evidence.run.last_seen),
        parameters_watched=_share(config.get("parameters_watched")),
        tasks=_tasks(config.get("tasks")),
        incidents=evidence.incidents,
        window=window_of(evidence.frames, first, step) if evidence.frames else None,
        good_checkpoint=_target(evidence, step),
    )


def _share(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _tasks(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {}
    return {str(task): str(kind) for task, kind in value.items()}


def _target(evidence: Evidence, step: int) -> tuple[int, str] | None:
    earlier = [one for one in evidence.checkpoints if one.step < step]
    target = rollback_target(earlier, evidence.incidents)
    return None if target is None else (target.step, target.path)
