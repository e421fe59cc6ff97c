"""What takes many frames to see: a model that never learns after a blow-up, a silent collapse, a slow slide; NaN; and
the diagnoses, which are told once.

These watches stand beside the episodes of `course` and use its words.
"""

import math

import numpy as np

from lossguard.detect import (
    baseline,
    course,
    drift,
    episode,
    habits,
    layers,
    nonfinite,
    period,
    ranking,
    regime,
    slide,
    spread,
    trigger,
    voices,
)
from lossguard.detect.record import Moved
from lossguard.detect.state import MonitorState
from lossguard.wire.incident import IncidentKind

FLAT_RATE_FRAMES = 1000
SETTLED_SHARE = 0.01
"""A learning rate that has not moved for 1000 frames while the loss's last quarter gained less than 1 % of all progress
on the quarter before is worth a remark: decay cuts the spread between trials by three (B6)."""
STALL_SECONDS = 1800.0
"""What SageMaker Debugger's StalledTrainingRule waits. The service sees a stall as it lasts; a replay, afterwards."""
HABITS: dict[str, IncidentKind] = {
    "no_update": "no_update",
    "overclipped": "overclipped",
    "dead_units": "dead_units",
    "unconverged_layer": "unconverged_layer",
}
BLOWN_FRAMES = 100
"""A total loss that reached 120 times its level (geometric mean of the two worst frames: one frame may be the batch's
doing, two are the weights') before the model knew anything: if it knows nothing after 100 more frames either, it will
not learn, because the accumulators have absorbed those gradients. Recorded runs that learned stayed below 80."""
RUINED_RATIO = 500.0
RUINED_FRAMES = 30
"""From 500 times on, 30 frames are enough: the first 20 whose mean AUC means anything, after the peak has passed."""
LEARNED_AUC = 0.55
UNLEARNED_AUC = 0.54
"""The mean AUC of 20 frames: above 0.55 a model learns, below 0.54 it does not yet."""
TELLING_ERRORS = 3.0
"""A task whose batch AUC is so noisy that 0.55 is within 3 standard errors of chance says nothing about learning: with
a base rate of 2 % and batches of 512 the best of the noise passes for skill."""
COLLAPSE_FRAMES = 15
COLLAPSE_SKILL = 0.3
COLLAPSE_ERRORS = 6.0
"""An AUC that loses 70 % of its skill (and 6 standard errors) over 15 frames is an episode, whatever the losses do:
some models die in silence."""
COLLAPSE_HISTORY = 40
"""Frames of an AUC before it is asked: 25 of them are then from before the 15 that are judged."""


def probations(state: MonitorState, step: int) -> None:
    """Blow-ups before anything was learned: did the model begin to learn? Each task is asked, not the best of them: one
    that is easy from a single feature learns in a ruined model too (decision 0109)."""
    for kept in list(state.probations):
        age = state.frame - kept.frame
        if age < 25 or not any(state.recent.values()):
            continue
        means = _telling(state.recent)
        unlearned = [name for name, mean in means.items() if mean < UNLEARNED_AUC]
        limit = RUINED_FRAMES if kept.ratio >= RUINED_RATIO and len(unlearned) == len(means) else BLOWN_FRAMES
        if 2 * sum(mean >= LEARNED_AUC for mean in means.values()) >= len(means):
            state.probations.remove(kept)
        elif age >= limit and 2 * len(unlearned) > len(means):
            state.probations.remove(kept)
            state.ruined.append(kept.number)
            task = max(unlearned, key=lambda name: len(state.recent[name]))
            course.full(step, state.records[kept.number], "unlearned", voices.task_of(task) or "loss", kept.ratio)
    aucs = [values for name, values in state.recent.items() if name.startswith(voices.AUC)]
    for number in list(state.ruined):
        if all(len(v) >= 30 and sum(v) >= course.RETURNED_AUC * len(v) for v in aucs):
            state.ruined.remove(number)
            state.records[number].kind, state.records[number].end_step = "micro_divergence", step


def _telling(recent: dict[str, list[float]]) -> dict[str, float]:
    """The mean of each judge's last 20 values, of those that 20 frames can tell from chance; of all if none can."""
    lately = {name: np.array(values[-20:]) for name, values in recent.items() if values}
    telling = {
        name: float(values.mean())
        for name, values in lately.items()
        if TELLING_ERRORS * float(values.std()) <= (LEARNED_AUC - voices.CHANCE) * math.sqrt(len(values))
    }
    return telling or {name: float(values.mean()) for name, values in lately.items()}


