"""One episode: from the frame that flagged it to recovery, with the baselines frozen at its onset.

An episode is born as information (a loss spike). It becomes a micro-divergence when a task's metric drops with it, or
at once where no metric exists that could clear it. It becomes a full divergence when the evidence says that the run
will not come back by itself, and only recovery takes that back. Recovery is judged against the frozen baseline: the
losses that were hit and the skill (batch AUC above chance) both have to return.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from lossguard.detect.voices import AUC, CHANCE, LOSS
from lossguard.wire.frame import Floats64

RECOVERED_SCALES = 3.0
RECOVERED_SHARE = 0.1
"""A loss is back when the median of 3 frames is within 3 scales of its frozen centre, or has come down by 90 % of the
peak."""
LAST_SCALES = 4.0
LAST_SHARE = 0.2
"""... and the last frame itself is within 4 scales or 20 % of the peak."""
DROP_SCALES = 3.0
"""A drop of the mean AUC by 3 standard errors is a drop: 1 in 700 by chance, in an episode that has other cause."""
DROP_SKILL = 0.02
"""... and of at least 0.02, the smallest loss of AUC that the labels of recorded runs call an event."""
DROP_HISTORY = 40
"""... and against at least 40 frames: before that there is hardly a skill that could drop."""
DROP_FRAMES = (5, 15)
"""The drop is looked for in the first 5 and in 15 frames: from onset to the bottom takes about 5 (B3)."""
SKILL_BACK = 0.75
"""Skill is back at three quarters of what it was."""
ERRORS_BACK = 2.5
"""... or when what is missing is below 2.5 standard errors of the mean of the last 15 frames."""
BLOW_FRAMES = 10
"""From onset to the peak takes 5 frames, 6 for three quarters of the recorded divergences (B3)."""
THROWN_RATIO = 3.0
"""A binary task that once paid 3 times what the constant predictor pays was thrown: recorded heavy tails in another
task's labels or features cost it up to 2.5 times, divergences 5 to 1000 times."""
CERTAIN_FRAMES = 15
CERTAIN_AGE = 30
CERTAIN_RATIO = 1.5
"""A binary task whose median loss over 15 frames is above 1.5 times what the constant predictor pays is confidently
wrong; recorded micro-divergences reached 1.2, full ones 1.9 and more (two thirds: 10 and more). It is said after 30
frames: what recovers has begun to by then."""
DATA_RATIO = 100.0
"""A loss of 100 times its centre in the first frame, while the tasks with an AUC are where they were: the weights need
a few steps for that (to ten times: a median of 2), absurd labels do not."""
CERTAIN_SKILL = 0.3
"""... while at most 30 % of the skill (or an AUC of 0.54) is left: a metric that stands clears a loss."""
LOST_FRAMES = 60
LOST_FRAMES_DATA = 90
LOST_SKILL = 0.15
"""After 60 frames with less than 15 % of the skill left, over 30 frames, it does not come back by itself; after 90
where the data jumped first, because then half of it came back within 90."""
LINGERING_FRAMES = 150
LINGERING_SKILL = 0.4
"""After 150 frames with less than 40 % of it left, neither; the slowest recorded recovery was half back after 90."""
STUCK_FRAMES = 100
"""A loss that stays up for 100 frames while the metrics stand is a new level of the loss, not of the model."""
WORSE_FRAMES = 60
WORSE_SHARE = 0.25
"""Without metrics: after 60 frames with a quarter of all progress lost and no sign of coming down, it is full."""
SETTLED_FRAMES = 400
"""Without metrics and with less lost: after 400 frames the new level is the baseline, and the rest is the residual."""
KEPT_FRAMES = 30


@dataclass(slots=True)
class Judge:
    """A task's AUC as of the onset.

    Attributes:
        centre: its mean before the onset.
        scale: the standard deviation of one frame's value.
        frames: how many frames that rests on.
        seen: values since the onset.
        first: their running sum over the first 5 frames, then unused.
        recent: the last 30, newest last.
    """

    centre: float
    scale: float
    frames: int
    seen: int = 0
    first: float = 0.0
    recent: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Episode:
    """An open episode.

    Attributes:
        number: of its incident.
        frame: the frame of its onset.
        age: frames since it was flagged.
        voices: names of the losses, in the order of the arrays.
        centre: frozen centres [V].
        scale: frozen scales [V].
        high: highest value of each [V].
        second: second highest value of each within the first 10 frames [V].
        hit: the voices that flagged [V].
        recent: the last 30 values of each voice, newest last [V, 30].
        judges: by scalar name.
        progress: initial loss minus best loss of the total, before the onset.
        ordinary: up to where the total had wandered before; see `slide.ordinary`.
        data: whether the data jumped first: see `data_first`.
        wrong: the task that was confidently wrong.
        ratio: by how much.
    """

    number: int
    frame: int
    age: int
    voices: tuple[str, ...]
    centre: Floats64
    scale: Floats64
    high: Floats64
    second: Floats64
    hit: Floats64
    recent: Floats64
    judges: dict[str, Judge]
    progress: float
    ordinary: float
    data: bool = False
    wrong: str | None = None
    ratio: float = 1.0


