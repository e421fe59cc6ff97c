"""The slow watch over a loss that has no metric beside it: is progress being lost?

A jump shows in a frame, a slide does not: each frame is ordinary beside the last ones. So a level, the median of 5 and
the median of 20 frames, is compared with the best such level so far, in units of the progress made since the first
frames; that needs no scale of the loss and no zero. Full when a quarter of the progress has been gone for 60 frames.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise

from lossguard.wire.frame import Floats64

LEVEL_FRAMES = (5, 20)
"""Frames in a level: 5 follow a smooth curve at once, 20 see through noise (their median moves by 0.28 deviations)."""
NOISE_SCALES = (5.0, 2.0)
"""A lost level is also this many scales above the best one, 7 to 9 of its own deviations: a run that made no progress
has none to lose. The scale is that of the differences from frame to frame around the best level."""
PROGRESS_SCALES = 1.0
"""Progress is progress when it is more than the noise."""
FLAG_FRAMES = (5, 20)
"""Frames for which a level must have been lost before it is flagged: as long as the level, so that the two share no
frame."""
FULL_FRAMES = 60
LOST_SHARE = 0.25
BACK_SHARE = 0.10
FIRST_FRAMES = 3


@dataclass(slots=True)
class Slide:
    """The watch's memory.

    Attributes:
        recent: the last 20 finite values.
        head: the first 3 finite values.
        best: the lowest level of each kind so far.
        noise: the scale at that level.
        since: the frame from which on a level of each kind has been lost; -1 while it is not.
        number: of the open incident.
    """

    recent: list[float] = field(default_factory=list)
    head: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=lambda: [math.inf, math.inf])
    noise: list[float] = field(default_factory=lambda: [math.nan, math.nan])
    since: list[int] = field(default_factory=lambda: [-1, -1])
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the watch says.

    Attributes:
        flag: the level has been lost for long enough to be flagged.
        full: ... and for long enough not to be waited for.
        back: the level is back.
        since: the frame at which it was lost.
        lost: the share of the progress that is lost.
    """

    flag: bool = False
    full: bool = False
    back: bool = True
    since: int = 0
    lost: float = 0.0


def init() -> Slide:
    """No memory yet."""
    return Slide()


def extend(slide: Slide, values: Floats64) -> None:
    """Take values of the total loss; what is not finite is passed over."""
    take(slide, values.tolist())


def take(slide: Slide, values: list[float]) -> None:
    """The same from a list."""
    kept = [v for v in values if math.isfinite(v)]
    if len(slide.head) < FIRST_FRAMES:
        slide.head = [*slide.head, *kept][:FIRST_FRAMES]
    slide.recent = [*slide.recent, *kept][-LEVEL_FRAMES[-1] :]


def progress(slide: Slide) -> float:
    """How far the loss has come down since the first frames; 0 before that is known."""
    if len(slide.head) < FIRST_FRAMES or not math.isfinite(slide.best[0]):
        return 0.0
    return _median(slide.head) - slide.best[0]


def _scale(values: list[float]) -> float:
    """The noise of a few values, from the median of their differences: a trend hardly widens it."""
    return 1.4826 / math.sqrt(2) * _median([abs(b - a) for a, b in pairwise(values)])


def _median(values: list[float]) -> float:
    """Of at most twenty floats: NumPy's costs twenty times as much."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def rebase(slide: Slide) -> None:
    """The best levels so far are no measure any more; what the run has come down from still is."""
    fresh = init()
    slide.best, slide.noise, slide.since = fresh.best, fresh.noise, fresh.since


def ahead(
    slide: Slide, values: list[float], frame: int, judgements: list[int]
) -> tuple[list[tuple[int, Slide]], int | None]:
    """What the watch will be over the next values, and where it first has something to tell.

    Args:
        slide: the memory, unchanged; nothing may be open in it.
        values: of the total loss, those to come.
        frame: the number of the first of them.
        judgements: before which of them the levels are compared.

    Returns:
        The places of the judgements that flag nothing, each with the memory after it; and the place of the one that
        flags, None if none does.
    """
    found: list[tuple[int, Slide]] = []
    at = 0
    for place in judgements:
        slide = Slide(slide.recent, slide.head, slide.best[:], slide.noise[:], slide.since[:], slide.number)
        take(slide, values[at:place])
        if judge(slide, frame + place).flag:
            return found, place
        found.append((place, slide))
        at = place
    return found, None


def judge(slide: Slide, frame: int) -> Verdict:
    """Compare the levels now with the best ones.

    Args:
        slide: the memory, changed in place.
        frame: frames so far.
    """
    flag = full = False
    back = True
    since, worst = frame, 0.0
    for k, frames in enumerate(LEVEL_FRAMES):
        if len(slide.recent) < frames:
            continue
        level = _median(slide.recent[-frames:])
        if level < slide.best[k]:
            slide.best[k] = level
            slide.noise[k] = _scale(slide.recent)
        made = progress(slide)
        lost = (level - slide.best[k]) / made if made > 0 else 0.0
        clear = level - slide.best[k] > NOISE_SCALES[k] * slide.noise[k] and made > PROGRESS_SCALES * slide.noise[k]
        if lost < BACK_SHARE:
            slide.since[k] = -1
            continue
        if slide.since[k] < 0:
            if lost < LOST_SHARE or not clear:
                continue
            slide.since[k] = frame
        back = False
        age = frame - slide.since[k]
        flag |= age >= FLAG_FRAMES[k]
        full |= age >= FULL_FRAMES and lost >= LOST_SHARE and clear
        since, worst = min(since, slide.since[k]), max(worst, lost)
    return Verdict(flag, full, back, since, worst)