def fallen(state: MonitorState) -> str | None:
    """The AUC that collapsed in silence, if one did and nothing is open."""
    if state.open is not None:
        return None
    for name, values in state.judges.items():
        recent = state.recent[name][-COLLAPSE_FRAMES:]
        if not may_have_fallen(values, recent):
            continue
        # The frames of the fall are among the values, because nothing was open: they are not what was usual.
        judge = course.judge_of(values[:-COLLAPSE_FRAMES])
        judge.recent = recent
        error = judge.scale * math.sqrt(1 / len(recent) + 1 / judge.frames)
        fell = judge.centre - sum(recent) / len(recent) > COLLAPSE_ERRORS * error
        if fell and judge.centre - voices.CHANCE > 0.04 and episode.skill(judge, COLLAPSE_FRAMES) < COLLAPSE_SKILL:
            return name
    return None


def may_have_fallen(values: list[float], recent: list[float]) -> bool:
    """The cheap half of the test, for every ordinary frame: whether the last 15 values have lost half of the skill."""
    if len(values) < COLLAPSE_HISTORY or len(recent) < COLLAPSE_FRAMES:
        return False
    lately, usual = sum(recent) / len(recent), sum(values) / len(values)
    return not lately - voices.CHANCE > 0.5 * (usual - voices.CHANCE)


def collapse(state: MonitorState, step: int, name: str, binary: frozenset[str]) -> None:
    """An AUC collapsed in silence: an episode, whatever the losses do."""
    state.judges[name] = state.judges[name][:-COLLAPSE_FRAMES]
    nothing = np.full(len(state.names), np.nan)
    record = course.begin(state, step, nothing, nothing, {}, {}, binary)
    if record is not None:
        task = voices.task_of(name) or name
        record.kind, record.tasks, record.subject = "micro_divergence", (task,), task


def is_sound(state: MonitorState) -> bool:
    """Whether nothing is known to be wrong with the run."""
    return state.open is None and not nonfinite.watching(state.nonfinite)


def constant(state: MonitorState, step: int, task: str, verdict: spread.Verdict) -> None:
    """A task's predictions became all the same, or spread again; silent where something else was told of it."""
    watch = state.spreads[task]
    if verdict == "back":
        if watch.number is not None:
            record, watch.number = state.records[watch.number], None
            record.end_step = step
            if record.kind == "full_divergence":
                record.kind = "micro_divergence"
        return
    if watch.number is None:
        told = any(one.kind == "full_divergence" and one.end_step is None for one in state.records)
        if told or not is_sound(state):
            return
        onset = state.frame + 1 - spread.GROUP_FRAMES * watch.low
        record = course.note(state, step, course.step_of(state, onset), "micro_divergence")
        record.tasks, record.subject, record.reason = (task,), task, "constant"
        watch.number = record.number
        course.blame(state, record, onset, spread.GROUP_FRAMES * watch.low + layers.LOOK_BACK)
    record = state.records[watch.number]
    if verdict == "full" and record.kind != "full_divergence":
        course.full(step, record, "constant", task, math.nan)


def slide_watch(state: MonitorState, step: int) -> None:
    """A slow slide of the loss, where no metric is."""
    if not state.judges and len(state.names):
        _slide(state, step)


def _slide(state: MonitorState, step: int) -> None:
    """The slow watch, where no metric is."""
    verdict = slide.judge(state.slide, state.frame)
    if state.slide.number is None and state.open is not None:
        record = state.records[state.open.number]
        if verdict.full and record.kind != "full_divergence":
            course.full(step, record, "worse", "loss", verdict.lost)
        return
    if state.slide.number is None and verdict.flag:
        record = course.note(state, step, course.step_of(state, verdict.since), "loss_spike")
        state.slide.number = record.number
    if state.slide.number is None:
        return
    record = state.records[state.slide.number]
    if verdict.back:
        record.end_step = step
        if record.kind == "full_divergence":
            record.kind = "micro_divergence"
        state.slide.number = None
    elif verdict.full and record.kind != "full_divergence":
        course.full(step, record, "worse", "loss", verdict.lost)


