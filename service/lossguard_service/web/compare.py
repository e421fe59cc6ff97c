"""Runs side by side: the same charts with a line per run, what they ended at, and where they first went apart. Pure.

Trials of one configuration should end close together; how far apart they end, and how many of them diverge, says more
about a configuration than its best run. Values are taken at the last step that all runs have.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lossguard_service.store.buckets import Buckets
from lossguard_service.store.runs import Run
from lossguard_service.web import charts
from lossguard_service.web.words import STATES, count, number, run_path, share, whole

MOST_RUNS: Final = 8
LAST_SHARE: Final = 0.05
"""What a run ended at is the mean over the last twentieth of the steps that all runs have: single steps are noise."""


@dataclass(frozen=True, slots=True)
class Side:
    """One run of the comparison.

    Attributes:
        run: the run.
        scalars: the names of its scalars.
        data: its scalars' buckets, over all its steps.
    """

    run: Run
    scalars: tuple[str, ...]
    data: Mapping[str, Buckets]

    @property
    def label(self) -> str:
        """How the legend calls it."""
        return f"{self.run.project}/{self.run.name}"


@dataclass(frozen=True, slots=True)
class Row:
    """One measure: a value per run, and how far apart they are."""

    label: str
    values: tuple[str, ...]
    spread: str


@dataclass(frozen=True, slots=True)
class CompareView:
    """The page."""

    sides: tuple[tuple[str, str, str, str], ...]
    rows: tuple[Row, ...]
    title: str
    facts: tuple[tuple[str, str], ...]
    tracks: Any


@dataclass(frozen=True, slots=True)
class Tracks:
    """The charts of the page; there are no layers on it."""

    data_path: str
    heat_path: str
    first_step: int | None
    last_step: int | None
    bands: tuple[()]
    stats: tuple[()]
    stat: str
    focus: None
    script: dict[str, Any]


def chosen(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Projects and runs from the address, each once, at most `MOST_RUNS`.

    >>> chosen(["a/b", "nonsense", "a/b", "c/d"])
    (('a', 'b'), ('c', 'd'))
    """
    pairs = [(project, run) for project, _, run in (name.partition("/") for name in names) if project and run]
    return tuple(dict.fromkeys(pairs))[:MOST_RUNS]


def plan(sides: Sequence[Side]) -> list[charts.Chart]:
    """The charts of all runs, one for each line of a run's own."""
    found: dict[tuple[str, str], charts.Chart] = {}
    for side in sides:
        tasks = charts.tasks_of(side.run.config, side.scalars)
        for chart in charts.plan(tasks, side.scalars):
            for line in chart.lines:
                title = chart.title if len(chart.lines) == 1 and line.task is None else f"{chart.title}: {line.label}"
                one = charts.Chart(f"{chart.id}-{len(found)}", title, "", (line,), chart.reference, chart.scale)
                found.setdefault((chart.id, line.label), one)
    return list(found.values())


def document(sides: Sequence[Side]) -> dict[str, Any]:
    """Charts with a line per run, in the form that the script draws."""
    result = []
    for chart in plan(sides):
        lines = []
        for side in sides:
            data = of_line(side, chart.lines[0])
            if data is not None and len(data):
                lines.append({"label": side.label, "task": side.label, **charts.points_of(data)})
        result.append(
            {
                "id": chart.id,
                "title": chart.title,
                "note": chart.note,
                "reference": list(chart.reference) if chart.reference else None,
                "scale": chart.scale,
                "lines": lines,
            }
        )
    return {"charts": [chart for chart in result if chart["lines"]]}


def of_line(side: Side, line: charts.Line) -> Buckets | None:
    """A line's data in one run, normalized if the chart wants that and the run allows it."""
    data = side.data.get(line.scalar)
    if data is None or line.label_mean is None:
        return data
    base = side.data.get(line.label_mean)
    return None if base is None else charts.normalize(data, base)


def view(sides: Sequence[Side], data_path: str) -> CompareView:
    """The page."""
    lasts = [side.run.last_step for side in sides if side.run.last_step is not None]
    common = min(lasts, default=None)
    diverged = sum(side.run.status == "diverged" for side in sides)
    apart = first_difference(sides)
    facts = [
        ("Diverged", f"{diverged} of {len(sides)}, {share(diverged / max(1, len(sides)))}"),
        ("Compared at", f"step {whole(common)}, the last that all of them have"),
        ("First difference of the losses", "none" if apart is None else f"at step {whole(apart)} or just after"),
    ]
    return CompareView(
        sides=tuple(
            (side.label, run_path(side.run.project, side.run.name), side.run.status, STATES[side.run.status])
            for side in sides
        ),
        rows=tuple(_rows(sides, common)) if common else (),
        title=f"{count(len(sides), 'run')} side by side",
        facts=tuple(facts),
        tracks=Tracks(
            data_path,
            "",
            min((side.run.first_step for side in sides if side.run.first_step is not None), default=None),
            max(lasts, default=None),
            (),
            (),
            "",
            None,
            {"bands": [], "attempts": [], "tasks": [side.label for side in sides]},
        ),
    )


def first_difference(sides: Sequence[Side]) -> int | None:
    """The first step of the first bucket in which the runs' losses are not the same; None if they never differ."""
    losses = [side.data["loss"] for side in sides if "loss" in side.data]
    if len(losses) < 2:
        return None
    one = losses[0]
    found = []
    for other in losses[1:]:
        length = min(len(one), len(other))
        same = (one.first[:length] == other.first[:length]) & (
            (one.mean[:length, 0] == other.mean[:length, 0])
            | (np.isnan(one.mean[:length, 0]) & np.isnan(other.mean[:length, 0]))
        )
        where = np.flatnonzero(~same)
        if len(where):
            found.append(int(min(one.first[where[0]], other.first[where[0]])))
    return min(found, default=None)


def _rows(sides: Sequence[Side], common: int) -> list[Row]:
    rows = []
    for chart in plan(sides):
        if chart.id.startswith("learning_rate"):
            continue
        values = [ending(of_line(side, chart.lines[0]), common) for side in sides]
        numbers = [value for value in values if value is not None]
        finite = [value for value in numbers if math.isfinite(value)]
        spread = number(max(finite) - min(finite), 3) if len(finite) == len(numbers) > 1 else "–"
        rows.append(Row(chart.title, tuple("–" if value is None else number(value) for value in values), spread))
    return rows


def ending(data: Buckets | None, common: int) -> float | None:
    """The mean over the last steps up to `common`; NaN if one of them is."""
    if data is None or not len(data):
        return None
    here = (data.last <= common) & (data.last > common * (1 - LAST_SHARE)) & (data.count[:, 0] > 0)
    if not here.any():
        return None
    weight = data.count[here, 0]
    with np.errstate(invalid="ignore"):
        return float((data.mean[here, 0] * weight).sum() / weight.sum())
