"""One run's detectors, composed: frames in, incidents out.

The state is a value: `update` returns a new one and leaves the old one as it was. The answer depends on the frames
alone: any split into blocks, a round trip through `dumps` and `loads`, and a replay give the same incidents to the
bit. Memory is bounded whatever the number of steps. NaN is judged, never absorbed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lossguard.detect import baseline, episode, nonfinite, pack, slide, trigger, voices, words
from lossguard.detect.baseline import Baseline
from lossguard.detect.episode import Episode, Judge
from lossguard.detect.nonfinite import Nonfinite
from lossguard.detect.pack import StateError
from lossguard.detect.record import Record
from lossguard.detect.slide import Slide
from lossguard.detect.trigger import Trigger
from lossguard.wire.frame import Floats64, Frames, Schema
from lossguard.wire.incident import BREAKING, RunReport, RunStatus

__all__ = ["MonitorState", "StateError", "dumps", "init", "loads", "new_attempt", "report", "update"]

STATE_VERSION = 2
JUDGE_FRAMES = 60
"""AUC values in a task's baseline: its mean is then known to 0.003 at a batch of 512."""
JUDGE_MINIMUM = 8
FIRST_FRAMES = 40
FIRST_RATIO = 2.0
"""In the first 40 frames a loss of twice the untrained model's is a jump: nothing else is known yet."""
BLOWN_RATIO = 120.0
BLOWN_FRAMES = 100
"""A total loss that reached 120 times its level (geometric mean of the two worst frames: one frame may be the batch's
doing, two are the weights') before the model knew anything: if it knows nothing after 100 more frames either, it will
not learn, because the accumulators have absorbed those gradients. Recorded runs that learned stayed below 80."""
RUINED_RATIO = 500.0
RUINED_FRAMES = 40
"""From 500 times on, 40 frames are enough."""
LEARNED_AUC = 0.55
UNLEARNED_AUC = 0.54
"""The mean AUC of 20 frames: above 0.55 a model learns, below 0.54 it does not yet."""
RETURNED_AUC = 0.60
"""A divergence before anything was learned has no skill to come back to: an AUC of 0.6 over 30 frames counts."""
COLLAPSE_FRAMES = 15
COLLAPSE_SKILL = 0.3
COLLAPSE_ERRORS = 6.0
"""An AUC that loses 70 % of its skill (and 6 standard errors) over 15 frames is an episode, whatever the losses do:
some models die in silence."""
RATE_FRAMES = 30
"""A rise of the learning rate is named as the likely cause for 30 frames."""
STEPS_KEPT = 64
RECORDS_KEPT = 2000
"""Incidents per run; beyond that, spikes are no longer recorded."""


@dataclass(slots=True)
class Probation:
    """A blow-up before the model had learned anything, which may turn out to have ruined it."""

    number: int
    frame: int
    ratio: float


@dataclass(slots=True)
class MonitorState:
    """Everything the detectors remember about one run.

    Attributes:
        tasks: task name to kind (`binary` or `regression`), as told or inferred.
        first_step: the first step seen; None before the first frame.
        last_step: the last step judged; None before the first frame.
        attempts: how many attempts were opened so far.
        records: all incidents' facts, in the order of their numbers.
        frame: frames of this attempt so far.
        steps: the last 64 steps, newest last.
        names: the voices, in the order of the arrays.
        first: each voice's first finite value of the attempt; NaN before it [V].
        base: the voices' baselines.
        trigger: the voices' tests.
        judges: AUC values per judge, newest last, at most 60; none from an episode.
        recent: AUC values per judge, newest last, at most 30, whatever they are.
        labels: mean label per task, as of the last frame that had one.
        open: the open episode.
        probations: see `Probation`.
        ruined: numbers of full divergences that began before anything was learned.
        slide: the slow watch over losses without metrics.
        nonfinite: the watch over NaN and Inf.
        rate: the last learning rate; NaN before the first.
        rate_rise: the factor of its last rise.
        rate_frame: the frame of its last rise.
    """

    tasks: dict[str, str]
    first_step: int | None = None
    last_step: int | None = None
    attempts: int = 1
    records: list[Record] = field(default_factory=list)
    frame: int = 0
    steps: list[int] = field(default_factory=list)
    names: tuple[str, ...] = ()
    first: Floats64 = field(default_factory=lambda: np.empty(0))
    base: Baseline = field(default_factory=lambda: baseline.init(0))
    trigger: Trigger = field(default_factory=lambda: trigger.init(0))
    judges: dict[str, list[float]] = field(default_factory=dict)
    recent: dict[str, list[float]] = field(default_factory=dict)
    labels: dict[str, float] = field(default_factory=dict)
    open: Episode | None = None
    probations: list[Probation] = field(default_factory=list)
    ruined: list[int] = field(default_factory=list)
    slide: Slide = field(default_factory=slide.init)
    nonfinite: Nonfinite = field(default_factory=nonfinite.init)
    rate: float = math.nan
    rate_rise: float = 1.0
    rate_frame: int = -RATE_FRAMES


