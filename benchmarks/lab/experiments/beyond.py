"""A treatment that costs nothing on a model that needs none: PolyakCap, in which nothing is searched.

It is held against the best of the paper's methods in every cell of Table 2, each with its own searched threshold and
chosen by its result on the judged day itself, on the same seeds; run where the untreated training diverges; and looked
at where it should do nothing.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lab import summary
from lab.config import Bottom, Config, Outcome
from lab.experiments import table2
from lab.grids import METHODS
from lab.lab import Lab
from lab.report.markdown import interval, percent, plus_minus, table
from lossguard.wire.numbers import from_json_number

NAME = "beyond"
TITLE = "Beyond the paper: a cap on what a step promises"

METHOD = "polyak"
SEEDS = 30
AIM_TRIALS = 100
"""Trainings that diverge untreated, none of which may with it."""
LATE_SEEDS = 20
LATE = Config(bottom="large+dcn", learning_rate=0.4, warm_up=100, steps=500, raw=True, evaluations=1)
"""With warm-up the divergences come in the middle of the training."""
CALM = Config(bottom="small", learning_rate=0.05, warm_up=100, evaluations=1)
"""A training that is stable by itself."""
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}
"""Student's t, two-sided 95 %, by the number of pairs."""


def _treated(config: Config) -> Config:
    return config.but(treatment=METHOD, settings=())


def _cell(lab: Lab, bottom: Bottom, rate: str) -> list[Config]:
    naive = table2.base(lab, bottom, rate)
    return [_treated(naive).but(seed=seed) for seed in lab.seeds(table2.TRIALS)]


def _diverging(lab: Lab) -> dict[str, list[Config]]:
    """Untreated trainings, most of which diverge."""
    cells: list[tuple[Bottom, str]] = [("large", "2x"), ("large+dcn", "1x"), ("large+dcn", "2x")]
    if lab.quick:
        return {"small 2x": [table2.base(lab, "small", "2x").but(seed=seed) for seed in lab.seeds(2)]}
    found = {
        f"{bottom}, {rate}": [table2.base(lab, bottom, rate).but(seed=seed) for seed in lab.seeds(SEEDS)]
        for bottom, rate in cells
    }
    late = f"{LATE.bottom} with the raw column, {LATE.learning_rate:g} after {LATE.warm_up} steps of warm-up"
    return found | {late: [LATE.but(seed=seed) for seed in lab.seeds(LATE_SEEDS)]}


def _calm(lab: Lab) -> list[Config]:
    return [lab.small(CALM).but(seed=seed) for seed in lab.seeds(table2.TRIALS)]


def plan(lab: Lab) -> Iterable[Config]:
    """The cells of Table 2, what diverges untreated and treated, and the calm training both ways."""
    yield from table2.plan(lab)
    for bottom in table2.bottoms(lab):
        for rate in table2.RATES:
            yield from _cell(lab, bottom, rate)
    for configs in (*_diverging(lab).values(), _calm(lab)):
        yield from configs
        yield from map(_treated, configs)


def measure(lab: Lab) -> dict[str, Any]:
    """Cells, divergences, and the calm training."""
    cells = [_compared(lab, bottom, rate) for bottom in table2.bottoms(lab) for rate in table2.RATES]
    return {
        "cells": cells,
        "diverging": [_rescued(lab, name, configs) for name, configs in _diverging(lab).items()],
        "calm": _left_alone(lab, _calm(lab)),
    }


def _compared(lab: Lab, bottom: Bottom, rate: str) -> dict[str, Any]:
    ours = _cell(lab, bottom, rate)
    found = summary.trials([lab.outcome(one) for one in ours])
    theirs = {method: [lab.outcome(one) for one in table2.cell(lab, bottom, rate, method)] for method in METHODS}
    best = max(METHODS, key=lambda method: _mean(theirs[method]))
    gains = [
        lab.outcome(one).final["auc/click"] - other.final["auc/click"]
        for one, other in zip(ours, theirs[best], strict=True)
    ]
    return {
        "bottom": bottom,
        "rate": rate,
        **found,
        "best": {"method": theirs[best][0].config.method, **summary.trials(theirs[best])},
        "gain": _paired(gains),
        "acting": [_acting(lab, one) for one in ours],
    }


def _mean(outcomes: Sequence[Outcome]) -> float:
    values = [one.final["auc/click"] for one in outcomes]
    return float(np.nan_to_num(values).mean())


def _paired(gains: Sequence[float]) -> dict[str, float]:
    """Mean of paired differences with Student's 95 % interval."""
    half = T_95[len(gains)] * float(np.std(gains, ddof=1)) / len(gains) ** 0.5
    mean = float(np.mean(gains))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _acting(lab: Lab, config: Config) -> float:
    """Share of the steps in which a layer's factor was below 1."""
    (frames,) = lab.trace(config).attempts
    factors = frames.stats[:, :, frames.schema.stats.index("clipping_factor")]
    return float(np.mean(factors.min(1) < 1.0))


def _rescued(lab: Lab, name: str, configs: Sequence[Config]) -> dict[str, Any]:
    naive = [lab.outcome(one) for one in configs]
    treated = [lab.outcome(_treated(one)) for one in configs]
    lost = [after for before, after in zip(naive, treated, strict=True) if before.diverged]
    return {
        "name": name,
        "naive": summary.trials(naive),
        "treated": summary.trials(treated),
        "of_those": summary.ratio(sum(one.diverged for one in lost), len(lost)) if lost else None,
    }