def hold(judge: Judge) -> int:
    """How long the AUC has to be looked at before it clears an episode: 5 frames, or 15 if those were low."""
    if judge.seen < DROP_FRAMES[0]:
        return DROP_FRAMES[0]
    error = judge.scale * math.sqrt(1 / DROP_FRAMES[0] + 1 / judge.frames)
    return DROP_FRAMES[1] if judge.centre - judge.first / DROP_FRAMES[0] > error else DROP_FRAMES[0]


def blown(episode: Episode, entropies: dict[str, float]) -> float:
    """How far the total loss went, as a multiple of its frozen centre: the geometric mean of its two worst frames, the
    second one among the first 10. 0 unless a task with an AUC was thrown too: a heavy-tailed regression alone was not
    enough to ruin a recorded model.
    """
    if "loss" not in episode.voices:
        return 0.0
    thrown = False
    for i, name in enumerate(episode.voices):
        task = name.partition("/")[2]
        if AUC + task in episode.judges:
            level = np.fmax(episode.centre[i], entropies.get(task, math.nan))
            thrown |= bool(episode.high[i] > THROWN_RATIO * level)
    i = episode.voices.index("loss")
    centre, high, second = float(episode.centre[i]), float(episode.high[i]), float(episode.second[i])
    return math.sqrt(high * second) / centre if thrown and centre > 0 and second > 0 else 0.0


def widen(episode: Episode, names: tuple[str, ...]) -> None:
    """Losses that appear during the episode take part without a baseline: they can neither be hit nor come back."""
    more = len(names) - len(episode.voices)
    episode.voices = names
    episode.centre = np.concatenate([episode.centre, np.full(more, np.nan)])
    episode.scale = np.concatenate([episode.scale, np.full(more, np.nan)])
    episode.high = np.concatenate([episode.high, np.full(more, -np.inf)])
    episode.second = np.concatenate([episode.second, np.full(more, -np.inf)])
    episode.hit = np.concatenate([episode.hit, np.zeros(more)])
    episode.recent = np.concatenate([episode.recent, np.full((more, KEPT_FRAMES), np.nan)])


def data_first(episode: Episode, row: Floats64) -> bool:
    """Whether the episode's first frame looks like absurd data rather than like absurd weights."""
    with np.errstate(all="ignore"):
        ratio = np.where(episode.centre > 0, row / episode.centre, 0.0)
        height = (row - episode.centre) / episode.scale
    judged = [i for i, name in enumerate(episode.voices) if AUC + name.partition("/")[2] in episode.judges]
    tall = bool((ratio > DATA_RATIO).any())
    return tall and bool(judged) and not any(height[i] > LAST_SCALES for i in judged)


def see(episode: Episode, row: Floats64, judged: dict[str, float]) -> None:
    """Take one frame: the losses [V] and the AUCs that were measured."""
    episode.age += 1
    finite = np.isfinite(row)
    values = np.where(finite, row, -np.inf)
    if episode.age < BLOW_FRAMES:
        episode.second = np.maximum(episode.second, np.minimum(episode.high, values))
    episode.recent[finite, :-1] = episode.recent[finite, 1:]
    episode.recent[finite, -1] = row[finite]
    episode.high = np.maximum(episode.high, values)
    for name, value in judged.items():
        judge = episode.judges.get(name)
        if judge is not None and math.isfinite(value):
            judge.seen += 1
            judge.recent = [*judge.recent[-(KEPT_FRAMES - 1) :], value]
            if judge.seen <= DROP_FRAMES[0]:
                judge.first += value


def residual(episode: Episode) -> float:
    """How far the loss that was hit most is from its frozen baseline now, relative to that baseline: the median of
    the last 15 frames; 0 where no loss was hit.
    """
    hit = np.flatnonzero(episode.hit)
    if not len(hit):
        return 0.0
    height = (episode.high[hit] - episode.centre[hit]) / episode.scale[hit]
    i = int(hit[int(np.argmax(np.where(np.isnan(height), -np.inf, height)))])
    window = episode.recent[i, -15:]
    window = window[~np.isnan(window)]
    centre = float(episode.centre[i])
    if not len(window) or not math.isfinite(centre):
        return 0.0
    return (float(np.median(window)) - centre) / max(abs(centre), 1e-300)