_CLASSES = (MonitorState, Record, Baseline, Trigger, Judge, Episode, Probation, Slide, Nonfinite)


def init(tasks: Mapping[str, str] | None = None) -> MonitorState:
    """The state before the first frame.

    Args:
        tasks: task name to `binary` or `regression`; None or empty: inferred from the scalars' names.

    Raises:
        ValueError: a kind that is neither.
    """
    for name, kind in (tasks or {}).items():
        if kind not in ("binary", "regression"):
            raise ValueError(f"tasks: {name!r} has kind {kind!r}, expected 'binary' or 'regression'")
    return MonitorState(tasks=dict(tasks or {}))


def update(state: MonitorState, frames: Frames) -> MonitorState:
    """The state after a block of consecutive frames; the block's size makes no difference to the answer.

    Raises:
        ValueError: the block does not begin after the last step that was judged (after a restart: `new_attempt`).
    """
    if not len(frames):
        return state
    if state.last_step is not None and frames.steps[0] <= state.last_step:
        raise ValueError(
            f"frames: begin at step {frames.steps[0]}, but step {state.last_step} is judged already; "
            "after a restart from a checkpoint call new_attempt first"
        )
    state = pack.clone(state)
    if state.first_step is None:
        state.first_step = int(frames.steps[0])
    _Block(state, frames).run()
    return state


def new_attempt(state: MonitorState, step: int) -> MonitorState:
    """The state after a restart from a checkpoint at `step`: open episodes end there, the baselines begin anew."""
    old = pack.clone(state)
    for record in old.records:
        if record.end_step is None:
            record.end_step = step + 1
    return MonitorState(
        tasks=old.tasks, first_step=old.first_step, last_step=step, attempts=old.attempts + 1, records=old.records
    )


def report(state: MonitorState, run: str) -> RunReport:
    """The run as its detectors see it now."""
    steps = None if state.first_step is None or state.last_step is None else (state.first_step, state.last_step)
    return RunReport(run, steps, _status(state), tuple(words.incident(record) for record in state.records))


def dumps(state: MonitorState) -> bytes:
    """The state as bytes; `loads` gives back a state that behaves the same to the bit."""
    return pack.dumps(state, STATE_VERSION)


def loads(data: bytes) -> MonitorState:
    """The inverse of `dumps`.

    Raises:
        StateError: damaged bytes, or another version's; replay the run's frames instead.
    """
    state = pack.loads(data, STATE_VERSION, _CLASSES)
    if not isinstance(state, MonitorState):
        raise StateError("not a monitor's state")
    return state


def _status(state: MonitorState) -> RunStatus:
    if any(record.kind in BREAKING and record.end_step is None for record in state.records):
        return "diverged"
    return "recovered" if any(r.kind in ("micro_divergence", *BREAKING) for r in state.records) else "healthy"


