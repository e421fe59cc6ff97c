"""A page with a run's losses, its layers and its incidents: one self-contained HTML file, nothing to download.

The losses and the batch AUC are drawn over the steps, 800 points a line: each is the bucket's extreme value, so that a
spike of one frame stays visible. NaN and Inf stand as marks on the upper edge.
"""

import html
import math
from collections.abc import Callable, Sequence

import numpy as np

from lossguard.trace import heat
from lossguard.trace.batches import of_trace, sentence
from lossguard.trace.trace import Trace
from lossguard.wire.frame import Floats64, Frames
from lossguard.wire.incident import Incident, RunReport

WIDTH, HEIGHT, MARGIN = 960, 170, 56
POINTS = 800
_COLOURS = {
    "full_divergence": "#c62828", "nonfinite": "#6a1b9a", "no_update": "#ad1457", "micro_divergence": "#ef6c00",
    "loss_spike": "#90a4ae",
}  # fmt: skip


def page(traces: Sequence[Trace], reports: Sequence[RunReport]) -> str:
    """The page's HTML."""
    parts = [
        "<!doctype html><meta charset='utf-8'><title>lossguard replay</title>",
        "<style>body{font:14px system-ui,sans-serif;margin:2rem;max-width:72rem}svg{display:block;margin:.3rem 0 1rem}"
        "table{border-collapse:collapse}td,th{padding:.3rem .6rem;border-bottom:1px solid #ddd;text-align:left;"
        "vertical-align:top}text{font-size:11px;fill:#444}</style>",
    ]
    for trace, report in zip(traces, reports, strict=True):
        parts.append(f"<h2>{html.escape(report.run)}: {report.status}</h2>")
        parts.extend(_charts(trace, report.incidents))
        parts.append(heat.chart(trace.attempts, report.incidents, WIDTH, MARGIN))
        parts.append(_table(trace, report.incidents))
    return "\n".join(parts)


def _charts(trace: Trace, incidents: Sequence[Incident]) -> list[str]:
    names = dict.fromkeys(name for frames in trace.attempts for name in frames.schema.scalars)
    shown = [name for name in names if name == "loss" or name.startswith(("loss/", "batch_auc/"))]
    return [_chart(name, trace.attempts, incidents) for name in shown]


def _series(name: str, attempts: Sequence[Frames]) -> tuple[Floats64, Floats64]:
    steps, values = [], []
    for frames in attempts:
        if name in frames.schema.scalars:
            i = frames.schema.scalars.index(name)
            here = frames.scalars_present[:, i]
            steps.append(frames.steps[here].astype(np.float64))
            values.append(frames.scalars[here, i])
    return np.concatenate(steps), np.concatenate(values)


def _chart(name: str, attempts: Sequence[Frames], incidents: Sequence[Incident]) -> str:
    steps, values = _series(name, attempts)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return f"<p>{html.escape(name)}: no finite value</p>"
    first, last = float(steps.min()), float(max(steps.max(), steps.min() + 1))
    middle, high = float(np.median(finite)), float(finite.max())
    log = bool(finite.min() > 0) and high > 30 * middle
    scale: Callable[[float], float] = math.log10 if log else float
    low_y, high_y = scale(float(finite.min())), scale(high)
    span = high_y - low_y or 1.0

    def x(step: float) -> float:
        return MARGIN + (WIDTH - MARGIN - 8) * (step - first) / (last - first)

    def y(value: float) -> float:
        return 12 + (HEIGHT - 34) * (1 - (scale(value) - low_y) / span)

    points = " ".join(f"{x(float(steps[i])):.1f},{y(float(values[i])):.1f}" for i in _extremes(values))
    marks = "".join(
        f"<text x='{x(float(steps[i])):.1f}' y='10' text-anchor='middle'>✕</text>"
        for i in np.flatnonzero(~np.isfinite(values))[:200]
    )
    bands = "".join(_band(incident, last, x) for incident in incidents)
    axis = "".join(
        f"<text x='{x(step):.0f}' y='{HEIGHT - 6}' text-anchor='middle'>{step:.0f}</text>"
        for step in np.linspace(first, last, 6)
    )
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' role='img' aria-label='{html.escape(name)}'>{bands}"
        f"<polyline points='{points}' fill='none' stroke='#1565c0' stroke-width='1'/>{marks}{axis}"
        f"<text x='{MARGIN}' y='10'>{html.escape(name)}{' (log scale)' if log else ''}</text>"
        f"<text x='4' y='{y(high) + 4:.0f}'>{high:.4g}</text>"
        f"<text x='4' y='{y(float(finite.min())):.0f}'>{float(finite.min()):.4g}</text></svg>"
    )


def _extremes(values: Floats64) -> list[int]:
    """Indices of the values to draw: of each bucket the one furthest from the median."""
    finite = np.flatnonzero(np.isfinite(values))
    if len(finite) <= POINTS:
        return [int(i) for i in finite]
    middle = float(np.median(values[finite]))
    buckets = np.array_split(finite, POINTS)
    return [int(bucket[np.argmax(np.abs(values[bucket] - middle))]) for bucket in buckets]


def _band(incident: Incident, last: float, x: Callable[[float], float]) -> str:
    begin = x(incident.onset_step)
    end = x(last if incident.end_step is None else incident.end_step)
    colour = _COLOURS.get(incident.kind, "#78909c")
    return (
        f"<rect x='{begin:.1f}' y='12' width='{max(end - begin, 2):.1f}' height='{HEIGHT - 34}' fill='{colour}' "
        f"opacity='.25'><title>{html.escape(incident.explanation)}</title></rect>"
    )


def _table(trace: Trace, incidents: Sequence[Incident]) -> str:
    if not incidents:
        return "<p>No incidents.</p>"
    rows = "".join(
        f"<tr><td>{incident.kind.replace('_', ' ')}</td><td>{incident.onset_step}</td><td>{incident.detected_step}</td>"
        f"<td>{'' if incident.end_step is None else incident.end_step}</td>"
        f"<td>{html.escape(incident.explanation)}{_batches(trace, incident)}</td>"
        f"<td>{html.escape(incident.advice)}</td>"
        f"<td>{_movers(incident)}</td></tr>"
        for incident in incidents
    )
    head = "<tr><th>kind</th><th>onset</th><th>flagged</th><th>end</th><th>what happened</th><th>what to do</th>"
    head += "<th>who moved first</th></tr>"
    return f"<table>{head}{rows}</table>"


def _batches(trace: Trace, incident: Incident) -> str:
    found = sentence(of_trace(trace, incident))
    return f"<br>Batches: {html.escape(found)}" if found else ""


def _movers(incident: Incident) -> str:
    """Who moved, in order: name, step and how far."""
    shown = [f"{one.name or 'total loss'} ({one.step}, {one.height:.3g})" for one in incident.movers[:5]]
    return html.escape(", ".join(shown))
