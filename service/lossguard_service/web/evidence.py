"""What was measured around an incident's onset: who moved, with their curves there, and which batches came.

Guarantees. Every mover of the incident is told, with a curve where what it moved in was measured; a layer's is of the
signal that rose most over its median before. Batches are told by step and only where every step is still stored alone.
Reads through the store, then pure.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from lossguard.trace.batches import BATCH, FILE, Batch
from lossguard.wire.frame import Schema
from lossguard.wire.incident import Incident, Mover
from lossguard.wire.stats import CLIPPY_RATIO, GRADIENT_NORM, UPDATE_NORM
from lossguard_service.incidents.batches import batches
from lossguard_service.store.buckets import Buckets, column
from lossguard_service.store.database import Database
from lossguard_service.store.incidents import StoredIncident
from lossguard_service.store.lineage import Attempt
from lossguard_service.store.series import HeatMap, heat_map, scalar_columns
from lossguard_service.web.layers import of_layer
from lossguard_service.web.spark import Spark, spark
from lossguard_service.web.words import count, number, whole

BEFORE: Final = 40
"""Steps before the first signal: a baseline that the eye can judge."""
AFTER: Final = 20
"""Steps after the last mover; from onset to the peak takes 5."""
LONGEST: Final = 240
SIGNALS: Final = (GRADIENT_NORM, UPDATE_NORM, CLIPPY_RATIO)


@dataclass(frozen=True, slots=True)
class MoverRow:
    """One mover.

    Attributes:
        what, name: `layer` or `task`, and which; the total loss is of all tasks.
        step: when it left its baseline.
        when: the same as seen from the onset, in words.
        height: how far it went, in words.
        measure: the stat or scalar of the curve; empty if none was measured.
        curve: that around the onset, the onset marked; None if none was measured.
        course: from where to where it went, in words.
    """

    what: str
    name: str
    step: int
    when: str
    height: str
    measure: str = ""
    curve: Spark | None = None
    course: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All of it; `steps` is the range of the curves."""

    movers: tuple[MoverRow, ...]
    batches: tuple[Batch, ...]
    steps: tuple[int, int]


async def read(
    database: Database, run_id: int, names: Schema, stored: StoredIncident, attempts: Sequence[Attempt]
) -> Evidence:
    """The evidence of one incident; of a superseded one from the attempt that it happened in."""
    incident = stored.incident
    first, last = steps = around(incident)
    reach: dict[str, Any] = {
        "first": first,
        "last": last,
        "points": last - first + 1,
        "attempt": attempt_of(stored, attempts),
    }
    wanted = [_scalar(one) for one in incident.movers if one.what == "task"]
    wanted = [name for name in dict.fromkeys([*wanted, BATCH, FILE]) if name in names.scalars]
    moved = any(one.what == "layer" for one in incident.movers)
    signals = [stat for stat in SIGNALS if moved and stat in names.stats]
    table, maps = await asyncio.gather(
        scalar_columns(database, run_id, wanted, **reach),
        asyncio.gather(*(heat_map(database, run_id, stat, **reach) for stat in signals)),
    )
    scalars = {name: column(table, place) for place, name in enumerate(wanted)}
    return Evidence(
        tuple(_row(one, incident, scalars, maps) for one in incident.movers),
        batches(incident, scalars.get(BATCH), scalars.get(FILE)),
        steps,
    )


def around(incident: Incident) -> tuple[int, int]:
    """The steps of the curves: from well before the first mover to after the last one, the onset always among them."""
    moved = [incident.onset_step, *(one.step for one in incident.movers)]
    if incident.first_signal_step is not None:
        moved.append(incident.first_signal_step)
    first = max(1, min(moved) - BEFORE, incident.onset_step - LONGEST // 2)
    return first, min(max(moved) + AFTER, first + LONGEST)


def attempt_of(stored: StoredIncident, attempts: Sequence[Attempt]) -> int | None:
    """The attempt of a superseded incident: the newest one whose steps at the onset were taken back; None otherwise."""
    onset = stored.incident.onset_step
    ended = [
        one.number
        for one in attempts
        if one.superseded_after is not None and one.superseded_after < onset <= (one.last_step or 0)
    ]
    return max(ended) if stored.superseded and ended else None


def _scalar(mover: Mover) -> str:
    return f"loss/{mover.name}" if mover.name else "loss"


def _row(mover: Mover, incident: Incident, scalars: Mapping[str, Buckets], maps: Sequence[HeatMap]) -> MoverRow:
    curves = {}
    if mover.what == "task":
        curves = {name: scalars[name] for name in (_scalar(mover),) if name in scalars}
    else:
        for one in maps:
            if mover.name in one.layers:
                data = of_layer(one, one.layers.index(mover.name))
                if data is not None:
                    curves[one.stat] = data
    name, what = (mover.name, mover.what) if mover.name else ("total loss", "of all tasks")
    plain = MoverRow(what, name, mover.step, when(mover.step, incident.onset_step), height(mover.height))
    scored = [(rise(data, mover.step), stat, data) for stat, data in curves.items() if len(data)]
    if not scored:
        return plain
    (before, after), stat, data = max(scored, key=lambda one: _ratio(*one[0]))
    worst = f"up to {number(after, 3)}" if math.isfinite(after) else "NaN or Inf"
    return replace(
        plain,
        measure=stat,
        curve=spark(data, f"{stat} of {name}", mark=incident.onset_step),
        course=f"{number(before, 3)}, then {worst}" if math.isfinite(before) else worst,
    )


def rise(data: Buckets, step: int) -> tuple[float, float]:
    """The median before a step, and the largest value from there on; NaN where there is none or one is not finite."""
    value, early = data.maximum[:, 0], data.first < step
    before, late = value[early & np.isfinite(value)], value[~early]
    finite = len(late) > 0 and not data.nonfinite[~early].any()
    return float(np.median(before)) if len(before) else math.nan, float(late.max()) if finite else math.nan


def _ratio(before: float, after: float) -> float:
    if not math.isfinite(after):
        return math.inf
    return after / before if before > 0 else 0.0


def when(step: int, onset: int) -> str:
    """A step as seen from the onset.

    >>> when(5, 7), when(7, 7), when(8, 7)
    ('2 steps before', 'at the onset', '1 step after')
    """
    if step == onset:
        return "at the onset"
    return f"{count(abs(step - onset), 'step')} {'before' if step < onset else 'after'}"


def height(scales: float) -> str:
    """How far something went, of its own baseline.

    >>> height(53.7), height(float("inf")), height(0.0)
    ('53.7 scales', 'NaN or Inf', 'not known')
    """
    if not math.isfinite(scales):
        return "NaN or Inf"
    return f"{number(scales, 3)} scales" if scales > 0 else "not known"


def batches_text(found: Sequence[Batch]) -> str:
    """The batches as a sentence says them.

    >>> batches_text([Batch(7, "4412", "onset"), Batch(8, "4413", "")])
    'step 7: 4412 (onset), step 8: 4413'
    """
    return ", ".join(f"step {whole(one.step)}: {one.name}{f' ({one.note})' if one.note else ''}" for one in found)