def broken(state: MonitorState, step: int, found: nonfinite.Finding) -> None:
    """NaN or Inf began or ended."""
    if found.ended:
        if state.nonfinite.number is not None:
            state.records[state.nonfinite.number].end_step = step
            state.nonfinite.number = None
        return
    record = course.note(state, step, step, "nonfinite")
    record.peak, record.residual = math.inf, math.inf
    record.subject, record.first_layer = found.subject, found.layer
    record.first_signal_step = step if found.layer else None
    record.tasks = found.tasks
    names: list[Moved] = [("task", task, step, math.inf) for task in found.tasks]
    record.movers = ranking.add((), [*names, ("layer", found.layer, step, math.inf)] if found.layer else names)
    state.nonfinite.number = record.number


def habit(state: MonitorState, step: int, found: habits.Finding) -> None:
    """A habit was found, or the run updates again."""
    if found.ended:
        if state.habits.number is not None:
            state.records[state.habits.number].end_step = step
        state.habits.number = None
        return
    back = round(found.value) if found.kind == "no_update" else habits.GROUP_FRAMES * habits.HABIT_GROUPS
    kind = HABITS[found.kind]
    record = course.note(state, step, course.step_of(state, state.frame - min(back, course.STEPS_KEPT)), kind)
    record.first_layer, record.value = found.layer, found.value
    if found.kind == "no_update":
        state.habits.number = record.number


def once(state: MonitorState, step: int) -> None:
    """The searches that run every 128 frames."""
    if not state.period.found and state.open is None:
        found = period.search(state.period)
        if found is not None:
            state.period.found = True
            record = course.note(state, step, step, "periodic_loss")
            record.value, record.peak = float(found[0]), found[1]
    flat = state.regime.rate > 0 and state.frame - state.regime.since >= FLAT_RATE_FRAMES
    if flat and not state.told_rate and state.open is None and _settled(state):
        state.told_rate = True
        course.note(state, step, step, "learning_rate_not_decayed").value = state.regime.rate


def _settled(state: MonitorState) -> bool:
    """Whether the loss has stopped falling: its last quarter is no better than the quarter before."""
    values = state.period.values
    quarter = len(values) // 4
    if quarter < 64:
        return False
    early, late = (values[-2 * quarter : -quarter], values[-quarter:])
    progress = period.median(values[:16]) - period.median(late)
    return progress > 0 and period.median(early) - period.median(late) < SETTLED_SHARE * progress


def label(state: MonitorState, step: int, task: str, mean: float) -> None:
    """A task's label mean was measured."""
    watch = state.drifts.setdefault(task, drift.Drift())
    shift = drift.take(watch, mean)
    if shift is None:
        return
    if shift and watch.number is None:
        record = course.note(state, step, course.step_of(state, state.frame - drift.FRAMES + 1), "distribution_shift")
        record.tasks, record.subject, record.value = (task,), task, shift
        watch.number = record.number
    elif not shift and watch.number is not None:
        state.records[watch.number].end_step, watch.number = step, None


def gap(state: MonitorState, step: int, seconds: float) -> None:
    """No frame came for a long time, and then this one."""
    before = state.steps[-2] if len(state.steps) > 1 else step
    record = course.note(state, step, before, "stalled")
    record.value, record.end_step = seconds, step


def rate_event(state: MonitorState, step: int, event: regime.Event) -> None:
    """The learning rate ended its warm-up or made a step: what follows it by arithmetic begins anew."""
    record = course.note(state, step, step, "regime_change")
    record.end_step, record.reason, record.subject = step + 1, event.reason, "learning_rate"
    record.value, record.learning_rate = event.rate, event.factor
    if event.reason == "rate":
        layers.rescale(state.layers, event.factor)
        habits.rescale(state.habits, event.factor)
        if event.factor > 1 and state.slide.number is None:
            slide.rebase(state.slide)


def new_tasks(state: MonitorState, step: int, names: tuple[str, ...]) -> None:
    """Losses joined a run that had begun: the total is the sum of something else now."""
    joined = tuple(task for name in names if (task := voices.task_of(name)))
    if not joined:
        return
    record = course.note(state, step, step, "regime_change")
    record.end_step, record.reason, record.subject, record.tasks = step + 1, "task", ", ".join(joined), joined
    if voices.LOSS in state.names and state.open is None:
        i = state.names.index(voices.LOSS)
        baseline.forget(state.base, i)
        trigger.clear(state.trigger)
        state.first = state.first.copy()
        state.first[i] = math.nan
        if state.slide.number is None:
            state.slide = slide.init()
