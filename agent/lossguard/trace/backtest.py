"""How cautious to be: chosen on one's own healthy runs for a budget of false alarms, before anything is switched on.

An alarm is a micro- or full divergence. Each caution on a fixed grid is tried on the healthy runs, the smallest (most
sensitive) one within the budget is chosen, and what it costs is read off runs that did diverge: how many are found, and
how many steps after their onset they are flagged and declared.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lossguard.trace.replay import replay
from lossguard.trace.trace import Trace

GRID = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0)
"""Factors on the scales by which losses are judged; 1 is the default, tuned on other people's runs."""
ALARMS = ("micro_divergence", "full_divergence")


@dataclass(frozen=True, slots=True)
class Trial:
    """One caution on the given runs.

    Attributes:
        caution: see `monitor.init`.
        alarms: alarms on the healthy runs.
        rate: alarms per 10,000 frames of healthy runs.
        found: diverged runs whose final status says so.
        diverged: diverged runs.
        flagged: steps from onset to flag, for those found, sorted.
    """

    caution: float
    alarms: int
    rate: float
    found: int
    diverged: int
    flagged: tuple[int, ...]


def trial(caution: float, healthy: Sequence[Trace], diverged: Sequence[Trace]) -> Trial:
    """Run the detectors at one caution.

    Raises:
        ValueError: no healthy frame to learn from.
    """
    frames = sum(len(trace) for trace in healthy)
    if not frames:
        raise ValueError("no healthy run with frames in it: a budget of false alarms needs some")
    reports = [replay(trace, caution) for trace in healthy]
    alarms = sum(incident.kind in ALARMS for report in reports for incident in report.incidents)
    found, flagged = 0, []
    for trace in diverged:
        report = replay(trace, caution)
        if report.status == "diverged":
            found += 1
            flagged += [
                incident.detected_step - incident.onset_step
                for incident in report.incidents
                if incident.end_step is None and incident.kind in ("full_divergence", "nonfinite")
            ][:1]
    return Trial(caution, alarms, 1e4 * alarms / frames, found, len(diverged), tuple(sorted(flagged)))


def choose(trials: Sequence[Trial], budget: float) -> Trial | None:
    """The most sensitive trial from which on every more cautious one is within the budget; None if none is."""
    kept: Trial | None = None
    for one in sorted(trials, key=lambda item: -item.caution):
        if one.rate > budget:
            break
        kept = one
    return kept


def document(trials: Sequence[Trial], chosen: Trial | None, budget: float) -> dict[str, Any]:
    """What `lossguard backtest --format json` prints: the caution that was chosen, or null, and every trial."""
    rows = [asdict(one) | {"flagged": list(one.flagged)} for one in trials]
    return {"budget": budget, "caution": None if chosen is None else chosen.caution, "trials": rows}
