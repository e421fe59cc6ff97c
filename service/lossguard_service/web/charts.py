"""Chart documents: what the page's script draws, made from a run's scalars. Pure but for reading through the store.

One document holds all line charts of a run over a range of steps, so that a zoom costs one request. A binary task's
loss is shown as normalized entropy (loss over the entropy of its label mean): 1 is what the constant predictor gets,
so a head that collapsed sits at 1 whatever its total loss says. Non-finite values travel as counts beside the finite
part of their bucket, and as names where nothing finite is there; buckets in which nothing was measured are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lossguard.wire.frame import Floats64
from lossguard.wire.numbers import to_json_number
from lossguard_service.store.buckets import Buckets, column
from lossguard_service.store.database import Database
from lossguard_service.store.series import HeatMap, scalar_columns
from lossguard_service.web.factors import FACTORS

POINTS: Final = 600
HEAT_POINTS: Final = 240


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        label: what the legend says.
        scalar: the scalar it shows.
        label_mean: the scalar by whose entropy it is divided; None for the plain value.
        task: the task it belongs to, which gives it its colour; None for the run's own.
    """

    label: str
    scalar: str
    label_mean: str | None = None
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart of a run's page.

    Attributes:
        id: for the script and the address.
        title, note: what it shows, and how to read it.
        lines: in order.
        reference: a value worth a line of its own, with its name; None if there is none.
        scale: `log` only makes sense above 0; `auto` lets the script decide by the spread.
    """

    id: str
    title: str
    note: str
    lines: tuple[Line, ...]
    reference: tuple[float, str] | None = None
    scale: str = "linear"


def tasks_of(config: Mapping[str, Any], scalars: Sequence[str]) -> dict[str, str]:
    """Task names to kinds: as the trainer said, else by what its scalars look like."""
    told = config.get("tasks")
    if isinstance(told, Mapping) and told:
        return {str(name): str(kind) for name, kind in told.items()}
    names = [name.removeprefix("loss/") for name in scalars if name.startswith("loss/")]
    binary = {name.removeprefix("batch_auc/") for name in scalars if name.startswith("batch_auc/")}
    return {name: "binary" if name in binary else "regression" for name in names}


def plan(tasks: Mapping[str, str], scalars: Sequence[str]) -> tuple[Chart, ...]:
    """The charts that these scalars allow."""
    have = set(scalars)
    normalized = [
        task for task, kind in tasks.items() if kind == "binary" and {f"loss/{task}", f"label_mean/{task}"} <= have
    ]
    plain = [task for task in tasks if task not in normalized and f"loss/{task}" in have]
    charts = [
        Chart(
            "auc",
            "Batch AUC",
            "per binary task; 0.5 is guessing",
            tuple(Line(task, f"batch_auc/{task}", task=task) for task in tasks if f"batch_auc/{task}" in have),
            (0.5, "guessing"),
        ),
        Chart(
            "entropy",
            "Normalized entropy",
            "loss over that of the constant predictor; lower is better, 1 means nothing learned",
            tuple(Line(task, f"loss/{task}", f"label_mean/{task}", task) for task in normalized),
            (1.0, "constant predictor"),
            "auto",
        ),
        Chart(
            "loss",
            "Loss",
            "the total, and each task that has no normalized form",
            (
                *((Line("total", "loss"),) if "loss" in have else ()),
                *(Line(task, f"loss/{task}", task=task) for task in plain),
            ),
            scale="auto",
        ),
        Chart(
            "spread",
            "Spread of the predictions",
            "standard deviation within a batch; a collapsed head predicts a constant",
            tuple(
                Line(task, f"prediction_std/{task}", task=task) for task in tasks if f"prediction_std/{task}" in have
            ),
            scale="auto",
        ),
        Chart(
            "learning_rate",
            "Learning rate",
            "",
            (Line("learning rate", "learning_rate"),) if "learning_rate" in have else (),
        ),
    ]
    return tuple(chart for chart in charts if chart.lines)


def own_scalars(tasks: Mapping[str, str], scalars: Sequence[str]) -> tuple[str, ...]:
    """The scalars that no standard chart shows: the trainer's own."""
    shown = {line.scalar for chart in plan(tasks, scalars) for line in chart.lines}
    shown |= {f"label_mean/{task}" for task in tasks}
    return tuple(name for name in scalars if name not in shown)


