"""The paper's figures 1, 3, 4, 5, 6 and 7, drawn from runs of the two tables.

Figures 4 and 7 follow one naive run through its divergence: what each method measures of a layer, and the factor it
would have applied, five steps before the loss jumps (a), at the last step before it does, whose update breaks the model
(b), and at the peak of the loss (c).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lab.config import Config
from lab.experiments import table2, table3
from lab.grids import METHODS
from lab.judge import column
from lab.lab import Lab, Missing
from lab.report import svg
from lab.report.markdown import number, table
from lossguard.wire import stats
from lossguard.wire.frame import Frames
from lossguard.wire.numbers import from_json_number

NAME = "figures"
TITLE = "Figures 1, 3, 4, 5, 6 and 7"

LATE = 45
"""An onset from here on has a before; the earlier ones are start-up."""
SEARCHED = (30, 60)
"""Steps before and after the onset of hindsight among which the peak is sought."""
JUMPED, CALM_STEPS = 2.0, 5
"""Multiple of the median loss from which it has jumped, and how long before the last step without it is called calm."""
AROUND = (20, 15)
"""Steps shown before the onset and after the peak."""
SHOWN = ("shared_4/kernel", "shared_1/kernel", "cross_1/kernel", "head_click/kernel", "head_play_time/kernel")
THRESHOLDS = {"gc": 0.1, "agc": 1e-3, "lamb": 1e-3, "clippy": 1.0}
"""The paper's of its figure 4; Clippy's are in its measure."""
MEASURES = {"gc": "‖g‖", "agc": "‖g‖/‖w‖", "lamb": "‖r‖/‖w‖", "clippy": "max |u|/(0.5|w| + 0.01)"}
SMOOTH = 15
QUADRATIC = {"0.9": 0.9, "1": 1.0, "1.02": 1.02}
"""Learning rates in units of 2/curvature."""
QUADRATIC_STEPS = 60


def _candidates(lab: Lab) -> list[Config]:
    rows = [table3.configs(lab, table3.CHANGES[name][0]) for name in (("clean",) if lab.quick else table3.CHANGES)]
    return [config for row in rows for config in row if config.treatment == "naive"]


def _pick(lab: Lab, label: str) -> Config:
    """A run of this label with a late onset, else the first one of it, else the first run."""
    known = [lab.outcome(one) for one in _candidates(lab)]
    fitting = [one for one in known if one.hindsight == label]
    late = [one for one in fitting if (one.onset or 0) >= LATE]
    return (late or fitting or known)[0].config


def _followed(lab: Lab) -> Config:
    return _pick(lab, "full").but(full_every=1)


def plan(lab: Lab) -> Iterable[Config]:
    """The run that is followed, again, with its layers measured at every step."""
    if lab.planning:
        return [table3.configs(lab, {})[0].but(full_every=1)]
    try:
        return [_followed(lab)]
    except Missing:
        return []


def measure(lab: Lab) -> dict[str, Any]:
    """The lines of every figure, and the tables below them."""
    return {
        "divergences": {label: _divergence(lab, _pick(lab, label)) for label in ("micro", "full")},
        "quadratic": _quadratic(),
        "followed": _follow(lab, _followed(lab)),
        "curves": _curves(lab),
        "clippy": _by_layer(lab),
    }


def _divergence(lab: Lab, config: Config) -> dict[str, Any]:
    outcome, frames = lab.outcome(config), lab.trace(config).attempts[0]
    auc = svg.smoothed(column(frames, "batch_auc/click"), 9)
    return {
        "hindsight": outcome.hindsight,
        "status": outcome.status,
        "onset": outcome.onset,
        "seed": config.seed,
        "auc": outcome.final["auc/click"],
        "loss": svg.thinned(frames.steps, column(frames, "loss")),
        "batch_auc": svg.thinned(frames.steps, auc, 160),
    }


def _quadratic() -> dict[str, Any]:
    """Gradient descent on x²/2 with curvature 1, from 1."""
    return {
        name: [[step, abs(1 - 2 * share) ** step] for step in range(QUADRATIC_STEPS + 1)]
        for name, share in QUADRATIC.items()
    }


def _stat(frames: Frames, layer: str, name: str) -> Any:
    return frames.stats[:, frames.schema.layers.index(layer), frames.schema.stats.index(name)].astype(np.float64)


def _measured(frames: Frames, layer: str) -> dict[str, Any]:
    """What each method measures of a layer, [T] each."""
    gradient, weight = _stat(frames, layer, stats.GRADIENT_NORM), _stat(frames, layer, stats.WEIGHT_NORM)
    with np.errstate(divide="ignore", invalid="ignore"):
        preconditioned = _stat(frames, layer, stats.UPDATE_NORM) / column(frames, "learning_rate")
        return {
            "gc": gradient,
            "agc": gradient / weight,
            "lamb": preconditioned / weight,
            "clippy": _stat(frames, layer, stats.CLIPPY_RATIO),
        }


def _factor(method: str, measured: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = THRESHOLDS[method] / measured
    return factor if method == "lamb" else np.minimum(factor, 1.0)


def _follow(lab: Lab, config: Config) -> dict[str, Any]:
    outcome, frames = lab.outcome(config), lab.trace(config).attempts[0]
    loss = column(frames, "loss")
    steps = _moments(loss, outcome.onset or int(np.nanargmax(loss)) + 1)
    onset, peak = steps["b"], steps["c"]
    shown = [layer for layer in SHOWN if layer in frames.schema.layers]
    window = slice(max(0, onset - 1 - AROUND[0]), peak + AROUND[1])
    rows, lines = [], {}
    for layer in shown:
        measured = _measured(frames, layer)
        for method, values in measured.items():
            at = {name: float(values[step - 1]) for name, step in steps.items()}
            factors = {name: float(_factor(method, values)[step - 1]) for name, step in steps.items()}
            rows.append({"layer": layer, "method": method, "measured": at, "factor": factors})
        lines[layer] = {
            method: {
                "measured": svg.thinned(frames.steps[window], values[window]),
                "factor": svg.thinned(frames.steps[window], _factor(method, values)[window]),
            }
            for method, values in measured.items()
        }
    return {
        "seed": config.seed,
        "steps": steps,
        "loss_at": {name: float(loss[step - 1]) for name, step in steps.items()},
        "loss": svg.thinned(frames.steps[window], loss[window]),
        "rows": rows,
        "lines": lines,
    }


def _moments(loss: Any, near: int) -> dict[str, int]:
    """Steps a, b and c: calm, the last step before the loss jumps, and its peak."""
    first = max(0, near - 1 - SEARCHED[0])
    peak = first + int(np.nanargmax(loss[first : near + SEARCHED[1]]))
    level = float(np.median(loss[max(0, peak - 60) : max(peak - 10, 1)]))
    jump = peak
    while jump > 0 and loss[jump - 1] > JUMPED * level:
        jump -= 1
    # Steps are counted from 1: the place of the jump is the number of the step before it.
    return {"a": max(jump - CALM_STEPS, 1), "b": max(jump, 1), "c": peak + 1}


def _curves(lab: Lab) -> dict[str, Any]:
    """AUC over the steps, the mean over the seeds, for each model, rate and method."""
    found = {}
    for bottom in table2.bottoms(lab):
        for rate in table2.RATES:
            for method in METHODS:
                curves = np.array([lab.outcome(one).curve for one in table2.cell(lab, bottom, rate, method)])
                found[f"{bottom} {rate} {method}"] = [
                    [float(step), float(auc)]
                    for step, auc in zip(curves[0, :, 0], curves[:, :, 1].mean(0), strict=True)
                ]
    return found


def _by_layer(lab: Lab) -> dict[str, Any]:
    bottom = table2.bottoms(lab)[-1]
    config = table2.cell(lab, bottom, "2x", "clippy")[0]
    frames = lab.trace(config).attempts[0]
    layers = [layer for layer in frames.schema.layers if layer.endswith("/kernel")]
    factors = {layer: _stat(frames, layer, stats.CLIPPING_FACTOR) for layer in layers}
    return {
        "bottom": bottom,
        "settings": dict(config.settings),
        "medians": {layer: float(np.median(values)) for layer, values in factors.items()},
        "clipped": {layer: float(np.mean(values < 1)) for layer, values in factors.items()},
        "lines": {
            layer: svg.thinned(frames.steps, svg.smoothed(values, SMOOTH), 120) for layer, values in factors.items()
        },
    }


def text(found: dict[str, Any]) -> list[str]:
    """The section."""
    micro, full = found["divergences"]["micro"], found["divergences"]["full"]
    followed, clippy = found["followed"], found["clippy"]
    steps = followed["steps"]
    lines = [
        "**Figure 1.** "
        + " ".join(
            f"A run that hindsight calls {one['hindsight']} (seed {one['seed']}, onset {one['onset'] or '-'}, held-out "
            f"click AUC {100 * one['auc']:.2f} %); Lossguard calls it {one['status']}."
            for one in (micro, full)
        )
        + " The onset is where the last event begins, or the one that does not end; a peak before it is an event that "
        "ended.",
        "",
        "![Loss and batch AUC of a micro- and a full divergence](lab/figure-1.svg)",
        "",
        "**Figure 3.** Gradient descent on a quadratic: beyond a rate of 2/curvature each step is longer than the "
        "last. How near real runs come: the section on sharpness.",
        "",
        "![Distance from the minimum over the steps](lab/figure-3.svg)",
        "",
        "**Figures 4 and 7.** They are drawn together here; a public summary shows the measures and factors of all "
        f"methods as the paper's figure 8. One naive run (seed {followed['seed']}) through its divergence: a is five "
        f"steps before ({steps['a']}, loss {number(followed['loss_at']['a'])}), b the last step before the loss jumps, "
        f"whose update breaks the model ({steps['b']}, {number(followed['loss_at']['b'])}), c the peak ({steps['c']}, "
        f"{number(followed['loss_at']['c'])}). The "
        f"thresholds are the paper's ({', '.join(f'{name} {value:g}' for name, value in THRESHOLDS.items())}).",
        "",
        *table(
            ["layer", "method", "measure", "a", "b", "c", "factor at a", "b", "c"],
            [
                [
                    row["layer"],
                    row["method"],
                    MEASURES[row["method"]].replace("|", "\\|"),
                    *(number(row["measured"][name]) for name in "abc"),
                    *(number(row["factor"][name], 2) for name in "abc"),
                ]
                for row in followed["rows"]
            ],
        ),
        "",
        "![What each method measures of each layer, and its factor](lab/figure-4-7.svg)",
        "",
        "**Figure 5.** Click AUC on a sample of the held-out day, mean over the seeds of Table 2.",
        "",
        "![AUC over the steps, by method, rate and model](lab/figure-5.svg)",
        "",
        f"**Figure 6.** Clippy's factor by layer, {clippy['bottom']} at 2x, "
        + ", ".join(f"{name} {value:g}" for name, value in clippy["settings"].items())
        + f"; the lines are means over {SMOOTH} steps.",
        "",
        *table(
            ["layer", "median factor", "steps clipped, %"],
            [
                [layer, number(median, 2), f"{100 * clippy['clipped'][layer]:.0f}"]
                for layer, median in clippy["medians"].items()
            ],
        ),
        "",
        "![Clippy's factor by layer over the steps](lab/figure-6.svg)",
    ]
    return lines


def figures(found: dict[str, Any]) -> dict[str, str]:
    """The figures."""
    followed = found["followed"]
    marks = [(step, name) for name, step in followed["steps"].items()]
    panels = [svg.Panel("total loss", [svg.Line("loss", followed["loss"])], log=True, marks=marks)]
    panels.append(svg.EMPTY)
    for layer, methods in followed["lines"].items():
        for what, title in (("measured", f"{layer}: measures"), ("factor", f"{layer}: factors")):
            lines = [svg.Line(method, one[what]) for method, one in methods.items()]
            panels.append(svg.Panel(title, lines, log=True, marks=marks))
    names = [name for name in table2.BOTTOMS if any(curve.startswith(f"{name} ") for curve in found["curves"])]
    curves = [
        svg.Panel(f"{bottom} {rate}", _of(found["curves"], f"{bottom} {rate} "))
        for bottom in names
        for rate in table2.RATES
    ]
    return {
        "figure-1": svg.rows(_first(found["divergences"]), "step", 2),
        "figure-3": svg.rows(
            [
                svg.Panel(
                    "distance from the minimum",
                    [svg.Line(f"rate {name} x 2/curvature", points) for name, points in found["quadratic"].items()],
                    log=True,
                )
            ],
            "step",
        ),
        "figure-4-7": svg.rows(panels, "step", 2),
        "figure-5": svg.rows(curves, "step", 2),
        "figure-6": svg.rows(
            [svg.Panel(title, lines) for title, lines in _grouped(found["clippy"]["lines"]).items()], "step", 1
        ),
    }


def _of(curves: dict[str, Any], start: str) -> list[svg.Line]:
    return [svg.Line(name.removeprefix(start), points) for name, points in curves.items() if name.startswith(start)]


def _first(divergences: dict[str, Any]) -> Sequence[svg.Panel]:
    panels = []
    for what, title, log in (("loss", "total loss", True), ("batch_auc", "click AUC of the batch, mean of 9", False)):
        for name in ("micro", "full"):
            one = divergences[name]
            marks = [(one["onset"], "onset")] if one["onset"] else []
            panels.append(svg.Panel(f"{name}: {title}", [svg.Line(what, one[what])], log=log, marks=marks))
    return panels


def _grouped(lines: dict[str, Any]) -> dict[str, list[svg.Line]]:
    groups: dict[str, list[svg.Line]] = {"bottom and shared layers": [], "heads": []}
    for layer, points in lines.items():
        group = "heads" if layer.startswith("head") else "bottom and shared layers"
        groups[group].append(svg.Line(layer.removesuffix("/kernel"), points))
    return groups


def headline(found: dict[str, Any]) -> str:
    """What figures 4 and 6 show."""
    followed, medians = found["followed"], found["clippy"]["medians"]
    low = min(medians, key=lambda layer: medians[layer])
    layer = followed["rows"][0]["layer"]
    grown = {row["method"]: _times(row["measured"]) for row in followed["rows"] if row["layer"] == layer}
    said = ", ".join(f"{method} {number(times, 2)}" for method, times in grown.items())
    rising = ", ".join(method for method, times in grown.items() if times > JUMPED)
    return (
        f"From five steps before the loss jumped to the step before it the measures of `{layer}` changed by these "
        f"factors: {said}. That they rise before the loss does shows for {rising or 'none of them'}. Clippy clips "
        f"`{low}` most (median factor {number(medians[low], 2)})."
    )


def _times(measured: dict[str, Any]) -> float:
    before, after = from_json_number(measured["a"]), from_json_number(measured["b"])
    return after / before if before else float("nan")
