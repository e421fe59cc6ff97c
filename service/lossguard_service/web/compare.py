"""Runs side by side: the same charts with a line per run, what they ended at, and where they first went apart. Pure.

Trials of one configuration stand together, with how far apart they end and how many of them diverge. Values are taken
at the last step that all runs have.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lossguard_service.store.buckets import Buckets
from lossguard_service.store.runs import Run
from lossguard_service.web import charts
from lossguard_service.web.apart import Apart
from lossguard_service.web.trials import Group, groups
from lossguard_service.web.words import STATES, count, number, run_path, whole

MOST_RUNS: Final = 8
LAST_SHARE: Final = 0.05
"""What a run ended at is the mean over the last twentieth of the steps that all runs have: single steps are noise."""


@dataclass(frozen=True, slots=True)
class Side:
    """One run of the comparison.

    Attributes:
        run: the run.
        config: what its first attempt said about itself, by which it is grouped.
        scalars: the names of its scalars.
        data: its scalars' buckets, over all its steps.
    """

    run: Run
    config: Mapping[str, Any]
    scalars: tuple[str, ...]
    data: Mapping[str, Buckets]

    @property
    def status(self) -> str:
        """The run's."""
        return self.run.status

    @property
    def label(self) -> str:
        """How the legend calls it."""
        return f"{self.run.project}/{self.run.name}"


@dataclass(frozen=True, slots=True)
class Row:
    """One measure: a value per run, in the order of the groups, and how far apart they are in each group."""

    label: str
    values: tuple[str, ...]
    spreads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """One run: its name, its page, its state, and how it parts from the first one of its group."""

    label: str
    href: str
    status: str
    word: str
    parts: str


@dataclass(frozen=True, slots=True)
class CompareView:
    """The page."""

    groups: tuple[Group, ...]
    columns: tuple[Column, ...]
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


def shared_scalars(one: Side, other: Side) -> tuple[str, ...]:
    """The scalars whose first difference is looked for: those on both runs' charts, the total loss first."""
    names = [name for name in one.data if name in other.data]
    return tuple(sorted(names, key=lambda name: name != "loss"))


def pairs(sides: Sequence[Side]) -> tuple[tuple[int, int], ...]:
    """Which runs to hold against which: each against the first of its group; groups of one against the first run."""
    found = groups(sides)
    first = found[0].places[0] if found else 0
    return tuple(
        (group.places[0] if len(group.places) > 1 else first, place)
        for group in found
        for place in (group.places[1:] if len(group.places) > 1 else group.places)
        if place != first
    )


def view(sides: Sequence[Side], apart: Mapping[tuple[int, int], Apart | None], data_path: str) -> CompareView:
    """The page.

    Args:
        sides: the runs.
        apart: where the `pairs` of them part.
        data_path: the address of the charts' data.
    """
    lasts = [side.run.last_step for side in sides if side.run.last_step is not None]
    common = min(lasts, default=None)
    found = groups(sides)
    order = [place for group in found for place in group.places]
    against = {place: (sides[one].run.name, apart.get((one, place))) for one, place in pairs(sides)}
    return CompareView(
        groups=found,
        columns=tuple(
            Column(
                sides[place].label,
                run_path(sides[place].run.project, sides[place].run.name),
                sides[place].run.status,
                STATES[sides[place].run.status],
                parts_words(*against[place]) if place in against else "–",
            )
            for place in order
        ),
        rows=tuple(_rows(sides, found, common)) if common else (),
        title=f"{count(len(sides), 'run')} side by side",
        facts=(
            ("Configurations", f"{count(len(found), 'configuration')}, {count(len(sides), 'run')}"),
            ("Compared at", f"step {whole(common)}, the last that all of them have"),
        ),
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


def parts_words(other: str, apart: Apart | None) -> str:
    """Where a run parts from another, in words.

    >>> parts_words("a", Apart(7, 7, "loss")), parts_words("a", None)
    ('from a at step 7, loss', 'nowhere from a')
    """
    if apart is None:
        return f"nowhere from {other}"
    if apart.first == apart.last:
        return f"from {other} at step {whole(apart.first)}, {apart.scalar}"
    return f"from {other} between step {whole(apart.first)} and {whole(apart.last)}, {apart.scalar}"


def _rows(sides: Sequence[Side], found: Sequence[Group], common: int) -> list[Row]:
    rows = []
    for chart in plan(sides):
        if chart.id.startswith("learning_rate"):
            continue
        values = [ending(of_line(side, chart.lines[0]), common) for side in sides]
        order = [place for group in found for place in group.places]
        told = tuple("–" if values[place] is None else number(values[place]) for place in order)
        spreads = tuple(_spread([values[place] for place in group.places]) for group in found)
        rows.append(Row(chart.title, told, spreads))
    return rows


def _spread(values: Sequence[float | None]) -> str:
    """From the smallest to the largest; a dash where one is missing or not finite, or there is only one."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return number(max(finite) - min(finite), 3) if len(finite) == len(values) > 1 else "–"


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
