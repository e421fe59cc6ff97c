"""How near to the edge of stability: `lossguard.keras.Sharpness` along a naive and a treated run."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from lab.config import Config
from lab.experiments import table3
from lab.grids import CLIPPY
from lab.judge import column
from lab.lab import Lab
from lab.report import svg
from lab.report.markdown import number, table
from lossguard.wire.numbers import from_json_number

NAME = "sharpness"
TITLE = "Sharpness along a naive and a treated run"

EVERY = 20
SEEDS = 2


def _configs(lab: Lab) -> dict[tuple[str, int], Config]:
    naive = table3.configs(lab, {})[0].but(sharpness_every=24 if lab.quick else EVERY)
    both = {"naive": naive, "clippy": naive.but(treatment="clippy", settings=CLIPPY)}
    methods = ("naive",) if lab.quick else tuple(both)
    return {(name, seed): both[name].but(seed=seed) for name in methods for seed in range(1 if lab.quick else SEEDS)}


def plan(lab: Lab) -> Iterable[Config]:
    """The probed runs."""
    return _configs(lab).values()


def measure(lab: Lab) -> dict[str, Any]:
    """The curves, and what the ratio was before and after the onset."""
    runs = []
    for (method, seed), config in _configs(lab).items():
        outcome = lab.outcome(config)
        loss = column(lab.trace(config).attempts[0], "loss")
        values = [value for _, value in outcome.sharpness]
        before = [value for step, value in outcome.sharpness if outcome.onset is None or step < outcome.onset]
        runs.append(
            {
                "method": method,
                "seed": seed,
                "hindsight": outcome.hindsight,
                "onset": outcome.onset,
                "auc": outcome.final["auc/click"],
                "points": outcome.sharpness,
                "loss": svg.thinned(np.arange(1, len(loss) + 1), loss),
                "median_before": float(np.nanmedian(before)) if before else float("nan"),
                "largest": float(np.nanmax(values)),
            }
        )
    return {"every": EVERY, "runs": runs}


def text(found: dict[str, Any]) -> list[str]:
    """The section."""
    rows = [
        [
            run["method"],
            str(run["seed"]),
            run["hindsight"],
            "-" if run["onset"] is None else str(run["onset"]),
            number(run["median_before"]),
            number(run["largest"]),
            f"{100 * run['auc']:.2f}",
        ]
        for run in found["runs"]
    ]
    head = ["method", "seed", "hindsight", "onset", "median ratio before it", "largest of the run", "click AUC, %"]
    return [
        f"The clean row of Table 3, probed every {found['every']} steps on a batch of 1024 that is held. A ratio of 1 "
        "is the edge at which a quadratic of this curvature would begin to grow under this rate.",
        "",
        *table(head, rows),
        "",
        "![The sharpness ratio and the loss over the steps](lab/sharpness.svg)",
    ]


def figures(found: dict[str, Any]) -> dict[str, str]:
    """The ratio above the loss."""
    return {
        "sharpness": svg.rows(
            [
                svg.Panel(
                    "sharpness ratio",
                    [svg.Line(f"{run['method']}, seed {run['seed']}", run["points"]) for run in found["runs"]],
                    log=True,
                    level=1.0,
                ),
                svg.Panel(
                    "total loss",
                    [svg.Line(f"{run['method']}, seed {run['seed']}", run["loss"]) for run in found["runs"]],
                    log=True,
                ),
            ],
            "step",
        )
    }


def headline(found: dict[str, Any]) -> str:
    """How near they come to the edge."""
    said = [
        f"{run['method']}, seed {run['seed']} ({run['hindsight']}): {number(run['median_before'])}, "
        f"{number(run['largest'])}"
        for run in found["runs"]
    ]
    lost = [run["median_before"] for run in found["runs"] if run["onset"] is not None]
    sound = [run["median_before"] for run in found["runs"] if run["onset"] is None]
    apart = "" if not lost or not sound or _apart(lost, sound) else " Before the onset it does not tell the runs apart."
    return f"The sharpness ratio, its median before an onset and its largest value: {'; '.join(said)}.{apart}"


def _apart(lost: list[Any], sound: list[Any]) -> bool:
    """Whether what is lost lies above all that is sound."""
    return min(map(from_json_number, lost)) > max(map(from_json_number, sound))
