"""Clippy on other optimizers (section 4.3.3): it scales the proposed update, whoever proposes it."""

from collections.abc import Iterable
from typing import Any

from lab import summary
from lab.config import Bottom, Config, Optimizer
from lab.grids import CLIPPY, Settings
from lab.lab import Lab
from lab.report.markdown import counts, interval, percent, plus_minus, table

NAME = "optimizers"
TITLE = "Clippy on Adam, RMSprop and SGD"

TRIALS = 4
BOTTOM: Bottom = "large+dcn"
RATES: dict[Optimizer, tuple[float, float]] = {"adam": (1e-2, 3e-2), "rmsprop": (1e-2, 3e-2), "sgd": (1e-2, 3e-2)}
"""One that trains each of them, and one at which a first run diverged."""
METHODS: dict[str, Settings] = {"naive": (), "clippy": CLIPPY}


def _rows(lab: Lab) -> dict[tuple[Optimizer, float, str], list[Config]]:
    found = {}
    for optimizer, rates in list(RATES.items())[: 1 if lab.quick else None]:
        for method, settings in METHODS.items():
            for rate in rates:
                base = Config(bottom="small" if lab.quick else BOTTOM, optimizer=optimizer, learning_rate=rate)
                base = lab.small(base.but(treatment=method, settings=settings))
                found[optimizer, rate, method] = [base.but(seed=seed) for seed in lab.seeds(TRIALS)]
    return found


def plan(lab: Lab) -> Iterable[Config]:
    """Optimizer after optimizer."""
    for configs in _rows(lab).values():
        yield from configs


def measure(lab: Lab) -> dict[str, Any]:
    """A row for each optimizer, rate and method."""
    rows = [
        {"optimizer": optimizer, "rate": rate, "method": method} | summary.trials([lab.outcome(one) for one in configs])
        for (optimizer, rate, method), configs in _rows(lab).items()
    ]
    return {"bottom": BOTTOM, "rows": sorted(rows, key=lambda row: (row["optimizer"], row["rate"]))}


def text(found: dict[str, Any]) -> list[str]:
    """The section."""
    rows = [
        [
            row["optimizer"],
            f"{row['rate']:g}",
            row["method"],
            percent(row["auc"]),
            plus_minus(row["rmse"], 3),
            interval(row["diverged"]),
            counts(row["detectors"]),
        ]
        for row in found["rows"]
    ]
    head = ["optimizer", "rate", "method", "click AUC, %", "play-time RMSE, 10 s", "diverged", "Lossguard says"]
    return [
        f"{found['bottom']}, no warm-up, one pass; Clippy with the paper's thresholds, tuned for none of them.",
        "",
        *table(head, rows),
    ]


def headline(found: dict[str, Any]) -> str:
    """Where Clippy helps."""
    said = []
    for optimizer in dict.fromkeys(row["optimizer"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["optimizer"] == optimizer]
        of = {row["method"]: row for row in rows if row["rate"] == max(one["rate"] for one in rows)}
        naive, clippy = of["naive"], of["clippy"]
        diverged = [f"{row['diverged']['hits']}/{row['diverged']['trials']}" for row in (naive, clippy)]
        said.append(
            f"{optimizer} at {naive['rate']:g}: diverged {diverged[0]} naive, {diverged[1]} with Clippy (AUC "
            f"{percent(clippy['auc'])} %)"
        )
    return f"{'; '.join(said)}."
