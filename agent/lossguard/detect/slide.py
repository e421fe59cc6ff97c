"""The slow watch over a loss that has no metric beside it: is progress being lost?

A jump shows in a frame, a slide does not: each frame is ordinary beside the last ones. So the median of 20 frames is
compared with the best such median so far, in units of the progress made since the first frame; that needs no scale and
no zero. Full when a quarter of the progress has been gone for 60 frames.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from lossguard.wire.frame import Floats64

LEVEL_FRAMES = 20
"""Frames in a level: enough for a median that noise moves by a quarter of a deviation."""
FLAG_FRAMES = 20
"""Frames for which the level must have been lost before it is flagged: as long as the level itself, so that the two
share no frame."""
FULL_FRAMES = 60
LOST_SHARE = 0.25
BACK_SHARE = 0.10
NOISE_SCALES = 3.0
"""A lost level is also 3 scales above the best: a run that made no progress has none to lose."""


@dataclass(slots=True)
class Slide:
    """The watch's memory.

    Attributes:
        recent: the last 20 finite values.
        first: the median of the first 3; NaN before.
        best: the lowest level so far.
        since: the frame from which on the level has been lost; None while it is not.
        number: of the open incident.
    """

    recent: list[float] = field(default_factory=list)
    first: float = math.nan
    best: float = math.inf
    since: int | None = None
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
    back: bool = False
    since: int = 0
    lost: float = 0.0


def init() -> Slide:
    """No memory yet."""
    return Slide()


def extend(slide: Slide, values: Floats64) -> None:
    """Take values of the total loss; what is not finite is passed over."""
    kept = [v for v in values.tolist() if math.isfinite(v)]
    slide.recent = [*slide.recent, *kept][-LEVEL_FRAMES:]


def progress(slide: Slide) -> float:
    """How far the loss has come down since the first frames; 0 before that is known."""
    made = slide.first - slide.best
    return made if math.isfinite(made) else 0.0


def judge(slide: Slide, frame: int, scale: float) -> Verdict:
    """Compare the level now with the best one.

    Args:
        slide: the memory, changed in place.
        frame: frames so far.
        scale: the loss's robust scale; NaN while it is unknown.
    """
    if math.isnan(slide.first) and len(slide.recent) >= 3:
        slide.first = float(np.median(slide.recent[:3]))
    if len(slide.recent) < LEVEL_FRAMES:
        return Verdict()
    level = float(np.median(slide.recent))
    if level < slide.best:
        slide.best = level
    lost = (level - slide.best) / max(progress(slide), 1e-300)
    noise = NOISE_SCALES * scale if scale == scale else math.inf
    if lost < BACK_SHARE:
        slide.since = None
        return Verdict(back=True)
    if slide.since is None:
        if lost < LOST_SHARE or level - slide.best <= noise:
            return Verdict()
        slide.since = frame
    age = frame - slide.since
    return Verdict(age >= FLAG_FRAMES, age >= FULL_FRAMES and lost >= LOST_SHARE, False, slide.since, lost)