def losses_back(episode: Episode) -> bool:
    """Whether every loss that was hit is at its frozen baseline again."""
    for i in np.flatnonzero(episode.hit):
        centre, scale = float(episode.centre[i]), float(episode.scale[i])
        peak = float(episode.high[i]) - centre
        if not math.isfinite(centre):
            continue
        last = episode.recent[i, -3:]
        if np.isnan(last[1]):
            return False
        middle = float(np.nanmedian(last))
        if middle > centre + max(RECOVERED_SCALES * scale, RECOVERED_SHARE * peak):
            return False
        if float(last[-1]) > centre + max(LAST_SCALES * scale, LAST_SHARE * peak):
            return False
    return True


def dropped(judge: Judge) -> bool:
    """Whether the AUC fell with the episode."""
    if judge.frames < DROP_HISTORY:
        return False
    if judge.seen >= DROP_FRAMES[0] and _drop(judge, judge.first / DROP_FRAMES[0], DROP_FRAMES[0]):
        return True
    window = judge.recent[-DROP_FRAMES[1] :]
    return len(window) >= 10 and _drop(judge, sum(window) / len(window), len(window))


def _drop(judge: Judge, mean: float, frames: int) -> bool:
    error = judge.scale * math.sqrt(1 / frames + 1 / judge.frames)
    return judge.centre - mean > max(DROP_SCALES * error, DROP_SKILL)


def skill(judge: Judge, frames: int) -> float:
    """The share of the skill before the onset that the last frames show; above 1 or below 0 where noise does that.

    A judge that knew nothing before the onset (an AUC below 0.54) is measured against 0.54: what 30 frames can tell
    from chance.
    """
    window = judge.recent[-frames:]
    before = max(judge.centre - CHANCE, 0.04)
    return (sum(window) / len(window) - CHANCE) / before if window else 1.0


def skill_back(judge: Judge) -> bool:
    """Whether the AUC is where it was, as far as its noise can tell."""
    window = judge.recent[-15:]
    if not window:
        return True
    error = judge.scale * math.sqrt(1 / len(window) + 1 / judge.frames)
    missing = judge.centre - sum(window) / len(window)
    return missing <= max((1 - SKILL_BACK) * (judge.centre - CHANCE), ERRORS_BACK * error)


def confidently_wrong(episode: Episode, binary: frozenset[str], entropies: dict[str, float]) -> None:
    """Note the first binary task whose loss has been far above the constant predictor's for 15 frames."""
    if episode.age < CERTAIN_FRAMES or episode.wrong is not None or episode.data:
        return
    for i, name in enumerate(episode.voices):
        task = name.partition("/")[2]
        if task not in binary or (AUC + task not in episode.judges):
            continue
        known = entropies.get(task, math.nan)
        level = max(float(episode.centre[i]), known) if known == known else float(episode.centre[i])
        middle = float(np.nanmedian(episode.recent[i, -CERTAIN_FRAMES:]))
        if middle > CERTAIN_RATIO * level:
            episode.wrong, episode.ratio = task, middle / level
            return


def metrics_lost(episode: Episode) -> str | None:
    """The AUC that does not come back by itself, if one does not."""
    for name, judge in episode.judges.items():
        known = judge.centre - CHANCE > 0.04 and len(judge.recent) >= KEPT_FRAMES
        if (
            known
            and judge.seen >= (LOST_FRAMES_DATA if episode.data else LOST_FRAMES)
            and skill(judge, KEPT_FRAMES) < LOST_SKILL
        ):
            return name
        if known and judge.seen >= LINGERING_FRAMES and skill(judge, KEPT_FRAMES) < LINGERING_SKILL:
            return name
    return None


def progress_lost(episode: Episode) -> float:
    """Without metrics: the share of the total's progress that is lost and not coming back now; 0 if it comes back."""
    worst = 0.0
    for i in np.flatnonzero(episode.hit):
        window = episode.recent[i]
        if np.isnan(window).any():
            continue
        late, early = float(np.median(window[15:])), float(np.median(window[:15]))
        above = late - float(episode.centre[i])
        falling = early - late > 0.1 * above
        strayed = episode.voices[i] == LOSS and late <= episode.ordinary
        if not falling and not strayed and above > RECOVERED_SCALES * float(episode.scale[i]):
            worst = max(worst, above / episode.progress if episode.progress > 0 else 0.0)
    return worst
