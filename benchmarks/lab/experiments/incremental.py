"""The report's open question: is there a training on strictly sequential data, as they come, without instability?

The rows are taken in the order in which they happened, once, without a window to draw from: what a model sees that is
trained incrementally.
"""

from collections.abc import Iterable
from typing import Any

from lab import summary
from lab.config import Bottom, Config
from lab.experiments import table2
from lab.grids import CLIPPY, METHODS
from lab.lab import Lab
from lab.report.markdown import counts, interval, percent, plus_minus, table

NAME = "incremental"
TITLE = "Incremental training: strictly sequential data"

TRIALS = 5
STEPS = 410
"""Batches of 512 in the 13 days of KuaiRand-Pure, rounded down; fewer where there are fewer rows."""
BOTTOM: Bottom = "large+dcn"
REMEDIES: dict[str, dict[str, Any]] = {
    "naive, a window of a day": {"order": "window"},
    "naive, warm-up of 100": {"warm_up": 100},
    "clippy, warm-up of 100": {"warm_up": 100, "treatment": "clippy", "settings": CLIPPY},
}


def _rows(lab: Lab) -> dict[tuple[str, str], list[Config]]:
    found = {}
    for rate in table2.RATES:
        base = table2.base(lab, "small" if lab.quick else BOTTOM, rate)
        base = base.but(order="sequential", steps=min(base.steps, lab.steps(base.batch, STEPS)))
        for method in METHODS[::4] if lab.quick else METHODS:
            settings = table2.best(lab, base.bottom, rate, method)
            found[rate, method] = base.but(treatment=method, settings=settings)
        for name, change in {} if lab.quick else REMEDIES.items():
            found[rate, name] = base.but(**change)
    return {key: [one.but(seed=seed) for seed in lab.seeds(TRIALS)] for key, one in found.items()}


def plan(lab: Lab) -> Iterable[Config]:
    """The trials, once Table 2 has found the thresholds."""
    from lab.lab import Missing

    try:
        rows = _rows(lab)
    except Missing:
        return
    for configs in rows.values():
        yield from configs


def measure(lab: Lab) -> dict[str, Any]:
    """A row for each method and rate."""
    return {
        "bottom": BOTTOM,
        "rates": table2.RATES,
        "rows": [
            {"rate": rate, "method": name, **summary.trials([lab.outcome(one) for one in configs])}
            for (rate, name), configs in _rows(lab).items()
        ],
    }


def text(found: dict[str, Any]) -> list[str]:
    """The section."""
    rows = [
        [
            row["rate"],
            row["method"],
            percent(row["auc"]),
            plus_minus(row["rmse"], 3),
            interval(row["diverged"]),
            counts(row["detectors"]),
        ]
        for row in found["rows"]
    ]
    head = ["rate", "method", "click AUC, %", "play-time RMSE, 10 s", "diverged", "Lossguard says"]
    return [
        f"The rows as they came, once, {found['bottom']}; thresholds as Table 2 found them.",
        "",
        *table(head, rows),
    ]


def headline(found: dict[str, Any]) -> str:
    """What works."""
    rows = [row for row in found["rows"] if row["method"] != "naive, a window of a day"]
    best = max(rows, key=lambda row: row["auc"]["mean"])
    treated = _hits([row for row in rows if row["method"] in METHODS[1:]])
    said = [
        f"On rows in their strict order {_each(rows, METHODS[0])} diverge without a treatment, and {treated} with one "
        f"of the four. Best mean AUC: {percent(best['auc'])} %, by {best['method']} at {best['rate']}."
    ]
    alone, window = "naive, warm-up of 100", "naive, a window of a day"
    if any(row["method"] == alone for row in rows):
        said.append(
            f"With a warm-up of 100 steps alone {_each(rows, alone)} diverge; with a window of a day to draw from in "
            f"the place of the strict order {_each(found['rows'], window)}."
        )
    return " ".join(said)


def _hits(rows: list[dict[str, Any]]) -> str:
    return f"{sum(row['diverged']['hits'] for row in rows)} of {sum(row['diverged']['trials'] for row in rows)}"


def _each(rows: list[dict[str, Any]], method: str) -> str:
    """How often, rate by rate."""
    return ", ".join(f"{_hits([row])} at {row['rate']}" for row in rows if row["method"] == method)
