"""When to flag: one tall frame, or several that are high together.

Two tests per voice on z, the scales above its centre. A single frame counts if it is tall both absolutely and beside
the run's own isolated spikes, so that a heavy-tailed run teaches us to be quiet. A cumulative sum counts what stays
high: a jump that decays, or a ramp, none of whose frames need be tall.
"""

from dataclasses import dataclass

import numpy as np

from lossguard.wire.frame import Floats64

TALL_SCALES = 10.0
"""A single frame is tall from 10 scales on: with a scale that respects the tail, healthy runs of 15,000 frames have a
few; 6 (the published 6-sigma rules) has a hundred times as many."""
TALL_RATIO = 2.0
"""... and from twice the third largest isolated spike of the last 1000 frames: a run that often does this is not
telling us anything new."""
SPIKE_FRAMES = 1000
SPIKE_RANK = 3
SPIKE_SCALES = 4.0
"""Isolated spikes are remembered from 4 scales on, for 1000 frames; the third largest is the run's habit, the first
two may be news."""
SPIKES_KEPT = 16
DRIFT_SCALES = 2.0
"""The cumulative sum takes z - 2 per frame: noise and the centre's lag sink it, a level 3 scales up raises it."""
SUM_CAP = 10.0
SUM_LIMIT = 10.0
"""It flags at 10, and no frame adds more than 10 - 2: it takes at least two high frames, however tall one is."""


@dataclass(slots=True)
class Trigger:
    """The tests' memory.

    Attributes:
        sums: the cumulative sum per voice [V].
        since: the frame at which each sum left 0 [V].
        spikes: per voice, frame and height of remembered isolated spikes, oldest first.
    """

    sums: list[float]
    since: list[int]
    spikes: list[list[tuple[int, float]]]


def init(voices: int) -> Trigger:
    """No memory yet."""
    return Trigger([0.0] * voices, [0] * voices, [[] for _ in range(voices)])


def extend(trigger: Trigger, voices: int) -> Trigger:
    """The same with so many voices in all."""
    fresh = init(voices - len(trigger.sums))
    return Trigger(trigger.sums + fresh.sums, trigger.since + fresh.since, trigger.spikes + fresh.spikes)


def until_hit(trigger: Trigger, frame: int, z: Floats64) -> tuple[int, dict[int, int]]:
    """Run the tests over frames [n, V] up to the first that flags.

    Returns:
        How many frames did not flag, and what `test` said of the one that did; empty if none did.
    """
    high = z >= DRIFT_SCALES
    if not np.count_nonzero(high) and not any(trigger.sums):
        return len(z), {}
    loud = np.flatnonzero(high.any(axis=1)).tolist()
    k = 0 if any(trigger.sums) else loud[0] if loud else len(z)
    while k < len(z):
        hits = test(trigger, frame + k, z[k].tolist())
        if hits:
            return k, hits
        k += 1
        if not any(trigger.sums):  # until the next frame that is loud, nothing can happen
            k = next((at for at in loud if at >= k), len(z))
    return len(z), {}


def test(trigger: Trigger, frame: int, z: list[float]) -> dict[int, int]:
    """One frame: voice to the frame at which its excursion began, for the voices that flag.

    A voice that is not judged or absent (z is NaN) keeps its sum.
    """
    hits: dict[int, int] = {}
    for i, height in enumerate(z):
        if height != height:
            continue
        total = trigger.sums[i]
        if total <= 0:
            if height < DRIFT_SCALES:
                continue
            trigger.since[i] = frame
        total = max(0.0, total + min(height, SUM_CAP) - DRIFT_SCALES)
        trigger.sums[i] = total
        if total > SUM_LIMIT:
            hits[i] = trigger.since[i]
        elif height > TALL_SCALES and height > TALL_RATIO * habit(trigger, frame, i):
            hits[i] = frame
        if height > SPIKE_SCALES:
            remember(trigger, frame, i, height)
    return hits


def habit(trigger: Trigger, frame: int, voice: int) -> float:
    """The third largest isolated spike of the last 1000 frames, in scales; 0 if there are not three."""
    heights = sorted((height for at, height in trigger.spikes[voice] if at >= frame - SPIKE_FRAMES), reverse=True)
    return heights[SPIKE_RANK - 1] if len(heights) >= SPIKE_RANK else 0.0


def remember(trigger: Trigger, frame: int, voice: int, height: float) -> None:
    """Add a spike; the smallest or the outdated give way. Frames next to each other are one spike."""
    kept = [(at, tall) for at, tall in trigger.spikes[voice] if at >= frame - SPIKE_FRAMES]
    if kept and frame - kept[-1][0] <= 2:
        last = kept.pop()
        height = max(height, last[1])
    kept.append((frame, height))
    if len(kept) > SPIKES_KEPT:
        kept.remove(min(kept, key=lambda spike: spike[1]))
    trigger.spikes[voice] = kept


def clear(trigger: Trigger) -> None:
    """An episode opened or ended: the sums begin anew, the spikes stay."""
    trigger.sums = [0.0] * len(trigger.sums)
