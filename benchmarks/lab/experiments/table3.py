"""The paper's Table 3 in small: what takes a model at the edge of instability away from it, one change at a time."""

from collections.abc import Iterable
from typing import Any

from lab import summary
from lab.config import Config
from lab.grids import CLIPPY
from lab.lab import Lab
from lab.report.markdown import counts, interval, percent, table
from lab.summary import ratio
from lossguard.demo.features import TASKS

NAME = "table3"
TITLE = "Table 3: what makes a model at the edge diverge"

TRIALS = 10
CLEAN = Config(bottom="large+dcn", learning_rate=0.2, warm_up=100, raw=True, steps=500)
"""No treatment, a short warm-up, a follower count that nobody normalised, and a rate at which it is a coin flip."""

CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "clean": ({}, "5/5"),
    "small with DCN": ({"bottom": "small+dcn"}, "1/3 (smaller model)"),
    "without DCN": ({"bottom": "large"}, "2/3"),
    "without the raw feature": ({"raw": False}, "2/3 (a subset of features)"),
    "without the sparse features": ({"sparse": False}, ""),
    "without play time": ({"tasks": tuple(task for task in TASKS if task != "play_time")}, "2/3 (one task)"),
    "without watch ratio": ({"tasks": tuple(task for task in TASKS if task != "watch_ratio")}, "2/3 (one task)"),
    "without both regressions": (
        {"tasks": tuple(task for task, kind in TASKS.items() if kind == "binary")},
        "0/3 (two tasks)",
    ),
    "click alone": ({"tasks": ("click",)}, ""),
    "warm-up of 300 steps": ({"warm_up": 300}, ""),
    "window of six days": ({"window_days": 6.0}, ""),
    "with Clippy": ({"treatment": "clippy", "settings": CLIPPY}, ""),
}
"""Each change with what a public summary of the paper's table reports: diverged of tried."""

WITHOUT_REGRESSIONS = ("without both regressions", "click alone")


def _changes(lab: Lab) -> dict[str, dict[str, Any]]:
    chosen = ("clean", "click alone") if lab.quick else tuple(CHANGES)
    return {name: CHANGES[name][0] for name in chosen}


def configs(lab: Lab, change: dict[str, Any]) -> list[Config]:
    """The trials of a row."""
    base = CLEAN.but(bottom="small") if lab.quick else CLEAN
    return [lab.small(base.but(**change, seed=seed)) for seed in lab.seeds(TRIALS)]


def plan(lab: Lab) -> Iterable[Config]:
    """Row after row."""
    for change in _changes(lab).values():
        yield from configs(lab, change)


def measure(lab: Lab) -> dict[str, Any]:
    """A row for each change."""
    rows = []
    for name, change in _changes(lab).items():
        rows.append({"change": name, **summary.trials([lab.outcome(one) for one in configs(lab, change)])})
    return {"rows": rows, "steps": CLEAN.steps, "rate": CLEAN.learning_rate, "warm_up": CLEAN.warm_up}


def text(found: dict[str, Any]) -> list[str]:
    """The section."""
    rows = [
        [
            row["change"],
            interval(row["diverged"]),
            str(row["hindsight"].get("micro", 0)),
            percent(row["auc"]),
            counts(row["detectors"]),
            CHANGES[row["change"]][1] or "-",
        ]
        for row in found["rows"]
    ]
    head = ["change", "diverged", "micro", "click AUC, %", "Lossguard says", "paper: diverged of tried"]
    return [
        f"Naive Adagrad at {found['rate']:g} after {found['warm_up']} steps of warm-up, Large+DCN with a raw follower "
        f"count, {found['steps']} steps. With these seeds whether a run diverges is a coin flip, so what an interval "
        "does not say, the table does not. The paper's figures are quoted from a public summary of it.",
        "",
        *table(head, rows),
    ]


def headline(found: dict[str, Any]) -> str:
    """Which rows differ from the clean one by more than chance: their intervals do not touch."""
    clean = found["rows"][0]["diverged"]

    def named(rows: list[dict[str, Any]]) -> str:
        return ", ".join(f"{row['change']} ({row['diverged']['hits']}/{row['diverged']['trials']})" for row in rows)

    less = [row for row in found["rows"] if row["diverged"]["high"] < clean["low"]]
    more = [row for row in found["rows"] if row["diverged"]["low"] > clean["high"]]
    rest = [row for row in found["rows"][1:] if row not in less and row not in more]
    said = [f"The clean model at the edge diverged in {interval(clean)}."]
    bare = [row["diverged"] for row in found["rows"] if row["change"] in WITHOUT_REGRESSIONS]
    together = ratio(sum(one["hits"] for one in bare), sum(one["trials"] for one in bare))
    said.append(f"Without any regression task: {interval(together)}, both such rows together.")
    if less:
        said.append(f"Fewer divergences, the intervals apart: {named(less)}.")
    if more:
        said.append(f"More, the intervals apart: {named(more)}.")
    if rest:
        said.append(f"Not told apart with so many seeds: {named(rest)}.")
    return " ".join(said)
