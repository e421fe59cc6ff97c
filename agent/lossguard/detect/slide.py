"""The slow watch over a loss that has no metric beside it: is progress being lost?

A jump shows in a frame, a slide does not: each frame is ordinary beside the last ones. So a level, the median of 5 and
the median of 20 frames, is compared with the best such level so far, in units of the progress made since the first
frames; that needs no scale of the loss and no zero. Full when a quarter of the progress has been gone for 60 frames,
and further than such a loss wanders about its level without any cause (docs/decisions/0110-losses-that-wander.md).
"""

import math
from dataclasses import dataclass, field

from lossguard.wire.frame import Floats64

LEVEL_FRAMES = (5, 20)
"""Frames in a level: 5 follow a smooth curve at once, 20 see through noise (their median moves by 0.28 deviations)."""
NOISE_SCALES = (5.0, 2.0)
"""A lost level is also this many scales above the best one, 7 to 9 of its own deviations: a run that made no progress
has none to lose. The scale is that of the differences from frame to frame around the best level."""
PROGRESS_SCALES = 1.0
"""Progress is progress when it is more than the noise."""
GROUPS_KEPT = 48
GROUPS_LEAST = 6
WANDER_SCALES = 10.0
WANDER_RISES = 4.0
"""A loss may wander about a level: each frame is ordinary beside the last ones, and the best level of thousands is low.
So a lost level is also 10 times as far above the best one as the medians of 20 frames strayed from their own trend
before it was lost, and 4 times as far as they usually were above the best one."""
ORDINARY_GROUPS = 24
ORDINARY_SCALES = 5.0
"""A rise to less than 5 such deviations above the trend is a spike and no micro-divergence, from 480 frames on."""
EARLY_SHARE = 0.2
"""In the first 140 frames none of this is known: there progress counts when it is a fifth of the untrained model's
loss."""
LAGS = (1, 2)
"""The noise is that of differences over one frame, and over two as well once the wandering is known: neighbours that
resemble each other differ by less than they stray, but early the trend is steep."""
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
        pending: values of the group of 20 that is being filled.
        groups: the medians of the last 48 groups.
        rises: how far each of them lay above the best one before it, 0 if it was the best.
        begins_anew: the groups so far are to be forgotten at the next judgement.
        wander: how far above the best level is ordinary, as of when one of each kind was lost; NaN where unknown.
    """

    recent: list[float] = field(default_factory=list)
    head: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=lambda: [math.inf, math.inf])
    noise: list[float] = field(default_factory=lambda: [math.nan, math.nan])
    since: list[int] = field(default_factory=lambda: [-1, -1])
    number: int | None = None
    pending: list[float] = field(default_factory=list)
    groups: list[float] = field(default_factory=list)
    rises: list[float] = field(default_factory=list)
    begins_anew: bool = False
    wander: list[float] = field(default_factory=lambda: [math.nan, math.nan])


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
    pending, size = [*slide.pending, *kept], LEVEL_FRAMES[-1]
    if len(pending) >= size:
        whole = len(pending) // size * size
        medians = [_median(pending[at : at + size]) for at in range(0, whole, size)]
        slide.groups, pending = [*slide.groups, *medians][-GROUPS_KEPT:], pending[whole:]
        slide.rises = [*slide.rises, *(max(0.0, level - slide.best[1]) for level in medians)][-GROUPS_KEPT:]
    slide.pending = pending


def wander(slide: Slide) -> float:
    """How far above the best level the loss may wander without having lost it; NaN while too little is known."""
    if not _is_known(slide):
        return math.nan
    _, strayed = _trend(slide)
    return max(WANDER_SCALES * strayed, WANDER_RISES * _median(slide.rises[:-1]))


def ordinary(slide: Slide) -> float:
    """Up to where a loss goes that wanders as this one did; minus infinity while too little is known."""
    if len(slide.groups) <= ORDINARY_GROUPS:
        return -math.inf
    level, strayed = _trend(slide)
    return level + ORDINARY_SCALES * strayed


def _is_known(slide: Slide) -> bool:
    """Whether enough has been seen to know how the level wanders."""
    return len(slide.groups) > GROUPS_LEAST


def _trend(slide: Slide) -> tuple[float, float]:
    """Where the straight line through the medians of 20 frames has come to, and what they stray by from it.

    Without the last one: the level may have been lost in it already.
    """
    past = slide.groups[:-1]
    half = len(past) // 2
    slope = _median([late - early for early, late in zip(past[:half], past[-half:], strict=True)]) / (len(past) - half)
    level = [value - slope * place for place, value in enumerate(past)]
    middle = _median(level)
    return middle + slope * len(past), 1.4826 * _median([abs(value - middle) for value in level])


def progress(slide: Slide) -> float:
    """How far the loss has come down since the first frames; 0 while that may be noise."""
    if len(slide.head) < FIRST_FRAMES or not math.isfinite(slide.best[0]):
        return 0.0
    untrained = _median(slide.head)
    made = untrained - slide.best[0]
    return made if _is_known(slide) or made > EARLY_SHARE * abs(untrained) else 0.0


def _scale(values: list[float], lags: tuple[int, ...]) -> float:
    """The noise of a few values, from the medians of their differences: a trend hardly widens it."""
    apart = [[abs(b - a) for a, b in zip(values, values[lag:], strict=False)] for lag in lags]
    return 1.4826 / math.sqrt(2) * max(map(_median, apart))


def _median(values: list[float]) -> float:
    """Of at most twenty floats: NumPy's costs twenty times as much."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def rebase(slide: Slide) -> None:
    """The levels so far are no measure any more; what the run has come down from still is."""
    fresh = init()
    slide.best, slide.noise, slide.since = fresh.best, fresh.noise, fresh.since
    slide.begins_anew = True


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
        slide = Slide(
            slide.recent, slide.head, slide.best[:], slide.noise[:], slide.since[:], slide.number,
            slide.pending, slide.groups, slide.rises, slide.begins_anew, slide.wander[:],
        )  # fmt: skip
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
    if slide.begins_anew:  # not when the rate rose: by then more values may have been taken, however blocks are cut
        slide.groups, slide.rises, slide.begins_anew = [], [], False
    flag = full = False
    back = True
    since, worst, made = frame, 0.0, math.nan
    for k, frames in enumerate(LEVEL_FRAMES):
        if len(slide.recent) < frames:
            continue
        level = _median(slide.recent[-frames:])
        if level < slide.best[k]:
            slide.best[k] = level
            slide.noise[k] = _scale(slide.recent, LAGS if _is_known(slide) else LAGS[:1])
        if not k:  # what the second kind of level finds makes no difference to it
            made = progress(slide)
        lost = (level - slide.best[k]) / made if made > 0 else 0.0
        rise, noise = level - slide.best[k], slide.noise[k]
        if lost < BACK_SHARE:
            slide.since[k] = -1
            continue
        gone = lost >= LOST_SHARE and rise > NOISE_SCALES[k] * noise and made > PROGRESS_SCALES * noise
        if slide.since[k] < 0:
            slide.wander[k] = wander(slide) if gone else math.nan
            if not gone or rise <= slide.wander[k]:
                continue
            slide.since[k] = frame
        back = False
        age = frame - slide.since[k]
        flag |= age >= FLAG_FRAMES[k]
        full |= age >= FULL_FRAMES and gone and not rise <= slide.wander[k]
        since, worst = min(since, slide.since[k]), max(worst, lost)
    return Verdict(flag, full, back, since, worst)
