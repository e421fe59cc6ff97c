"""Figures as SVG, of lists of points: matplotlib without a screen, text as text, equal bytes from equal points."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lossguard.wire.numbers import from_json_number

POINTS = 240
"""Of a line that is thinned; more are not seen at this size."""
DIGITS = 4
MANY_LINES = 5
"""In a panel, of which more are named in two columns."""

Points = Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a panel.

    Attributes:
        label: for the legend.
        points: [x, y].
        style: of matplotlib.
    """

    label: str
    points: Points
    style: str = "-"


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram.

    Attributes:
        title: what is drawn, with its unit.
        lines: in it.
        log: whether y is logarithmic.
        level: a horizontal line, where given.
        marks: vertical lines, x and label.
        legend: whether the lines are named; not where the panel beside it names the same ones.
    """

    title: str
    lines: Sequence[Line]
    log: bool = False
    level: float | None = None
    marks: Sequence[tuple[float, str]] = field(default_factory=tuple)
    legend: bool = True


EMPTY = Panel("", ())
"""A place that is left free."""


def thinned(x: Any, y: Any, points: int = POINTS) -> list[list[float]]:
    """At most so many points: of each stretch the value furthest from the median, so that no spike is lost."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    kept = np.flatnonzero(np.isfinite(y))
    if len(kept) > points:
        middle = np.median(y[kept])
        kept = np.array([part[np.argmax(np.abs(y[part] - middle))] for part in np.array_split(kept, points)])
    return [[float(x[i]), float(f"{y[i]:.{DIGITS}g}")] for i in kept]


def smoothed(values: Any, width: int) -> Any:
    """The running mean over `width` values, NaN left out."""
    values = np.asarray(values, np.float64)
    known = np.isfinite(values)
    kernel = np.ones(width)
    sums = np.convolve(np.where(known, values, 0.0), kernel, "same")
    counts = np.convolve(known.astype(np.float64), kernel, "same")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts > 0, sums / counts, np.nan)


def rows(panels: Sequence[Panel], x_label: str, columns: int = 1) -> str:
    """Panels below each other, or in columns, with one x axis."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # The salt makes the same picture the same bytes; its default is drawn anew in every process.
    style: Any = {"svg.hashsalt": "lossguard", "svg.fonttype": "none", "font.size": 8, "axes.spines.top": False}
    style |= {"axes.spines.right": False, "axes.titlesize": 8, "legend.frameon": False, "lines.linewidth": 1.0}
    height = -(-len(panels) // columns)
    with matplotlib.rc_context(style):
        figure, grid = pyplot.subplots(
            height, columns, figsize=(7.2, 0.5 + 1.75 * height), squeeze=False, layout="constrained"
        )
        for axes, panel in zip(grid.ravel(), panels, strict=False):
            axes.set_visible(panel is not EMPTY)
            _draw(axes, panel)
        for axes in grid.ravel()[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel(x_label)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _draw(axes: Any, panel: Panel) -> None:
    for line in panel.lines:
        points = [[from_json_number(value) for value in point] for point in line.points]
        if points:
            places, values = zip(*points, strict=True)
            axes.plot(places, values, line.style, label=line.label)
    if panel.log:
        axes.set_yscale("log")
    if panel.level is not None:
        axes.axhline(panel.level, color="0.5", linewidth=0.7, linestyle=":")
    for x, label in panel.marks:
        axes.axvline(x, color="0.5", linewidth=0.7, linestyle="--")
        axes.annotate(label, (x, 1.0), xycoords=("data", "axes fraction"), fontsize=7, ha="left", va="top")
    axes.set_title(panel.title, loc="left")
    if len(panel.lines) > 1 and panel.legend:
        many = len(panel.lines) > MANY_LINES
        axes.legend(fontsize=6, loc="best", ncols=2 if many else 1, columnspacing=0.8, handlelength=1.0)
