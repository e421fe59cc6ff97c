"""Known changes of the regime: told as events, and what they explain is no incident.

The learning rate says when its warm-up ended and when it made a step; a rate that glides along a schedule says nothing.
A step re-baselines what follows the rate by arithmetic (update over weight, Clippy's ratio: they move by the same
factor), a rise also the slow watch over losses without metrics. A task that joins changes what the total is the sum of,
so the total's baseline begins anew. A new attempt begins everything anew.
"""

import math
from dataclasses import dataclass

STEP_FACTOR = 1.25
"""From one frame to the next, upwards or downwards: schedules that glide move by less than a tenth, those that step by
a fifth and more (0.8 and 0.5 per epoch, 0.1 at milestones)."""
WARM_FACTOR = 2.0
"""A rate that rose at every frame since the attempt's first, to twice its first value at least, was warming up."""
WARM_FRAMES = 3
EVENTS_KEPT = 32
"""Steps of the rate that are told in an attempt: a rate that makes more is a schedule, and no news."""


@dataclass(slots=True)
class Regime:
    """The memory of the learning rate.

    Attributes:
        rate: the last learning rate; NaN before the first.
        since: the frame since which it has been what it is.
        first: the attempt's first rate.
        rises: frames in a row, from the first on, at which it rose; -1 when the warm-up is over.
        told: events so far.
    """

    rate: float = math.nan
    since: int = 0
    first: float = math.nan
    rises: int = 0
    told: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """A change of the learning rate that is worth a word.

    Attributes:
        reason: `warm` where a warm-up ended, `rate` where the rate made a step.
        factor: new rate over old; of a warm-up: over its first.
        rate: the rate from now on.
    """

    reason: str
    factor: float
    rate: float


def take(regime: Regime, frame: int, rate: float) -> Event | None:
    """Take the learning rate of a frame, positive and finite; the event that it makes, if it makes one."""
    old = regime.rate
    if rate == old:
        return _end_of_warm_up(regime)
    regime.rate, regime.since = rate, frame
    if math.isnan(old):
        regime.first = rate
        return None
    if rate > old and regime.rises >= 0:
        regime.rises += 1
        return None
    ended = _end_of_warm_up(regime, old)
    factor = rate / old
    if ended is None and not glides(factor):
        return _told(regime, Event("rate", factor, rate))
    return ended


def glides(factor: float) -> bool:
    """Whether a rate that moves by this factor from one frame to the next makes no step."""
    return 1 / STEP_FACTOR < factor < STEP_FACTOR


def _end_of_warm_up(regime: Regime, top: float | None = None) -> Event | None:
    """The event of a rate that has stopped rising, where it had risen for long enough."""
    rises, regime.rises = regime.rises, -1
    rate = regime.rate if top is None else top
    if rises < 1 or not regime.first > 0:
        return None
    factor = rate / regime.first
    if rises < WARM_FRAMES:
        return _told(regime, Event("rate", factor, rate)) if factor >= STEP_FACTOR else None
    return _told(regime, Event("warm", factor, rate)) if factor >= WARM_FACTOR else None


def _told(regime: Regime, event: Event) -> Event | None:
    regime.told += 1
    return event if regime.told <= EVENTS_KEPT else None
