"""What became of a run, by a rule that knows its end: losses, the click task's AUC, and the held-out AUC.

It looks at no layer and asks no detector, so that detectors can be held against it. A loss event begins where the
running median of the total loss leaves its own recent level (in the first 40 steps: where the loss itself is ten times
the first one), and ends where loss and AUC are back. A run is lost if its held-out click AUC is 0.05 below that of
healthy runs, or its last batches are ranked no better than by chance.

nan       a loss that is not finite
full      lost, with an event
degraded  lost, without one: it learned too little
micro     an event from step 40 on, with a drop of the batch AUC, that ended
healthy   all others, start-up transients and isolated bad batches among them
"""

import math
from dataclasses import dataclass

import numpy as np

from lossguard.wire.frame import Floats64

START_UP, BLOWN_UP = 40, 10.0
"""Steps without a level of their own, and the multiple of the first loss that counts there."""
LEVEL_STEPS, LEVEL_GAP = 60, 10
LOST, CHANCE = 0.05, 0.55
LAST_STEPS = 100
DROP = 0.02
BACK_STEPS = 25


@dataclass(frozen=True, slots=True)
class Event:
    """One stretch with a loss far above its level.

    Attributes:
        start: its first step.
        end: the step from which all is back; None if it never is.
        drop: by how much the batch AUC fell below its level; NaN where it had none.
    """

    start: int
    end: int | None
    drop: float


def judge(loss: Floats64, batch_auc: Floats64, final_auc: float, reference: float) -> tuple[str, int | None]:
    """The label, and the step at which the divergence began.

    Args:
        loss: total loss of each step [T].
        batch_auc: of the click task [T]; NaN where a batch has one class only.
        final_auc: on the held-out day.
        reference: of a healthy run.
    """
    broken = np.flatnonzero(~np.isfinite(loss))
    if len(broken):
        return "nan", int(broken[0]) + 1
    found = events(loss, batch_auc)
    lost = not final_auc >= reference - LOST or not _median(batch_auc[-LAST_STEPS:]) > CHANCE
    if lost and found:
        lasting = [one for one in found if one.end is None]
        return "full", (lasting or found)[-1].start
    if lost:
        return "degraded", None
    micro = [one for one in found if one.start > START_UP and one.end is not None and one.drop > DROP]
    return ("micro", micro[0].start) if micro else ("healthy", None)


def events(loss: Floats64, batch_auc: Floats64) -> list[Event]:
    """The loss events of a run, in order."""
    count = len(loss)
    smooth = np.array([np.median(loss[max(0, t - 2) : t + 3]) for t in range(count)])
    later = np.array([np.median(loss[t : t + BACK_STEPS]) for t in range(count)])
    ranked = np.array([_median(batch_auc[t : t + BACK_STEPS]) for t in range(count)])
    calm = np.ones(count, np.bool_)
    found = []
    t = 1
    while t < count:
        before = np.flatnonzero(calm[: max(0, t - LEVEL_GAP)])[-LEVEL_STEPS:]
        if t < START_UP or len(before) < LEVEL_STEPS // 3:
            level, spread, auc = float(loss[0]), 0.1 * float(loss[0]), math.nan
            limit = BLOWN_UP * level
        else:
            level = float(np.median(loss[before]))
            spread = 1.4826 * float(np.median(np.abs(loss[before] - level)))
            auc = _median(batch_auc[before])
            limit = level + max(6 * spread, 0.5 * level)
        if (loss if t < START_UP else smooth)[t] <= limit:
            t += 1
            continue
        start = next((k for k in range(max(0, t - 4), t) if loss[k] > limit), t)
        back = level + max(3 * spread, 0.15 * level)
        over = (later[t + 1 :] <= back) & ~(ranked[t + 1 :] < auc - DROP)
        end = t + 1 + int(np.argmax(over)) if over.any() else None
        stop = count if end is None else end
        low = ranked[start:stop]
        drop = auc - float(np.min(low[np.isfinite(low)])) if np.isfinite(low).any() else math.nan
        calm[start:stop] = False
        found.append(Event(start + 1, None if end is None else end + 1, drop))
        t = stop + 1
    return found


def _median(values: Floats64) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan
