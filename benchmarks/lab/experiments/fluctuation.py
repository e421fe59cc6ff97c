"""The practitioner's report: losses that swing with the epoch, final metrics that differ from trial to trial.

Several epochs over the same days. Who takes them in the order of their dates sees a loss with the period of an epoch;
Lossguard's own diagnosis, `periodic_loss`, must say so, and must not where each epoch is shuffled.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from lab import summary
from lab.config import Config
from lab.judge import column
from lab.lab import Lab
from lab.report import svg
from lab.report.markdown import counts, interval, percent, plus_minus, table
from lossguard.detect import period
from lossguard.wire import stats
from lossguard.wire.numbers import from_json_number

NAME = "fluctuation"
TITLE = "The practitioner's report: periodic losses and fluctuating metrics"

EPOCHS, EPOCH_STEPS, BATCH = 6, 207, 1024
"""Steps of 1024 in the 13 days of KuaiRand-Pure; fewer where there are fewer rows."""
TRIALS, FULL_TRIALS = 4, 3
BASE = Config(bottom="small", learning_rate=0.1, batch=BATCH, steps=EPOCHS * EPOCH_STEPS, order="dated", evaluations=6)
ROWS: dict[str, dict[str, Any]] = {
    "in the order of dates": {},
    "shuffled in each epoch": {"order": "shuffled"},
    "dates, decay to 1 %": {"decay_to": 0.01},
    "shuffled, decay to 1 %": {"order": "shuffled", "decay_to": 0.01},
    "dates, wide alone": {"bottom": "wide"},
    "dates, wide & deep": {"bottom": "wide&deep"},
    "dates, full model (Large+DCN)": {"bottom": "large+dcn"},
    "dates, without the sparse features": {"sparse": False},
    "dates, doubled batch": {"batch": 2 * BATCH},
}
LINES = ("in the order of dates", "shuffled in each epoch", "dates, decay to 1 %")
"""Whose layers are drawn."""
INFORMATIVE = ("periodic_loss", "unconverged_layer", "learning_rate_not_decayed", "micro_divergence", "full_divergence")
QUIET = 9
"""Steps in the running mean of a folded loss."""


def configs(lab: Lab) -> dict[str, list[Config]]:
    """The trials of each row."""
    found = {}
    for name, change in ROWS.items():
        if lab.quick and name not in LINES[:2]:
            continue
        trials = FULL_TRIALS if change.get("bottom") == "large+dcn" else TRIALS
        base = BASE.but(**change)
        base = base.but(steps=EPOCHS * lab.steps(BATCH, EPOCH_STEPS) * BATCH // base.batch)
        found[name] = [lab.small(base.but(seed=seed)) for seed in lab.seeds(trials)]
    return found


def plan(lab: Lab) -> Iterable[Config]:
    """Row after row."""
    for trials in configs(lab).values():
        yield from trials


def measure(lab: Lab) -> dict[str, Any]:
    """A row for each change, and the lines of the layers."""
    rows = []
    for name, trials in configs(lab).items():
        outcomes = [lab.outcome(one) for one in trials]
        losses = [column(lab.trace(one).attempts[0], "loss") for one in trials]
        kinds = Counter(kind for one in outcomes for kind in {incident["kind"] for incident in one.incidents})
        steps = lab.steps(BATCH, EPOCH_STEPS) * BATCH // trials[0].batch
        rows.append(
            {
                "change": name,
                **summary.trials(outcomes),
                "periodic": summary.ratio(kinds["periodic_loss"], len(outcomes)),
                "incidents": {kind: kinds[kind] for kind in INFORMATIVE if kinds[kind]},
                "correlation": summary.spread([correlation(loss, steps) for loss in losses]),
                "amplitude": summary.spread([amplitude(loss, steps) for loss in losses]),
                "period": [found[0] if (found := _period(loss)) is not None else None for loss in losses],
            }
        )
    return {"rows": rows, "epochs": EPOCHS, "epoch_steps": lab.steps(BATCH, EPOCH_STEPS), "lines": _lines(lab)}


def _period(loss: Any) -> tuple[int, float] | None:
    memory = period.Period()
    period.extend(memory, loss)
    return period.search(memory)


def correlation(loss: Any, steps: int) -> float:
    """The autocorrelation of the loss at the lag of an epoch, without the first one and without the trend."""
    if len(loss) < 3 * steps:
        return float("nan")
    values = svg.smoothed(loss, QUIET)[steps:]
    x = np.arange(len(values))
    rest = values - np.polynomial.Polynomial.fit(x, values, period.TREND_DEGREE)(x)
    return float(np.corrcoef(rest[:-steps], rest[steps:])[0, 1])


def amplitude(loss: Any, steps: int) -> float:
    """The height of the mean epoch, over its mean, without the first epoch; outliers count as the 98th percentile."""
    epochs = len(loss) // steps
    if epochs < 3:
        return float("nan")
    folded = np.minimum(loss, np.percentile(loss, 98))[: epochs * steps].reshape(epochs, steps)[1:]
    mean = svg.smoothed((folded / folded.mean(1, keepdims=True)).mean(0), QUIET)[QUIET:-QUIET]
    return float(mean.max() - mean.min())


def _lines(lab: Lab) -> dict[str, Any]:
    found = {}
    for name in LINES:
        trials = configs(lab).get(name)
        if not trials:
            continue
        frames = lab.trace(trials[0]).attempts[0]
        layers = [layer for layer in frames.schema.layers if layer.endswith("/kernel")]
        found[name] = {
            "loss": svg.thinned(frames.steps, svg.smoothed(np.minimum(column(frames, "loss"), 100.0), QUIET), 160),
            "weight_norm": {layer: _norms(frames, layer, stats.WEIGHT_NORM, 1) for layer in layers},
            "gradient_norm": {layer: _norms(frames, layer, stats.GRADIENT_NORM, 31) for layer in layers},
        }
    return found


def _norms(frames: Any, layer: str, stat: str, width: int) -> list[list[float]]:
    place = frames.schema.stats.index(stat)
    values = frames.stats[:, frames.schema.layers.index(layer), place].astype(np.float64)
    measured = frames.stats_present[:, place]
    return svg.thinned(frames.steps[measured], svg.smoothed(values[measured], width), 80)


def text(found: dict[str, Any]) -> list[str]:
    """The section."""
    rows = []
    for row in found["rows"]:
        spread = {name: from_json_number(row["auc"][name]) for name in ("low", "high")}
        rows.append(
            [
                row["change"],
                percent(row["auc"]),
                f"{100 * (spread['high'] - spread['low']):.2f}",
                plus_minus(row["rmse"], 3),
                plus_minus(row["correlation"], 2),
                plus_minus(row["amplitude"], 0, 100.0),
                interval(row["periodic"]),
                counts(row["incidents"]) or "-",
            ]
        )
    head = ["change", "click AUC, %", "range", "play-time RMSE, 10 s", "loss at the lag of an epoch: correlation"]
    head += ["height of the mean epoch, %", "`periodic_loss`", "diagnoses, by trials"]
    lines = [
        f"Small, {found['epochs']} epochs of {found['epoch_steps']} steps over the same days, Adagrad at "
        f"{BASE.learning_rate:g}. Range is the distance between the best and the worst trial, in points of AUC.",
        "",
        *table(head, rows),
        "",
        "Losses are cut at 100 and averaged over 9 steps, gradient norms over 31.",
        "",
        "![The loss over six epochs, and the norms of weights and gradients of every layer](lab/convergence.svg)",
    ]
    return lines


def headline(found: dict[str, Any]) -> str:
    """What of the report shows."""
    rows = {row["change"]: row for row in found["rows"]}
    dated = [row for name, row in rows.items() if "shuffled" not in name]
    shuffled = [row for name, row in rows.items() if "shuffled" in name]

    def hits(some: list[dict[str, Any]]) -> str:
        return f"{sum(row['periodic']['hits'] for row in some)} of {sum(row['periodic']['trials'] for row in some)}"

    lines = [
        f"Lossguard diagnoses `periodic_loss` in {hits(dated)} trials in the order of dates and in {hits(shuffled)} "
        "shuffled ones."
    ]
    if "dates, wide alone" in rows:
        simple = [rows[name] for name in ("dates, wide alone", "dates, wide & deep", "dates, full model (Large+DCN)")]
        lines.append(f"Simpler models do not take the fluctuation away: it is found in {hits(simple)} of their trials.")
    for name, other in (
        ("in the order of dates", "dates, decay to 1 %"),
        ("in the order of dates", "dates, doubled batch"),
    ):
        if other in rows:
            sd, less = (100 * from_json_number(rows[one]["auc"]["sd"]) for one in (name, other))
            auc, changed = (100 * from_json_number(rows[one]["auc"]["mean"]) for one in (name, other))
            what = other.removeprefix("dates, ")
            calms = "calms" if less < sd else "does not calm"
            lines.append(
                f"The {what.replace('decay', 'continuous decay')} {calms} the trials: their AUC spreads by {less:.2f} "
                f"points (without: {sd:.2f}) around {changed:.2f} ({auc:.2f})."
            )
    return " ".join(lines)


def figures(found: dict[str, Any]) -> dict[str, str]:
    """The loss, the weights and the gradients of three rows."""
    panels = []
    for name in (one for one in LINES if one in found["lines"]):
        of = found["lines"][name]
        panels.append(svg.Panel(f"{name}: loss", [svg.Line("loss", of["loss"])]))
        for stat, title in (("weight_norm", "‖w‖"), ("gradient_norm", "‖g‖, the same layers")):
            lines = [svg.Line(layer.removesuffix("/kernel"), points) for layer, points in of[stat].items()]
            panels.append(svg.Panel(title, lines, log=True, legend=stat == "weight_norm"))
    return {"convergence": svg.rows(panels, "step", 3)}
