"""One block of frames on its way through the detectors.

The columns are found once. Ordinary frames (nothing open, everything measured, no loss high) pass together, many at a
time, all others one by one; both ways leave the same state to the bit, which is why the answer does not depend on how
frames are cut into blocks. What only looks back, the layers' own baselines and the search for a period, is handed its
frames when somebody asks, and at the end of the block.
"""

import math

import numpy as np

from lossguard.detect import (
    ahead,
    baseline,
    course,
    drift,
    episode,
    habits,
    layers,
    nonfinite,
    period,
    regime,
    slide,
    slow,
    spread,
    trigger,
    voices,
)
from lossguard.detect.columns import columns
from lossguard.detect.scalars import Scalars
from lossguard.detect.slide import Slide
from lossguard.detect.state import MonitorState
from lossguard.wire.frame import Bits, Frames

JUDGE_FRAMES = 60
"""AUC values in a task's baseline: its mean is then known to 0.003 at a batch of 512."""


class Block:
    """One block on its way through the detectors: the columns found once, the frames judged one stretch at a time."""

    def __init__(self, state: MonitorState, frames: Frames) -> None:
        self.state, self.frames = state, frames
        schema = frames.schema
        found = voices.roles(schema.scalars)
        self._widen(tuple(name for name in found.voices if name not in state.names))
        for name in found.judges:
            state.judges.setdefault(name, [])
            state.recent.setdefault(name, [])
        self.scalars = Scalars(frames, state.names)
        self.rows = self.scalars.rows
        self.binary = voices.binary_tasks(state.tasks, schema.scalars)
        stats = columns(frames)
        self.broken = nonfinite.scan(self.rows, self.scalars.here, stats)
        self.logs = layers.logs(stats, len(frames), len(schema.layers))
        layers.fit(state.layers, schema.layers, self.logs.signals)
        same = schema.layers == state.habits.names
        self.habits = habits.Watched(
            frames, stats, self.logs,
            count=state.habits.count if same else 0,
            is_first=not same or state.habits.groups < habits.FIRST_GROUPS,
        )  # fmt: skip
        if self.habits:
            habits.fit(state.habits, schema.layers)
        self.gaps = np.empty(len(frames))
        self.gaps[0] = frames.times[0] - state.time
        np.subtract(frames.times[1:], frames.times[:-1], out=self.gaps[1:])
        gapped = self.gaps > slow.STALL_SECONDS
        self.gapped: Bits | None = gapped & np.isfinite(self.gaps) if np.count_nonzero(gapped) else None
        self.odd: Bits | None = None
        for mask in (self.broken, self.gapped, None if self.scalars.whole is None else ~self.scalars.whole):
            if mask is not None:
                self.odd = mask if self.odd is None else self.odd | mask
        self.steps: list[int] = frames.steps.tolist()
        self.behind, self.stale = 0, False
        self.slides: list[tuple[int, Slide]] = []

    def _widen(self, fresh: tuple[str, ...]) -> None:
        """Make room for losses that the run did not have."""
        if not fresh:
            return
        state = self.state
        if state.frame >= baseline.MINIMUM_FRAMES:
            slow.new_tasks(state, int(self.frames.steps[0]), fresh)
        state.names = state.names + fresh
        state.base = baseline.extend(state.base, len(state.names))
        state.trigger = trigger.extend(state.trigger, len(state.names))
        state.first = np.concatenate([state.first, np.full(len(fresh), np.nan)])
        if state.open is not None:
            episode.widen(state.open, state.names)

    def run(self) -> None:
        """Judge all frames."""
        state, t, total = self.state, 0, len(self.frames)
        hits: dict[int, int] | None = None
        while t < total:
            if baseline.due(state.frame):
                self.stale = state.open is None
                self._watch(t)
            if state.frame and state.frame % period.every(state.frame) == 0:
                self._catch_up(t)
                slow.once(state, self.steps[t])
            passed = 0
            if hits is None:
                passed, hits = self._ordinary(t)
            if passed:
                t += passed
            else:
                self._frame(t, hits)
                t, hits = t + 1, None
        self._catch_up(total)
        state.last_step = self.steps[-1]
        if math.isfinite(self.frames.times[-1]):
            state.time = float(self.frames.times[-1])

    def _watch(self, t: int) -> None:
        """What only shows over many frames, before the frames from the t-th on are judged."""
        state, step = self.state, self.steps[t]
        slow.slide_watch(state, step)
        fallen = slow.fallen(state)
        if fallen is not None:
            self._catch_up(t)
            self._renew()
            slow.collapse(state, step, fallen, self.binary)

    def _renew(self) -> None:
        """Renew the baselines where that is due and was not done yet."""
        if self.stale:
            baseline.refresh(self.state.base, self.state.caution)
            self.stale = False

    def _catch_up(self, t: int) -> None:
        """Hand the frames before the t-th to what looks back: all that are left are of the run's usual state."""
        if self.behind < t:
            layers.advance(self.state.layers, self.logs, self.behind, t)
            period.extend(self.state.period, self.scalars.main[self.behind : t])
            self.behind = t

    def _ordinary(self, t: int) -> tuple[int, dict[int, int] | None]:
        """Take the next frames as far as they are ordinary: how many, and what flags the one after them.

        Ordinary: nothing open, everything measured and finite, no loss falling to a new level, no test flagging.
        """
        state = self.state
        if state.open is not None or state.probations or state.ruined or state.frame < course.FIRST_FRAMES:
            return 0, None
        if nonfinite.watching(state.nonfinite):
            return 0, None
        n = min(len(self.frames) - t, ahead.room(state.frame), period.until_search(state.frame))
        if not state.judges and not self._slides_alone():
            n = min(n, baseline.until_due(state.frame))  # the slow watch takes its turn at each renewal
        if self.odd is not None:
            odd = self.odd[t : t + n]
            n = int(np.argmax(odd)) if odd.any() else n
        if not n:
            return 0, None
        coming = ahead.Ahead(state.base, state.frame, self.rows[t : t + n], state.caution, self.stale)
        sure = self._standing(t, coming)
        passed, hits = trigger.until_hit(state.trigger, state.frame, coming.z[:sure])
        if passed:
            coming.take(state.base, passed)
            self.stale = False
            self._pass(t, passed)
        return passed, hits or None

    def _slides_alone(self) -> bool:
        """Whether the slow watch over a loss without metrics can be looked ahead at: nothing else writes to it.

        A learning rate that rises might begin its levels anew.
        """
        state, rates = self.state, self.scalars.rates
        if state.slide.number is not None or state.regime.rises > 0:
            return False
        if rates is None or self.scalars.rate == state.regime.rate:
            return True
        return bool(rates[0] <= state.regime.rate) and bool((rates[1:] <= rates[:-1]).all())

    def _standing(self, t: int, coming: ahead.Ahead) -> int:
        """For how many frames what lies ahead is right: at none of its renewals has the slow watch, or an AUC that may
        have collapsed, anything to tell.
        """
        state, sure = self.state, coming.sure
        renewals = [k for k in coming.renewals if 0 < k < sure]
        self.slides = []
        if not renewals:
            return sure
        if not state.judges:
            coming_values = self.scalars.main[t : t + sure].tolist()
            self.slides, told = slide.ahead(state.slide, coming_values, state.frame, renewals)
            return sure if told is None else told
        watched = []
        for name, values in state.judges.items():
            recent, counts = state.recent[name], None
            if name in self.scalars.judges:
                series = self.scalars.judges[name]
                fresh, counts = series.finite(t, t + sure), series.counts(t, t + sure)
                values, recent = [*values, *fresh], [*recent, *fresh]
            watched.append((values, len(state.judges[name]), recent, len(state.recent[name]), counts))
        for k in renewals:
            for values, held, recent, late, counts in watched:
                more = counts[k] if counts else 0
                if slow.may_have_fallen(
                    values[max(held + more - JUDGE_FRAMES, 0) : held + more],
                    recent[max(late + more - slow.COLLAPSE_FRAMES, 0) : late + more],
                ):
                    return k
        return sure

    def _pass(self, t: int, n: int) -> None:
        """Take n ordinary frames, whose losses the baselines have taken."""
        state = self.state
        for name, series in self.scalars.judges.items():
            values = series.finite(t, t + n)
            state.judges[name] = [*state.judges[name], *values][-JUDGE_FRAMES:]
            state.recent[name] = [*state.recent[name], *values][-episode.KEPT_FRAMES :]
        done = 0
        for k, ahead_of_it in self.slides:
            if k < n:
                done, state.slide = k, ahead_of_it
        slide.extend(state.slide, self.scalars.main[t + done : t + n])
        stop = t + n
        while t < stop:  # what tells at the last frame of a group: group by group, in the order of the frames
            m = min(stop - t, habits.room(state.habits), spread.room(state.frame) if self.scalars.spreads else stop)
            steps = self.steps[t : t + m]
            self._rates_and_labels(t, steps)
            state.steps = [*state.steps, *steps][-course.STEPS_KEPT :]
            state.frame += m - 1
            self._spreads(t, m)
            state.frame += 1
            self._habits(t, m)
            t += m

    def _habits(self, t: int, n: int) -> None:
        """The watch over habits, after the frames were counted."""
        state = self.state
        usual = state.open is None and not nonfinite.watching(state.nonfinite)
        for found in habits.take(state.habits, self.habits, t, n, state.regime.rate, usual):
            slow.habit(state, self.steps[t + n - 1], found)

    def _spreads(self, t: int, n: int) -> None:
        """The watch over the predictions' deviations, at the last of n frames."""
        state = self.state
        ends = spread.room(state.frame) == 1
        for task, column in self.scalars.spreads.items():
            watch = state.spreads.setdefault(task, spread.Spread())
            label = self._label_deviation(task, t + n - 1) if ends else math.nan
            found = spread.take(watch, column[t : t + n], ends, label, slow.is_sound(state))
            if found is not None:
                self._catch_up(t + n)
                slow.constant(state, self.steps[t + n - 1], task, found)

    def _label_deviation(self, task: str, t: int) -> float:
        """The labels' standard deviation in one batch; NaN where it is unknown."""
        if task in self.binary:
            mean = self.state.labels.get(task, math.nan)
            return math.sqrt(mean * (1 - mean)) if 0 < mean < 1 else math.nan
        column = self.scalars.deviations.get(task)
        return math.nan if column is None else float(column[t])

    def _rates(self, t: int, n: int) -> None:
        """The learning rates of n frames; what they say is told at its frame."""
        state, rates = self.state, self.scalars.rates
        if rates is None or (state.regime.rises < 0 and self.scalars.rate == state.regime.rate):
            return
        for k in range(t, t + n):
            rate, old = float(rates[k]), state.regime.rate
            if rate > 0 and math.isfinite(rate):
                frame = state.frame + k - t
                if rate > old * 1.2:
                    state.rate_rise, state.rate_frame = rate / old, frame
                event = regime.take(state.regime, frame, rate)
                if event is not None:
                    self._catch_up(k)
                    slow.rate_event(state, self.steps[k], event)

    def _rates_and_labels(self, t: int, steps: list[int]) -> None:
        """Learning rates and label means of ordinary frames: together, but a frame that ends a group of label means
        goes alone, because what it finds is told at that frame.
        """
        state, done, n = self.state, 0, len(steps)
        frame, before = state.frame, state.steps
        while done < n:
            quiet = self._label_group(t + done, n - done)
            state.frame = frame + done
            self._rates(t + done, quiet)
            done += quiet
            if done < n:
                state.frame, state.steps = frame + done, [*before, *steps[: done + 1]][-course.STEPS_KEPT :]
                self._rates(t + done, 1)
                self._labels(t + done)
                done += 1
        state.frame, state.steps = frame, before

    def _label_group(self, t: int, n: int) -> int:
        """Take the label means of up to n ordinary frames at once; how many of them were taken."""
        state = self.state
        for task, series in self.scalars.labels.items():
            watch = state.drifts.get(task)
            n = min(n, drift.room(watch)) if watch is not None and series.whole else 0
        if n:
            for task, series in self.scalars.labels.items():
                means = series.values[t : t + n]
                drift.add(state.drifts[task], means)
                state.labels[task] = means[-1]
        return n

    def _labels(self, t: int) -> None:
        for task, series in self.scalars.labels.items():
            mean = series.values[t]
            if math.isfinite(mean):
                self.state.labels[task] = mean
                slow.label(self.state, self.steps[t], task, mean)

    def _frame(self, t: int, hits: dict[int, int] | None) -> None:
        """Judge one frame with everything; the tests are not run again where they flagged it already."""
        self._renew()
        state, step, row = self.state, self.steps[t], self.rows[t]
        state.steps = [*state.steps, step][-course.STEPS_KEPT :]
        self._rates(t, 1)
        self._labels(t)
        z = (row - state.base.centre) / state.base.scale
        judged = {name: series.values[t] for name, series in self.scalars.judges.items()}
        judged = {name: value for name, value in judged.items() if math.isfinite(value)}
        for name, value in judged.items():
            state.recent[name] = [*state.recent[name], value][-episode.KEPT_FRAMES :]
        broken = self.broken is not None and bool(self.broken[t])
        watched = broken or nonfinite.watching(state.nonfinite)
        if state.open is None and hits is None:
            hits = course.first_hits(state, row) or trigger.test(state.trigger, state.frame, z.tolist())
        unusual = watched or state.open is not None or bool(hits)
        if unusual:
            self._catch_up(t)
            layers.look(state.layers, self.logs, t)
            period.extend(state.period, self.scalars.main[t : t + 1])
            self.behind = t + 1
        if watched:
            self._nonfinite(t, broken)
        if self.gapped is not None and self.gapped[t]:
            slow.gap(state, step, float(self.gaps[t]))
        slide.extend(state.slide, self.scalars.main[t : t + 1])
        if state.open is not None:
            course.follow(state, step, row, judged, self.binary)
        elif hits:
            course.begin(state, step, row, z, hits, judged, self.binary)
        else:
            baseline.accept_one(state.base, row, z)
            for name, value in judged.items():
                state.judges[name] = [*state.judges[name], value][-JUDGE_FRAMES:]
            state.first = np.where(np.isnan(state.first) & np.isfinite(row), row, state.first)
        if unusual and state.open is None and not nonfinite.watching(state.nonfinite):
            layers.learn(state.layers, self.logs, t, t + 1)
        slow.probations(state, step)
        self._spreads(t, 1)
        state.frame += 1
        self._habits(t, 1)

    def _nonfinite(self, t: int, broken: bool) -> None:
        """Judge one frame that holds a NaN or Inf, or that comes after one that did."""
        state, motion = self.state, self.logs.of(layers.MOTION, t)
        usual = layers.centre_of(state.layers, layers.MOTION) if len(motion) else motion
        found = nonfinite.judge(state.nonfinite, self.frames, t, broken, usual, motion)
        if found is not None:
            slow.broken(state, self.steps[t], found)