def entropy(mean: Floats64) -> Floats64:
    """The loss of the constant predictor in nats: the binary entropy of a label mean.

    >>> float(entropy(np.array([0.5])).round(4)[0])
    0.6931
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Floats64 = -(mean * np.log(mean) + (1 - mean) * np.log1p(-mean))
    return value


def normalize(loss: Buckets, label_mean: Buckets) -> Buckets:
    """A loss over the entropy of its label mean, bucket by bucket; both come from the same steps."""
    place = np.clip(np.searchsorted(label_mean.first, loss.first, "right") - 1, 0, max(0, len(label_mean) - 1))
    if not len(label_mean):
        return loss
    base = entropy(label_mean.mean)[place]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return Buckets(
            loss.first,
            loss.last,
            loss.count,
            loss.nonfinite,
            loss.minimum / base,
            loss.maximum / base,
            loss.mean / base,
        )


async def read_charts(
    database: Database, run_id: int, charts: Sequence[Chart], first: int | None, last: int | None, points: int = POINTS
) -> dict[str, Any]:
    """The document of these charts over steps `first` to `last`."""
    return document(charts, await read_scalars(database, run_id, charts, first, last, points))


async def read_scalars(
    database: Database, run_id: int, charts: Sequence[Chart], first: int | None, last: int | None, points: int = POINTS
) -> dict[str, Buckets]:
    """The scalars that these charts show, by name."""
    names = (name for chart in charts for line in chart.lines for name in (line.scalar, line.label_mean))
    wanted = list(dict.fromkeys(name for name in names if name is not None))
    table = await scalar_columns(database, run_id, wanted, first=first, last=last, points=points)
    return {name: column(table, place) for place, name in enumerate(wanted)}


def document(charts: Sequence[Chart], found: Mapping[str, Buckets]) -> dict[str, Any]:
    """Charts with their data, ready for `json.dumps`."""
    result = []
    for chart in charts:
        lines = []
        for line in chart.lines:
            data = found.get(line.scalar)
            base = found.get(line.label_mean) if line.label_mean else None
            if data is None or not len(data):
                continue
            if base is not None:
                data = normalize(data, base)
            lines.append({"label": line.label, "task": line.task, **points_of(data)})
        if lines:
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
    return {"charts": result}


def heat_document(heat: HeatMap) -> dict[str, Any]:
    """A heat map, ready for `json.dumps`: layers x buckets."""
    return {
        "stat": heat.stat,
        "smallest": heat.stat in FACTORS,
        "layers": list(heat.layers),
        "first": heat.first.tolist(),
        "last": heat.last.tolist(),
        "maximum": [_numbers(row) for row in heat.maximum],
        "nonfinite": heat.nonfinite.tolist(),
    }


def points_of(data: Buckets) -> dict[str, Any]:
    """One column's buckets as the script draws them."""
    here = data.count[:, 0] > 0
    raw = bool(np.all(data.first == data.last))
    points = {
        "first": data.first[here].tolist(),
        "mean": _numbers(data.mean[here, 0]),
        "nonfinite": data.nonfinite[here, 0].tolist() if data.nonfinite.any() else [],
    }
    if not raw:
        points["last"] = data.last[here].tolist()
        points["minimum"] = _numbers(data.minimum[here, 0])
        points["maximum"] = _numbers(data.maximum[here, 0])
    return points


def _numbers(values: NDArray[np.float64]) -> list[float | str]:
    # Six digits: the page draws 600 points on as many pixels.
    return [to_json_number(float(f"{value:.6g}")) for value in values]