def _left_alone(lab: Lab, configs: Sequence[Config]) -> dict[str, Any]:
    pairs = [(lab.outcome(one), lab.outcome(_treated(one))) for one in configs]
    return {
        "rate": CALM.learning_rate,
        "warm_up": CALM.warm_up,
        "trials": len(pairs),
        "same": sum(one.digest == other.digest for one, other in pairs),
        "acting": [_acting(lab, _treated(one)) for one in configs],
    }


def text(found: dict[str, Any]) -> list[str]:
    """The section."""
    rows = []
    for cell in found["cells"]:
        gain = {name: 100 * from_json_number(value) for name, value in cell["gain"].items()}
        rows.append(
            [
                cell["bottom"],
                cell["rate"],
                percent(cell["auc"]),
                f"{percent(cell['best']['auc'])} ({cell['best']['method']})",
                f"{gain['mean']:+.2f} ({gain['low']:+.2f} to {gain['high']:+.2f})",
                f"{plus_minus(cell['rmse'], 3)} / {plus_minus(cell['best']['rmse'], 3)}",
                interval(cell["diverged"]),
                f"{100 * float(np.mean(cell['acting'])):.1f}",
            ]
        )
    head = [
        "model", "rate", "PolyakCap, AUC %", "best of the five, AUC %", "difference (95 %)", "RMSE, ours / theirs",
        "diverged", "acts, % of steps",
    ]  # fmt: skip
    hits, trials = _rescues(found)
    calm = found["calm"]
    return [
        "`PolyakCap` (decision 0222) lets no step promise to lower the loss by more than the loss: in a step whose "
        "layers' <g, u> add up to more, Clippy cuts each layer, with the paper's thresholds, and one factor cuts what "
        "still promises too much. Every other step is left alone. It keeps no state, and nothing in it was searched. "
        "Beside it the best of naive, GC, AGC, LAMB and Clippy, with the threshold that the search found for that "
        "cell; which of them is best was chosen on the judged day itself, to their advantage. Differences are paired "
        "by seed.",
        "",
        *table(head, rows),
        "",
        _verdict(found),
        "",
        _aim(found),
        "",
        "Trainings that diverge untreated, the same seeds with and without it:",
        "",
        *table(
            [
                "training",
                "naive diverged",
                "with PolyakCap",
                "of those that diverged",
                "degraded with it",
                "AUC %, naive",
                "AUC %, PolyakCap",
            ],
            [
                [
                    one["name"],
                    interval(one["naive"]["diverged"]),
                    interval(one["treated"]["diverged"]),
                    interval(one["of_those"]) if one["of_those"] else "-",
                    str(one["treated"]["hindsight"].get("degraded", 0)),
                    percent(one["naive"]["auc"]),
                    percent(one["treated"]["auc"]),
                ]
                for one in found["diverging"]
            ],
        ),
        "",
        f"Of {trials} trainings that diverge untreated {hits} diverge with it. On Small at {calm['rate']:g} after "
        f"{calm['warm_up']} steps of warm-up, which needs no treatment, it acted in "
        f"{100 * float(np.mean(calm['acting'])):.2f} % of the steps, and {calm['same']} of {calm['trials']} trainings "
        "ended with the weights of the untreated one, bit for bit.",
    ]


def _rescues(found: dict[str, Any]) -> tuple[int, int]:
    """How many of the trainings that diverge untreated diverge with it, and how many there are."""
    lost = [one["of_those"] for one in found["diverging"] if one["of_those"]]
    return sum(one["hits"] for one in lost), sum(one["trials"] for one in lost)


def headline(found: dict[str, Any]) -> str:
    """Whether it wins."""
    hits, trials = _rescues(found)
    return (
        f"PolyakCap, in which nothing is searched: {hits} of {trials} trainings that diverge untreated diverge with "
        f"it. {_verdict(found)} {_aim(found)}"
    )


def _aim(found: dict[str, Any]) -> str:
    """What of the aim is shown."""
    hits, trials = _rescues(found)
    gains = [{name: from_json_number(value) for name, value in one["gain"].items()} for one in found["cells"]]
    below = sum(gain["mean"] < 0 for gain in gains)
    held = "held" if hits == 0 and trials >= AIM_TRIALS else "not held"
    as_good = "not shown" if below else "shown"
    if any(gain["high"] < 0 for gain in gains):
        as_good = "missed"
    return (
        f"The aim was to be at least as good as the best in every cell, without a divergence in {AIM_TRIALS} trainings "
        f"that diverge untreated. The second half is {held}; the first is {as_good}: the mean is below the best one's "
        f"in {below} of {len(gains)} cells, by {-100 * min(gain['mean'] for gain in gains):.2f} points at most."
    )


def _verdict(found: dict[str, Any]) -> str:
    """Which cells differ by more than the seeds' noise."""
    named = {f"{one['bottom']} {one['rate']}": one["gain"] for one in found["cells"]}
    better = [name for name, gain in named.items() if from_json_number(gain["low"]) > 0]
    worse = [name for name, gain in named.items() if from_json_number(gain["high"]) < 0]
    rest = len(named) - len(better) - len(worse)
    return (
        f"Better than the best of the five by more than the seeds' noise: {', '.join(better) or 'no cell'}. Worse: "
        f"{', '.join(worse) or 'no cell'}. Not told apart: {rest} of {len(named)} cells."
    )
