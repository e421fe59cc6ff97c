"""Layer by layer, how weights and gradients went: the practitioner's convergence view. Pure.

Everything here is observed, nothing is judged: how much a layer's weight norm still changed in the last fifth of the
run, whether its gradient was exactly 0 there, which incident it began. Layers are listed with the restless first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lossguard.wire import stats
from lossguard_service.store.buckets import Buckets, join
from lossguard_service.store.incidents import StoredIncident
from lossguard_service.store.runs import Run
from lossguard_service.store.series import HeatMap
from lossguard_service.web.spark import Spark, spark
from lossguard_service.web.words import KINDS, number, run_path, share, whole

POINTS: Final = 60
LAST: Final = 0.2
MOST_ROWS: Final = 40
"""Layers shown at once: of a large model, whose page nobody reads to its end, those that stand out."""
ALL_ROWS: Final = 1000
STATS: Final = (stats.WEIGHT_NORM, stats.GRADIENT_NORM, stats.CLIPPY_RATIO, stats.GRADIENT_ZERO_FRACTION)


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer.

    Attributes:
        name: its path.
        weight, gradient: their curves.
        weight_last, gradient_last: their last values.
        change: how much the weight norm changed in the last fifth, as text.
        clippy: the largest Clippy ratio of the run; "–" if it was not measured.
        notes: what stands out, in words.
    """

    name: str
    weight: Spark
    weight_last: str
    gradient: Spark
    gradient_last: str
    change: str
    clippy: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayersView:
    """The page.

    Attributes:
        run, run_href: whose layers.
        rows: those shown.
        since: the step from which the change counts, as text.
        search: what was searched for.
        layers: how many the run has.
        found: how many of them match the search.
    """

    run: Run
    run_href: str
    rows: tuple[LayerRow, ...]
    since: str
    search: str
    layers: int
    found: int


@dataclass(frozen=True, slots=True)
class _Look:
    """A layer before it is drawn: of a large model only a few are."""

    name: str
    weight: Buckets | None
    gradient: Buckets | None
    change: float | None
    clippy: Buckets | None
    notes: tuple[str, ...]
    rank: float


def view(
    run: Run,
    maps: Mapping[str, HeatMap],
    incidents: Sequence[StoredIncident],
    search: str = "",
    most: int = MOST_ROWS,
) -> LayersView:
    """The page, from the heat maps of `STATS` that the run has.

    Args:
        run: whose layers.
        maps: by stat.
        incidents: of the run.
        search: a part of the layers' names, in any case; words in any order.
        most: how many layers are shown, those first that stand out.
    """
    names = next((found.layers for found in maps.values()), ())
    began: dict[str, list[str]] = {}
    for one in incidents:
        if not one.superseded and one.incident.first_layer is not None:
            kind = KINDS[one.incident.kind].lower()
            began.setdefault(one.incident.first_layer, []).append(
                f"moved first in the {kind} of step {whole(one.incident.onset_step)}"
            )
    words = search.lower().split()
    found = [(at, name) for at, name in enumerate(names) if all(word in name.lower() for word in words)]
    looks = sorted((_look(name, at, maps, began.get(name, ())) for at, name in found), key=lambda one: -one.rank)
    columns = [of_layer(maps.get(stats.WEIGHT_NORM), at) for at in range(len(names))]
    since = min((int(one.first[_tail(len(one))]) for one in columns if one is not None and len(one)), default=None)
    rows = tuple(map(_row, looks[:most]))
    told = "" if since is None else whole(since)
    return LayersView(run, run_path(run.project, run.name), rows, told, search, len(names), len(found))


def _look(name: str, at: int, maps: Mapping[str, HeatMap], began: Sequence[str]) -> _Look:
    weight, gradient = (of_layer(maps.get(stat), at) for stat in (stats.WEIGHT_NORM, stats.GRADIENT_NORM))
    change = _change(weight)
    notes = list(began)
    bad = sum(int(found.nonfinite[at].sum()) for found in maps.values())
    if bad:
        notes.append(f"NaN or Inf in {bad:,} values")
    if change == 0.0:
        notes.append("its weight norm did not change measurably in the last fifth")
    zero = of_layer(maps.get(stats.GRADIENT_ZERO_FRACTION), at)
    if (
        gradient is not None
        and len(gradient)
        and not np.nan_to_num(gradient.maximum[_tail(len(gradient)) :], nan=1.0).any()
    ):
        notes.append("its gradient was exactly 0 in the last fifth")
    elif zero is not None and len(zero) and zero.maximum[-1, 0] > 0:
        notes.append(f"{share(float(zero.maximum[-1, 0]))} of its gradient is exactly 0")
    restless = -1.0 if change is None or math.isnan(change) else abs(change)
    # What stands out first, then the restless.
    rank = math.inf if bad else 1e6 + restless if notes else restless
    return _Look(name, weight, gradient, change, of_layer(maps.get(stats.CLIPPY_RATIO), at), tuple(notes), rank)


def _row(look: _Look) -> LayerRow:
    clippy, change = look.clippy, look.change
    return LayerRow(
        name=look.name,
        weight=spark(look.weight if look.weight is not None else _NOTHING, "weight norm"),
        weight_last=_last(look.weight),
        gradient=spark(look.gradient if look.gradient is not None else _NOTHING, "gradient norm"),
        gradient_last=_last(look.gradient),
        change="–" if change is None else share(abs(change)) if math.isfinite(change) else number(change),
        clippy="–" if clippy is None or not len(clippy) else number(float(np.fmax.reduce(clippy.maximum[:, 0])), 3),
        notes=look.notes,
    )


def of_layer(found: HeatMap | None, at: int) -> Buckets | None:
    """One layer's buckets; those in which it was not measured are left out: some stats are measured every few steps."""
    if found is None:
        return None
    here = ~np.isnan(found.maximum[at]) | (found.nonfinite[at] > 0)
    value, bad = found.maximum[at][here][:, None], found.nonfinite[at][here][:, None]
    return Buckets(found.first[here], found.last[here], np.ones_like(bad), bad, value, value, value)


def _change(weight: Buckets | None) -> float | None:
    """The relative change of a norm over the last fifth; NaN if it is not finite at both ends."""
    if weight is None or len(weight) < 2:
        return None
    before, after = float(weight.maximum[_tail(len(weight)), 0]), float(weight.maximum[-1, 0])
    if not (math.isfinite(before) and math.isfinite(after)):
        return math.nan
    return 0.0 if before == after else math.inf if before == 0 else after / before - 1


def _tail(length: int) -> int:
    return min(length - 1, int(length * (1 - LAST))) if length else 0


def _last(data: Buckets | None) -> str:
    return "–" if data is None or not len(data) else number(float(data.maximum[-1, 0]))


_NOTHING: Final = join([], 1)
