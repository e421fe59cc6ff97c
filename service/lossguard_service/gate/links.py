"""Where a check's evidence can be looked at: a path on this service, beside the sentence that tells of it.

Guarantees. Pure. Empty where there is nothing to look at but the check itself (what the agent found in the artifact),
or where the run is not known.
"""

from typing import Final
from urllib.parse import quote, urlencode

from lossguard_service.gate.facts import Facts

MOST_SIDE_BY_SIDE: Final = 8
"""Runs on one page of comparison."""
_PLACES: Final = {
    "run_known": "", "step_reached": "#attempts", "telemetry_complete": "#attempts", "judged": "#attempts",
    "recent": "#attempts", "coverage": "#config", "no_open_incident": "#incidents", "quiet_period": "#incidents",
    "recovered_divergences": "#incidents", "finite": "#tasks", "quality_window": "#tasks", "tasks_known": "#tasks",
    "slots_finite": "/layers",
}  # fmt: skip
_TASKS: Final = ("batch_auc/", "normalized_entropy/", "error_ratio/", "calibration/", "prediction_spread/", "quality/")
_BEFORE: Final = "metric_not_worse:"


def evidence(name: str, facts: Facts) -> str:
    """The path for a check of this name."""
    if not facts.run_known:
        return ""
    if name.startswith(_BEFORE):
        before = facts.previous.get(name.removeprefix(_BEFORE))
        return "" if before is None else f"{_run(facts.project, before.run)}#verdict-{before.verdict}"
    if name == "attribution" and facts.blocked_as:
        blocked = facts.blocked_as[0]
        return f"{_run(facts.project, blocked.run)}#verdict-{blocked.verdict}"
    if name == "attribution":
        return f"{_run(facts.project, facts.run)}/layers"
    if name.startswith("trial"):
        runs = [("run", f"{facts.project}/{one.run}") for one in facts.trials[:MOST_SIDE_BY_SIDE]]
        return f"/compare?{urlencode(runs)}" if len(runs) > 1 else ""
    place = "#tasks" if name.startswith(_TASKS) else _PLACES.get(name)
    return "" if place is None else _run(facts.project, facts.run) + place


def _run(project: str, run: str) -> str:
    return f"/runs/{quote(project, safe='')}/{quote(run, safe='')}"