class _Block:
    """One block on its way through the detectors: the columns found once, the frames judged one group at a time."""

    def __init__(self, state: MonitorState, frames: Frames) -> None:
        self.state, self.frames = state, frames
        schema = frames.schema
        found = voices.roles(schema.scalars)
        fresh = tuple(name for name in found.voices if name not in state.names)
        if fresh:
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
        self.rows = np.full((len(frames), len(state.names)), np.nan)
        self.here = np.zeros((len(frames), len(state.names)), np.bool_)
        for v, name in enumerate(state.names):
            if name in columns:
                self.rows[:, v] = frames.scalars[:, columns[name]]
                self.here[:, v] = present[:, columns[name]]
        self.rows[~self.here] = np.nan
        self.whole = np.isfinite(self.rows).all(axis=1)
        self.judged = {name: np.where(present[:, columns[name]], frames.scalars[:, columns[name]], np.nan)
                       for name in found.judges}  # fmt: skip
        self.label_columns = {task: columns[name] for task, name in found.labels.items()}
        self.rates = self._column(schema, "learning_rate")
        self.binary = voices.binary_tasks(state.tasks, schema.scalars)
        self.broken = nonfinite.scan(frames, self.rows, self.here)

    def _column(self, schema: Schema, name: str) -> Floats64 | None:
        if name not in schema.scalars:
            return None
        i = schema.scalars.index(name)
        return np.where(self.frames.scalars_present[:, i], self.frames.scalars[:, i], np.nan)

    def run(self) -> None:
        """Judge all frames."""
        state, t, total = self.state, 0, len(self.frames)
        while t < total:
            if baseline.due(state.frame):
                if state.open is None:
                    baseline.refresh(state.base)
                self._slow_watch(t)
            n = min(baseline.until_due(state.frame), total - t)
            z = (self.rows[t : t + n] - state.base.centre) / state.base.scale
            quiet = self._quiet(t, n, z)
            if quiet:
                self._pass(t, quiet)
            for k in range(quiet, n):
                self._frame(t + k)
            t += n
        state.last_step = int(self.frames.steps[-1])

    def _quiet(self, t: int, n: int, z: Floats64) -> int:
        """How many of the next frames are ordinary: nothing open, everything measured and finite, no voice high."""
        state = self.state
        if state.open is not None or state.probations or state.ruined or state.frame < FIRST_FRAMES:
            return 0
        if not self.whole[t : t + n].all() or self.broken[t : t + n].any() or nonfinite.watching(state.nonfinite):
            return 0
        if not (z > -baseline.FALL_SCALES).all():
            return 0
        return trigger.calm(state.trigger, z)

    def _pass(self, t: int, n: int) -> None:
        """Take n ordinary frames at once."""
        state = self.state
        baseline.accept(state.base, self.rows[t : t + n])
        for name, column in self.judged.items():
            values = [v for v in column[t : t + n].tolist() if math.isfinite(v)]
            state.judges[name] = [*state.judges[name], *values][-JUDGE_FRAMES:]
            state.recent[name] = [*state.recent[name], *values][-episode.KEPT_FRAMES :]
        self._rates(t, n)
        self._labels(t + n - 1)
        nonfinite.passed(state.nonfinite, self.frames, t, n)
        slide.extend(state.slide, self.rows[t : t + n, 0])
        state.steps = [*state.steps, *self.frames.steps[t : t + n].tolist()][-STEPS_KEPT:]
        state.frame += n

    def _rates(self, t: int, n: int) -> None:
        state = self.state
        if self.rates is None:
            return
        for k in range(n):
            rate = float(self.rates[t + k])
            if rate > 0 and math.isfinite(rate):
                if rate > state.rate * 1.2:
                    state.rate_rise, state.rate_frame = rate / state.rate, state.frame + k
                state.rate = rate

    def _labels(self, t: int) -> None:
        for task, column in self.label_columns.items():
            if self.frames.scalars_present[t, column]:
                self.state.labels[task] = float(self.frames.scalars[t, column])

    def _frame(self, t: int) -> None:
        """Judge one frame with everything."""
        state, step, row = self.state, int(self.frames.steps[t]), self.rows[t]
        state.steps = [*state.steps, step][-STEPS_KEPT:]
        self._rates(t, 1)
        self._labels(t)
        z = (row - state.base.centre) / state.base.scale
        judged = {name: float(column[t]) for name, column in self.judged.items() if math.isfinite(column[t])}
        for name, value in judged.items():
            state.recent[name] = [*state.recent[name], value][-episode.KEPT_FRAMES :]
        found = nonfinite.judge(state.nonfinite, self.frames, t, self.rows, self.here, bool(self.broken[t]))
        if found is not None:
            self._nonfinite(step, found)
        slide.extend(state.slide, row[:1])
        if state.open is None:
            hits = self._first_hits(row) or trigger.test(state.trigger, state.frame, z)
            if hits:
                self._open(step, row, z, hits, judged)
            else:
                baseline.accept_one(state.base, row, z)
                for name, value in judged.items():
                    state.judges[name] = [*state.judges[name], value][-JUDGE_FRAMES:]
                state.first = np.where(np.isnan(state.first) & np.isfinite(row), row, state.first)
        else:
            self._follow(step, row, judged)
        self._probations(step)
        state.frame += 1

    def _first_hits(self, row: Floats64) -> dict[int, int]:
        """Jumps of the first frames, against the untrained model's loss."""
        state = self.state
        limit = FIRST_FRAMES if state.judges else baseline.MINIMUM_FRAMES
        if state.frame >= limit:
            return {}
        with np.errstate(invalid="ignore"):
            high = (row > FIRST_RATIO * state.first) & (state.first > 0)
        return {int(i): state.frame for i in np.flatnonzero(high)}

    def _judge(self, name: str) -> Judge:
        values = self.state.judges[name]
        if len(values) < JUDGE_MINIMUM:
            return Judge(voices.CHANCE, 0.05, 1)
        array = np.array(values)
        middle = float(np.median(array))
        scale = 1.4826 * float(np.median(np.abs(array - middle)))
        return Judge(float(array.mean()), max(scale, 1e-3), len(values))

    def _record(self, step: int, onset: int, kind: str) -> Record:
        state = self.state
        record = Record(number=len(state.records), kind=kind, onset_step=onset, detected_step=step, peak_step=step)  # type: ignore[arg-type]
        if state.frame - state.rate_frame < RATE_FRAMES:
            record.learning_rate = state.rate_rise
        state.records.append(record)
        return record

    def _step_of(self, frame: int) -> int:
        """The step of a recent frame; the oldest one remembered if it is further back."""
        steps = self.state.steps
        return steps[max(len(steps) - 1 - (self.state.frame - frame), 0)]

    def _open(
        self, step: int, row: Floats64, z: Floats64, hits: dict[int, int], judged: dict[str, float]
    ) -> Record | None:
        """An episode begins."""
        state = self.state
        if len(state.records) >= RECORDS_KEPT:
            return None
        frame = min(hits.values(), default=state.frame)
        centre, scale = state.base.centre.copy(), state.base.scale.copy()
        unknown = np.isnan(centre)
        centre[unknown], scale[unknown] = state.first[unknown], 0.1 * np.abs(state.first[unknown])
        hit = np.zeros(len(row))
        hit[list(hits)] = 1
        recent = np.full((len(row), episode.KEPT_FRAMES), np.nan)
        judges = {name: self._judge(name) for name in state.judges}
        opened = Episode(
            number=len(state.records), frame=frame, age=-1, voices=state.names, centre=centre, scale=scale,
            high=np.full(len(row), -np.inf), second=np.full(len(row), -np.inf), hit=hit, recent=recent, judges=judges,
            progress=slide.progress(state.slide),
        )  # fmt: skip
        early = state.frame < baseline.MINIMUM_FRAMES
        record = self._record(step, self._step_of(frame), "loss_spike" if judges or early else "micro_divergence")
        order = sorted(hits, key=lambda i: (hits[i], -z[i] if z[i] == z[i] else 0.0))
        record.tasks = tuple(task for i in order if (task := voices.task_of(state.names[i])))
        record.subject = record.tasks[0] if record.tasks else "loss"
        opened.data = episode.data_first(opened, row)
        state.open = opened
        trigger.clear(state.trigger)
        self._follow(step, row, judged)
        return record

    def _follow(self, step: int, row: Floats64, judged: dict[str, float]) -> None:
        """The open episode takes a frame."""
        state, opened = self.state, self.state.open
        assert opened is not None
        record = state.records[opened.number]
        episode.see(opened, row, judged)
        height = (row - opened.centre) / opened.scale
        known = np.where(np.isnan(height), -np.inf, height)
        if len(known) and float(known.max()) > record.peak:
            record.peak, record.peak_step = float(known.max()), step
        fresh = (known > trigger.TALL_SCALES) & (opened.hit == 0)
        if fresh.any():
            opened.hit[fresh] = 1
            record.tasks += tuple(
                task for i in np.flatnonzero(fresh)
                if (task := voices.task_of(opened.voices[i])) and task not in record.tasks
            )  # fmt: skip
        if record.kind == "loss_spike" and any(episode.dropped(judge) for judge in opened.judges.values()):
            record.kind = "micro_divergence"
        back = episode.losses_back(opened)
        skilled = all(episode.skill_back(judge) for judge in opened.judges.values())
        if record.kind != "full_divergence":
            self._declare(step, opened, record, back)
        if record.kind == "full_divergence":
            if back and skilled and opened.age >= 15 and self._returned(opened):
                record.kind = "micro_divergence"
                self._close(step, opened, record)
            return
        held = max((episode.hold(judge) for judge in opened.judges.values()), default=1)
        if back and skilled and opened.age >= held:
            self._close(step, opened, record)
        elif (skilled and opened.judges and opened.age >= episode.STUCK_FRAMES) or (
            not opened.judges and opened.age >= episode.SETTLED_FRAMES
        ):
            self._close(step, opened, record)
            self._rebase()

    def _returned(self, opened: Episode) -> bool:
        """Whether a full divergence that began without skill has found some."""
        return all(
            judge.centre - voices.CHANCE > 0.04 or sum(judge.recent) >= RETURNED_AUC * len(judge.recent)
            for judge in opened.judges.values()
        )

    def _declare(self, step: int, opened: Episode, record: Record, back: bool) -> None:
        """Call it full if the evidence is there."""
        reason, subject, value = "", "loss", math.nan
        low = all(episode.skill(judge, 30) < episode.CERTAIN_SKILL for judge in opened.judges.values())
        if opened.judges:
            episode.confidently_wrong(opened, self.binary, self._entropies())
            if opened.wrong is not None and opened.age >= episode.CERTAIN_AGE and low:
                reason, subject, value = "wrong", opened.wrong, opened.ratio
        if not reason and opened.judges:
            lost = episode.metrics_lost(opened)
            if lost:
                reason = "lost" if opened.age < episode.LINGERING_FRAMES else "lingering"
                subject = voices.task_of(lost) or lost
                value = episode.skill(opened.judges[lost], episode.KEPT_FRAMES)
        if not opened.judges and not back and opened.age >= episode.WORSE_FRAMES:
            value = episode.progress_lost(opened)
            if value >= episode.WORSE_SHARE:
                reason = "worse"
        if reason:
            self._full(step, record, reason, subject, value)

    def _entropies(self) -> dict[str, float]:
        """What the constant predictor of each task pays, where the label mean is known."""
        return {task: voices.entropy(mean) for task, mean in self.state.labels.items()}

    def _full(self, step: int, record: Record, reason: str, subject: str, value: float) -> None:
        record.kind, record.reason, record.subject, record.value = "full_divergence", reason, subject, value
        record.declared_full_step, record.end_step = step, None

    def _close(self, step: int, opened: Episode, record: Record) -> None:
        """An episode ends: its residual is what is left of it."""
        state = self.state
        record.end_step = step
        i = int(np.argmax(opened.hit)) if opened.hit.any() else 0
        if len(opened.centre):
            left = float(np.nanmedian(opened.recent[i, -3:])) - float(opened.centre[i])
            record.residual = left / max(abs(float(opened.centre[i])), 1e-300)
        unskilled = [judge for judge in opened.judges.values() if judge.centre - voices.CHANCE <= 0.04]
        if opened.judges and len(unskilled) == len(opened.judges):
            ratio = episode.blown(opened, self._entropies())
            if ratio >= BLOWN_RATIO and len(state.probations) < 8:
                state.probations.append(Probation(record.number, opened.frame, ratio))
        if not opened.judges and opened.age <= 3:
            for v in np.flatnonzero(opened.hit):
                trigger.remember(state.trigger, state.frame, int(v), record.peak)
        state.open = None
        trigger.clear(state.trigger)

    def _rebase(self) -> None:
        """What is now is the baseline."""
        state = self.state
        residuals = state.base.residuals
        state.base = baseline.init(len(state.names))
        state.base.residuals = residuals

    def _probations(self, step: int) -> None:
        """Blow-ups before anything was learned: did the model begin to learn?"""
        state = self.state
        for kept in list(state.probations):
            age = state.frame - kept.frame
            if age < 25 or not any(state.recent.values()):
                continue
            best = max(float(np.mean(values[-20:])) for values in state.recent.values() if values)
            limit = RUINED_FRAMES if kept.ratio >= RUINED_RATIO else BLOWN_FRAMES
            if best >= LEARNED_AUC:
                state.probations.remove(kept)
            elif age >= limit and best < UNLEARNED_AUC:
                state.probations.remove(kept)
                state.ruined.append(kept.number)
                task = max(state.recent, key=lambda name: len(state.recent[name]))
                self._full(step, state.records[kept.number], "unlearned", voices.task_of(task) or "loss", kept.ratio)
        for number in list(state.ruined):
            if all(len(v) >= 30 and sum(v) >= RETURNED_AUC * len(v) for v in state.recent.values()):
                state.ruined.remove(number)
                state.records[number].kind, state.records[number].end_step = "micro_divergence", step

    def _slow_watch(self, t: int) -> None:
        """What only shows over many frames: a silent collapse of the AUC, a slow slide of the loss."""
        state = self.state
        step = int(self.frames.steps[t])
        if not state.judges and len(state.names):
            self._slide(step)
        if state.open is not None:
            return
        for name, values in state.judges.items():
            recent = state.recent[name][-COLLAPSE_FRAMES:]
            if len(values) < 40 or len(recent) < COLLAPSE_FRAMES:
                continue
            judge = self._judge(name)
            judge.recent = recent
            error = judge.scale * math.sqrt(1 / len(recent) + 1 / len(values))
            fell = judge.centre - sum(recent) / len(recent) > COLLAPSE_ERRORS * error
            if fell and judge.centre - voices.CHANCE > 0.04 and episode.skill(judge, 15) < COLLAPSE_SKILL:
                nothing = np.full(len(state.names), np.nan)
                record = self._open(step, nothing, nothing, {}, {})
                if record is not None:
                    task = voices.task_of(name) or name
                    record.kind, record.tasks, record.subject = "micro_divergence", (task,), task
                return

    def _slide(self, step: int) -> None:
        """The slow watch, where no metric is."""
        state = self.state
        verdict = slide.judge(state.slide, state.frame)
        if state.slide.number is None and state.open is not None:
            record = state.records[state.open.number]
            if verdict.full and record.kind != "full_divergence":
                self._full(step, record, "worse", "loss", verdict.lost)
            return
        if state.slide.number is None and verdict.flag:
            record = self._record(step, self._step_of(verdict.since), "loss_spike")
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
            self._full(step, record, "worse", "loss", verdict.lost)

    def _nonfinite(self, step: int, found: nonfinite.Finding) -> None:
        state = self.state
        if found.ended:
            if state.nonfinite.number is not None:
                state.records[state.nonfinite.number].end_step = step
                state.nonfinite.number = None
            return
        record = self._record(step, step, "nonfinite")
        record.peak, record.residual = math.inf, math.inf
        record.subject, record.first_layer = found.subject, found.layer
        record.first_signal_step = step if found.layer else None
        record.tasks = found.tasks
        state.nonfinite.number = record.number
