"""One block of frames on its way through the detectors.

The columns are found once; frames are judged in groups between two renewals of the baselines. Ordinary frames (nothing
open, everything measured, no loss high) pass together, all others one by one; both ways leave the same state to the
bit, which is why the answer does not depend on how frames are cut into blocks. What only looks back, the layers' own
baselines and the search for a period, is handed its frames when somebody asks, and at the end of the block.
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
    regime,
    slide,
    slow,
    spread,
    trigger,
    voices,
)
from lossguard.detect.columns import columns as columns_of
from lossguard.detect.state import MonitorState
from lossguard.wire.frame import Floats64, Frames

JUDGE_FRAMES = 60
"""AUC values in a task's baseline: its mean is then known to 0.003 at a batch of 512."""


class Block:
    """One block on its way through the detectors: the columns found once, the frames judged one group at a time."""

    def __init__(self, state: MonitorState, frames: Frames) -> None:
        self.state, self.frames = state, frames
        schema = frames.schema
        found = voices.roles(schema.scalars)
        fresh = tuple(name for name in found.voices if name not in state.names)
        if fresh:
            if state.frame >= baseline.MINIMUM_FRAMES:
                slow.new_tasks(state, int(frames.steps[0]), fresh)
            state.names = state.names + fresh
            state.base = baseline.extend(state.base, len(state.names))
            state.trigger = trigger.extend(state.trigger, len(state.names))
            state.first = np.concatenate([state.first, np.full(len(fresh), np.nan)])
            if state.open is not None:
                episode.widen(state.open, state.names)
        for name in found.judges:
            state.judges.setdefault(name, [])
            state.recent.setdefault(name, [])
        columns = {name: i for i, name in enumerate(schema.scalars)}
        present = frames.scalars_present
        self.known = frames.scalars if present.all() else np.where(present, frames.scalars, np.nan)
        places = [columns[name] for name in state.names if name in columns]
        self.rows, self.here = self.known[:, places], present[:, places]
        if len(places) < len(state.names):
            of = [v for v, name in enumerate(state.names) if name in columns]
            rows, here = self.rows, self.here
            self.rows = np.full((len(frames), len(state.names)), np.nan)
            self.here = np.zeros(self.rows.shape, np.bool_)
            self.rows[:, of], self.here[:, of] = rows, here
        self.whole = np.isfinite(self.rows).all(axis=1)
        self.main = self.rows[:, 0] if state.names else np.full(len(frames), np.nan)
        self.judged = {name: self._judged(name) for name in found.judges}
        self.judged_values = {name: column.tolist() for name, column in self.judged.items()}
        self.judged_whole = all(math.isfinite(sum(values)) for values in self.judged_values.values())
        self.label_columns = {task: columns[name] for task, name in found.labels.items()}
        self.label_means = {task: frames.scalars[:, i].tolist() for task, i in self.label_columns.items()
                            if present[:, i].all()}  # fmt: skip
        self.rates = self._column("learning_rate")
        self.spreads = {task: self._known(name).tolist() for task, name in found.spreads.items()}
        self.binary = voices.binary_tasks(state.tasks, schema.scalars)
        stats = columns_of(frames)
        self.broken = nonfinite.scan(frames, self.rows, self.here, stats)
        signals, self.logs = layers.logs(stats, len(frames), len(schema.layers))
        if signals:
            layers.fit(state.layers, schema.layers, signals)
        else:
            layers.fit_none(state.layers)
        kept = state.habits.count if schema.layers == state.habits.names else 0
        self.habits = habits.Columns(stats, len(frames), kept)
        if self.habits:
            habits.fit(state.habits, schema.layers)
        self.gaps = np.empty(len(frames))
        self.gaps[0] = frames.times[0] - state.time
        np.subtract(frames.times[1:], frames.times[:-1], out=self.gaps[1:])
        self.gapped = (self.gaps > slow.STALL_SECONDS) & np.isfinite(self.gaps)
        self.odd = ~self.whole | self.broken | self.gapped
        self.any_odd = bool(self.odd.any())
        self.steps: list[int] = frames.steps.tolist()
        self.behind = 0
        self.motion = signals.index(layers.MOTION) if layers.MOTION in signals else None

    def _column(self, name: str) -> Floats64 | None:
        return self._known(name) if name in self.frames.schema.scalars else None

    def _known(self, name: str) -> Floats64:
        return self.known[:, self.frames.schema.scalars.index(name)]

    def _judged(self, name: str) -> Floats64:
        """A task's metric; a regression's on the scale of an AUC."""
        if name.startswith(voices.AUC):
            return self._known(name)
        task = name[len(voices.RMSE) :]
        return voices.error_skill(self._known(name), self._known(voices.DEVIATION + task))

    def run(self) -> None:
        """Judge all frames."""
        state, t, total = self.state, 0, len(self.frames)
        while t < total:
            if baseline.due(state.frame):
                if state.open is None:
                    baseline.refresh(state.base, state.caution)
                self._watch(t)
            if state.frame and state.frame % period.every(state.frame) == 0:
                self._catch_up(t)
                slow.once(state, self.steps[t])
            n = min(baseline.until_due(state.frame), habits.room(state.habits), total - t)
            n = min(n, spread.room(state.frame)) if self.spreads else n
            passed, hits = self._ordinary(t, n)
            if passed:
                self._pass(t, passed)
            for k in range(passed, n):
                self._frame(t + k, hits if k == passed else None)
            t += n
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
            slow.collapse(state, step, fallen, self.binary)

    def _catch_up(self, t: int) -> None:
        """Hand the frames before the t-th to what looks back: all that are left are of the run's usual state."""
        if self.behind < t:
            layers.advance(self.state.layers, self.logs[self.behind : t])
            period.extend(self.state.period, self.main[self.behind : t])
            self.behind = t

    def _ordinary(self, t: int, n: int) -> tuple[int, dict[int, int] | None]:
        """How many of the next frames are ordinary, and what flags the one after them, if that was found here.

        Ordinary: nothing open, everything measured and finite, no loss falling to a new level, no test flagging.
        """
        state = self.state
        if state.open is not None or state.probations or state.ruined or state.frame < course.FIRST_FRAMES:
            return 0, None
        if nonfinite.watching(state.nonfinite) or (self.any_odd and self.odd[t : t + n].any()):
            return 0, None
        z = (self.rows[t : t + n] - state.base.centre) / state.base.scale
        if not (z > -baseline.FALL_SCALES).all():
            return 0, None
        passed, hits = trigger.until_hit(state.trigger, state.frame, z)
        return passed, hits or None

    def _pass(self, t: int, n: int) -> None:
        """Take n ordinary frames at once."""
        state = self.state
        baseline.accept(state.base, self.rows[t : t + n])
        for name, column in self.judged_values.items():
            values = column[t : t + n]
            if not self.judged_whole:
                values = [value for value in values if math.isfinite(value)]
            state.judges[name] = [*state.judges[name], *values][-JUDGE_FRAMES:]
            state.recent[name] = [*state.recent[name], *values][-episode.KEPT_FRAMES :]
        steps = self.steps[t : t + n]
        self._rates_and_labels(t, steps)
        slide.extend(state.slide, self.main[t : t + n])
        state.steps = [*state.steps, *steps][-course.STEPS_KEPT :]
        state.frame += n - 1
        self._spreads(t, n)
        state.frame += 1
        self._habits(t, n)

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
        for task, column in self.spreads.items():
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
        column = self._column(voices.DEVIATION + task)
        return math.nan if column is None else float(column[t])

    def _rates(self, t: int, n: int) -> None:
        """The learning rates of n frames; what they say is told at its frame."""
        state = self.state
        told = state.regime
        if self.rates is None or (told.rises < 0 and (self.rates[t : t + n] == told.rate).all()):
            return
        for k in range(t, t + n):
            rate, old = float(self.rates[k]), state.regime.rate
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
        if len(self.label_means) < len(self.label_columns):
            return 0
        found = {}
        for task, means in self.label_means.items():
            watch = self.state.drifts.get(task)
            n = 0 if watch is None else min(n, drift.room(watch))
            if not n:
                return 0
            found[task] = means[t : t + n]
            if not math.isfinite(sum(found[task])):
                return 0
        for task, means in found.items():
            drift.add(self.state.drifts[task], means[:n])
            self.state.labels[task] = means[n - 1]
        return n

    def _labels(self, t: int) -> None:
        for task, column in self.label_columns.items():
            if self.frames.scalars_present[t, column]:
                mean = float(self.frames.scalars[t, column])
                self.state.labels[task] = mean
                if math.isfinite(mean):
                    slow.label(self.state, int(self.frames.steps[t]), task, mean)

    def _frame(self, t: int, hits: dict[int, int] | None) -> None:
        """Judge one frame with everything; the tests are not run again where they flagged it already."""
        state, step, row = self.state, self.steps[t], self.rows[t]
        state.steps = [*state.steps, step][-course.STEPS_KEPT :]
        self._rates(t, 1)
        self._labels(t)
        z = (row - state.base.centre) / state.base.scale
        judged = {name: column[t] for name, column in self.judged_values.items() if math.isfinite(column[t])}
        for name, value in judged.items():
            state.recent[name] = [*state.recent[name], value][-episode.KEPT_FRAMES :]
        watched = bool(self.broken[t]) or nonfinite.watching(state.nonfinite)
        if state.open is None and hits is None:
            hits = course.first_hits(state, row) or trigger.test(state.trigger, state.frame, z)
        unusual = watched or state.open is not None or bool(hits)
        if unusual:
            self._catch_up(t)
            layers.look(state.layers, self.logs[t : t + 1])
            period.extend(state.period, self.main[t : t + 1])
            self.behind = t + 1
        if watched:
            self._nonfinite(t)
        if self.gapped[t]:
            slow.gap(state, step, float(self.gaps[t]))
        slide.extend(state.slide, self.main[t : t + 1])
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
            layers.learn(state.layers, self.logs[t : t + 1])
        slow.probations(state, step)
        self._spreads(t, 1)
        state.frame += 1
        self._habits(t, 1)

    def _nonfinite(self, t: int) -> None:
        """Judge one frame that holds a NaN or Inf, or that comes after one that did."""
        state, usual, moves = self.state, np.empty(0), np.empty(0)
        if self.motion is not None:
            usual, moves = state.layers.centre[self.motion], self.logs[t, self.motion].astype(np.float64)
        found = nonfinite.judge(state.nonfinite, self.frames, t, bool(self.broken[t]), usual, moves)
        if found is not None:
            slow.broken(state, self.steps[t], found)
