"""The course of an episode: how it begins, what each frame does to it, how it is declared full, how it ends.

At most one episode of the losses is open at a time; the baselines stand still meanwhile. What `episode` measures is
turned into the facts of one incident here.
"""

import math

import numpy as np

from lossguard.detect import baseline, episode, layers, ranking, slide, trigger, voices
from lossguard.detect.episode import Episode, Judge
from lossguard.detect.record import Moved, Record
from lossguard.detect.state import RATE_FRAMES, MonitorState, Probation
from lossguard.wire.frame import Floats64
from lossguard.wire.incident import IncidentKind

STEPS_KEPT = 64
"""Steps that are remembered by their frames."""
JUDGE_MINIMUM = 8
FIRST_FRAMES = 40
FIRST_RATIO = 2.0
"""In the first 40 frames a loss of twice the untrained model's is a jump: nothing else is known yet."""
BLOWN_RATIO = 120.0
RETURNED_AUC = 0.60
"""A divergence before anything was learned has no skill to come back to: an AUC of 0.6 over 30 frames counts."""
RECORDS_KEPT = 2000
"""Incidents per run. Beyond that an episode takes the place, and the number, of the spike before it: what is worse than
a spike is always kept."""


def first_hits(state: MonitorState, row: Floats64) -> dict[int, int]:
    """Jumps of the first frames, against the untrained model's loss."""
    limit = FIRST_FRAMES if state.judges else baseline.MINIMUM_FRAMES
    if state.frame >= limit:
        return {}
    with np.errstate(invalid="ignore"):
        high = (row > FIRST_RATIO * state.first) & (state.first > 0)
    return {int(i): state.frame for i in np.flatnonzero(high)}


def judge(state: MonitorState, name: str) -> Judge:
    """A task's metric as it is now: chance with a wide margin while little is known."""
    return judge_of(state.judges[name])


def judge_of(values: list[float]) -> Judge:
    """The same from values of it."""
    if len(values) < JUDGE_MINIMUM:
        return Judge(voices.CHANCE, 0.05, 1)
    array = np.array(values)
    middle = float(np.median(array))
    scale = 1.4826 * float(np.median(np.abs(array - middle)))
    return Judge(float(array.mean()), max(scale, 1e-3), len(values))


def note(state: MonitorState, step: int, onset: int, kind: IncidentKind) -> Record:
    """A new incident."""
    record = Record(number=len(state.records), kind=kind, onset_step=onset, detected_step=step, peak_step=step)
    if state.frame - state.rate_frame < RATE_FRAMES:
        record.learning_rate = state.rate_rise
    state.records.append(record)
    return record


def step_of(state: MonitorState, frame: int) -> int:
    """The step of a recent frame; the oldest one remembered if it is further back."""
    steps = state.steps
    return steps[max(len(steps) - 1 - (state.frame - frame), 0)]


def begin(
    state: MonitorState,
    step: int,
    row: Floats64,
    z: Floats64,
    hits: dict[int, int],
    judged: dict[str, float],
    binary: frozenset[str],
) -> Record | None:
    """An episode begins."""
    if len(state.records) >= RECORDS_KEPT:
        if state.records[-1].kind != "loss_spike" or state.records[-1].end_step is None:
            return None
        state.records.pop()
    frame = min(hits.values(), default=state.frame)
    centre, scale = state.base.centre.copy(), state.base.scale.copy()
    unknown = np.isnan(centre)
    centre[unknown], scale[unknown] = state.first[unknown], 0.1 * np.abs(state.first[unknown])
    hit = np.zeros(len(row))
    hit[list(hits)] = 1
    recent = np.full((len(row), episode.KEPT_FRAMES), np.nan)
    judges = {name: judge(state, name) for name in state.judges}
    opened = Episode(
        number=len(state.records), frame=frame, age=-1, voices=state.names, centre=centre, scale=scale,
        high=np.full(len(row), -np.inf), second=np.full(len(row), -np.inf), hit=hit, recent=recent, judges=judges,
        progress=slide.progress(state.slide), ordinary=slide.ordinary(state.slide),
    )  # fmt: skip
    early = state.frame < baseline.MINIMUM_FRAMES
    alone = not judges and not early and not _ordinary(opened, row)
    record = note(state, step, step_of(state, frame), "micro_divergence" if alone else "loss_spike")
    order = sorted(hits, key=lambda i: (hits[i], -z[i] if z[i] == z[i] else 0.0))
    record.tasks = tuple(task for i in order if (task := voices.task_of(state.names[i])))
    record.subject = record.tasks[0] if record.tasks else "loss"
    opened.data = episode.data_first(opened, row)
    blame(state, record, opened.frame, state.frame - opened.frame + layers.LOOK_BACK + 1)
    state.open = opened
    trigger.clear(state.trigger)
    follow(state, step, row, judged, binary, hits)
    return record


