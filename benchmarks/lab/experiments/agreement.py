"""Lossguard's verdict on every run of the lab, against the rule that knows the end."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from lab.config import Config, Outcome
from lab.hindsight import START_UP
from lab.lab import Lab
from lab.report.markdown import interval, table
from lab.summary import ratio
from lab.worker import name

NAME = "agreement"
TITLE = "Lossguard against hindsight, over all runs"

LISTED = 60
STATUSES = ("diverged", "recovered", "healthy")
LABELS = ("full", "nan", "micro", "degraded", "healthy")


def plan(lab: Lab) -> Iterable[Config]:
    """Nothing of its own."""
    return ()


def _all(lab: Lab) -> list[Outcome]:
    from lab.experiments import ALL

    configs = dict.fromkeys(config for one in ALL if one.NAME != NAME for config in one.plan(lab))
    return [found for config in configs if (found := lab.known(config)) is not None]


def measure(lab: Lab) -> dict[str, Any]:
    """The two labels against each other, and the runs on which they disagree about a divergence."""
    outcomes = _all(lab)
    table_ = Counter((one.hindsight, one.status) for one in outcomes)
    lost = [one for one in outcomes if one.diverged]
    sound = [one for one in outcomes if not one.diverged]
    apart = [one for one in outcomes if one.diverged != (one.status == "diverged")]
    return {
        "runs": len(outcomes),
        "counts": [{"hindsight": label, "status": status, "runs": n} for (label, status), n in sorted(table_.items())],
        "found": _found(lost),
        "found_late": _found([one for one in lost if (one.onset or 0) > START_UP]),
        "found_early": _found([one for one in lost if (one.onset or 0) <= START_UP]),
        "false": ratio(sum(one.status == "diverged" for one in sound), len(sound)),
        "delays": _delays(lost),
        "disagreements": [_row(one) for one in apart],
    }


def _found(lost: list[Outcome]) -> dict[str, Any]:
    return ratio(sum(one.status == "diverged" for one in lost), len(lost))


def _delays(lost: list[Outcome]) -> dict[str, Any]:
    """Steps from the onset by hindsight to the incident that Lossguard flagged nearest to it."""
    found = []
    for one in lost:
        flagged = [i["detected_step"] for i in one.incidents if i["kind"] in ("full_divergence", "nonfinite")]
        if flagged and one.onset is not None:
            found.append(min((step - one.onset for step in flagged), key=abs))
    found.sort()
    middle = found[len(found) // 2] if found else None
    return {"runs": len(found), "median": middle, "within_10": sum(abs(delay) <= 10 for delay in found)}


def _row(one: Outcome) -> dict[str, Any]:
    breaking = [i for i in one.incidents if i["kind"] in ("full_divergence", "nonfinite", "no_update")]
    return {
        "run": name(one.config),
        "hindsight": one.hindsight,
        "status": one.status,
        "auc": one.final["auc/click"],
        "onset": one.onset,
        "incident": None if not breaking else {key: breaking[0][key] for key in ("kind", "onset_step", "tasks")},
    }


def text(found: dict[str, Any]) -> list[str]:
    """The section."""
    by = {(row["hindsight"], row["status"]): row["runs"] for row in found["counts"]}
    labels = [label for label in LABELS if any(key[0] == label for key in by)]
    rows = [[label, *(str(by.get((label, status), 0)) for status in STATUSES)] for label in labels]
    delays = found["delays"]
    lines = [
        f"{found['runs']} runs, each judged twice. Hindsight looks at the total loss, the click task and the held-out "
        "click AUC; Lossguard at every task, step by step, without knowing the end.",
        "",
        *table(["hindsight", *(f"Lossguard: {status}" for status in STATUSES)], rows),
        "",
        f"Of the runs that hindsight calls lost after an event, Lossguard calls {interval(found['found'])} diverged; "
        f"of the others {interval(found['false'])}. Where it flagged one, {delays['within_10']} of {delays['runs']} "
        f"were flagged within 10 steps of the onset that hindsight names (median {delays['median']}).",
    ]
    if found["disagreements"]:
        shown = found["disagreements"][:LISTED]
        rows = []
        for row in shown:
            incident = row["incident"]
            what = "-" if incident is None else f"{incident['kind']} from {incident['onset_step']}"
            tasks = "-" if incident is None else ", ".join(incident["tasks"]) or "total"
            auc = "NaN" if isinstance(row["auc"], str) else f"{100 * row['auc']:.2f}"
            rows.append([row["run"], row["hindsight"], row["status"], auc, str(row["onset"] or "-"), what, tasks])
        head = ["run", "hindsight", "Lossguard", "click AUC, %", "onset (hindsight)", "its incident", "tasks"]
        rest = len(found["disagreements"]) - len(shown)
        lines += ["", "Where they disagree:", "", *table(head, rows)]
        if rest:
            lines += ["", f"and {rest} more in the results file."]
    return lines


def headline(found: dict[str, Any]) -> str:
    """How often Lossguard is right."""
    return (
        f"Over {found['runs']} runs Lossguard calls {interval(found['found'])} of the lost ones diverged: "
        f"{interval(found['found_late'])} of those lost after step {START_UP}, {interval(found['found_early'])} of "
        "those lost before, which leave nothing to compare with. Of the others it calls "
        f"{interval(found['false'])} diverged."
    )