def _ordinary(opened: Episode, row: Floats64) -> bool:
    """Whether the total is no higher than a loss goes that wanders as this one did."""
    i = opened.voices.index(voices.LOSS) if voices.LOSS in opened.voices else -1
    return i >= 0 and bool(row[i] <= opened.ordinary)


def blame(state: MonitorState, record: Record, onset: int, frames: int) -> None:
    """Name the layers that moved within the last frames, if any did."""
    moved = layers.movers(state.layers, frames, state.frame - onset if frames > 1 else 0)
    if not moved:
        return
    name, ago, _ = moved[0]
    record.first_layer = name
    if state.frame - ago <= onset:
        record.first_signal_step = step_of(state, state.frame - ago)
    found: list[Moved] = [("layer", layer, step_of(state, state.frame - n), tall) for layer, n, tall in moved]
    record.movers = ranking.add(record.movers, found)


def follow(
    state: MonitorState,
    step: int,
    row: Floats64,
    judged: dict[str, float],
    binary: frozenset[str],
    hits: dict[int, int] | None = None,
) -> None:
    """The open episode takes a frame; `hits` are the frames at which losses left, where the frame is its first."""
    opened = state.open
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
    since = {i: step_of(state, at) for i, at in (hits or {}).items()}
    found = ranking.tasks(opened.voices, opened.hit, height, since, step)
    if opened.age <= layers.LOOK_AHEAD:
        found += [("layer", name, step, tall) for name, tall in layers.moving_now(state.layers)]
    if found:
        record.movers = ranking.add(record.movers, found)
    if record.kind == "loss_spike" and any(episode.dropped(judge) for judge in opened.judges.values()):
        record.kind = "micro_divergence"
    if record.kind == "loss_spike" and not opened.judges and opened.ordinary > -math.inf and not _ordinary(opened, row):
        record.kind = "micro_divergence"
    record.residual = episode.residual(opened)
    if record.first_layer is None and 0 < opened.age <= layers.LOOK_AHEAD:
        blame(state, record, opened.frame, 1)
    back = episode.losses_back(opened)
    skilled = all(episode.skill_back(judge) for judge in opened.judges.values())
    if record.kind != "full_divergence":
        _declare(state, step, opened, record, back, binary)
    if record.kind == "full_divergence":
        if back and skilled and opened.age >= 15 and _returned(opened):
            record.kind = "micro_divergence"
            _close(state, step, opened, record)
        return
    held = max((episode.hold(judge) for judge in opened.judges.values()), default=1)
    if back and skilled and opened.age >= held:
        _close(state, step, opened, record)
    elif (skilled and opened.judges and opened.age >= episode.STUCK_FRAMES) or (
        not opened.judges and opened.age >= episode.SETTLED_FRAMES
    ):
        _close(state, step, opened, record)
        _rebase(state)


def _returned(opened: Episode) -> bool:
    """Whether a full divergence that began without skill has found some; AUCs know, errors of regressions hardly."""
    return all(
        judge.centre - voices.CHANCE > 0.04 or sum(judge.recent) >= RETURNED_AUC * len(judge.recent)
        for name, judge in opened.judges.items()
        if name.startswith(voices.AUC)
    )


def _declare(
    state: MonitorState, step: int, opened: Episode, record: Record, back: bool, binary: frozenset[str]
) -> None:
    """Call it full if the evidence is there."""
    reason, subject, value = "", "loss", math.nan
    low = all(episode.skill(judge, 30) < episode.CERTAIN_SKILL for judge in opened.judges.values())
    if opened.judges:
        episode.confidently_wrong(opened, binary, _entropies(state))
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
        full(step, record, reason, subject, value)


def _entropies(state: MonitorState) -> dict[str, float]:
    """What the constant predictor of each task pays, where the label mean is known."""
    return {task: voices.entropy(mean) for task, mean in state.labels.items()}


def full(step: int, record: Record, reason: str, subject: str, value: float) -> None:
    """Call it full, with the reason."""
    record.kind, record.reason, record.subject, record.value = "full_divergence", reason, subject, value
    record.declared_full_step, record.end_step = step, None


def _close(state: MonitorState, step: int, opened: Episode, record: Record) -> None:
    """An episode ends."""
    record.end_step = step
    unskilled = [judge for judge in opened.judges.values() if judge.centre - voices.CHANCE <= 0.04]
    if opened.judges and len(unskilled) == len(opened.judges):
        ratio = episode.blown(opened, _entropies(state))
        if ratio >= BLOWN_RATIO and len(state.probations) < 8:
            state.probations.append(Probation(record.number, opened.frame, ratio))
    if not opened.judges and opened.age <= 3:
        for v in np.flatnonzero(opened.hit):
            trigger.remember(state.trigger, state.frame, int(v), record.peak)
    state.open = None
    trigger.clear(state.trigger)


def _rebase(state: MonitorState) -> None:
    """What is now is the baseline."""
    residuals = state.base.residuals
    state.base = baseline.init(len(state.names))
    state.base.residuals = residuals
