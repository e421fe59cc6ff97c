"""One run's detectors, composed: frames in, incidents out.

The state is a value: `update` returns a new one and leaves the old one as it was. The answer depends on the frames
alone: any split into blocks, a round trip through `dumps` and `loads`, and a replay give the same incidents to the
bit. Memory is bounded whatever the number of steps. NaN is judged, never absorbed.
"""

from collections.abc import Mapping

import numpy as np

from lossguard.detect import course, pack, quiet, words
from lossguard.detect.block import Block
from lossguard.detect.pack import StateError
from lossguard.detect.state import CLASSES, STATE_VERSION, MonitorState
from lossguard.wire.frame import Frames
from lossguard.wire.incident import BREAKING, RunReport, RunStatus

__all__ = ["MonitorState", "StateError", "dumps", "init", "loads", "new_attempt", "report", "update"]


def init(tasks: Mapping[str, str] | None = None, caution: float = 1.0) -> MonitorState:
    """The state before the first frame.

    Args:
        tasks: task name to `binary` or `regression`; None or empty: inferred from the scalars' names.
        caution: factor on the scales by which losses are judged; `lossguard backtest` finds one for a budget of alarms.

    Raises:
        ValueError: a kind that is neither, or a caution that is not positive.
    """
    for name, kind in (tasks or {}).items():
        if kind not in ("binary", "regression"):
            raise ValueError(f"tasks: {name!r} has kind {kind!r}, expected 'binary' or 'regression'")
    if not 0 < caution < float("inf"):
        raise ValueError(f"caution: {caution!r}, expected a positive number")
    return MonitorState(tasks=dict(tasks or {}), caution=float(caution))


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
    with np.errstate(all="ignore"):  # NaN and Inf are data; asked for once, because each time costs as much as a look
        return quiet.wait(state, frames) or _taken(state, frames)


def _taken(state: MonitorState, frames: Frames | None = None) -> MonitorState:
    """The state after what waits and after some frames."""
    waiting, state = state.waiting, _thawed(state)
    blocks = waiting.blocks(frames) if waiting is not None else [frames] if frames is not None else []
    state.waiting = None
    for block in blocks:
        if state.first_step is None:
            state.first_step = int(block.steps[0])
        Block(state, block).run()
    return state


_REPLACED = ("base", "layers", "habits", "period", "nonfinite", "regime")
"""Parts whose arrays and lists are replaced and never written to: a copy may share them."""
_WRITTEN = ("trigger", "slide")
"""Parts whose lists are written to, and nothing below them."""
_OF_TASKS = ("drifts", "spreads")
"""The same as the first, by task."""


def _thawed(state: MonitorState) -> MonitorState:
    """A copy to work on. Incidents that can no longer change are shared: a run may have two thousand of them."""
    copy = pack.shallow(state)
    for name in _REPLACED:
        setattr(copy, name, pack.shallow(getattr(state, name)))
    for name in _WRITTEN:
        setattr(copy, name, pack.lists(getattr(state, name)))
    for name in _OF_TASKS:
        setattr(copy, name, {task: pack.shallow(part) for task, part in getattr(state, name).items()})
    copy.open, copy.probations = pack.clone(state.open), pack.clone(state.probations)
    copy.judges, copy.recent, copy.labels = dict(state.judges), dict(state.recent), dict(state.labels)
    copy.ruined = state.ruined[:]
    live = {kept.number for kept in state.probations}
    copy.records = [
        pack.clone(record) if record.end_step is None or record.number in live else record for record in state.records
    ]
    return copy


def new_attempt(state: MonitorState, step: int) -> MonitorState:
    """The state after a restart from a checkpoint at `step`: open episodes end there, the baselines begin anew.

    That the attempt began is an event of its first step, `step` + 1.
    """
    old = pack.clone(state)
    for record in old.records:
        if record.end_step is None:
            record.end_step = step + 1
    fresh = MonitorState(
        tasks=old.tasks,
        caution=old.caution,
        first_step=old.first_step,
        last_step=step,
        attempts=old.attempts + 1,
        records=old.records,
    )
    if old.records or old.last_step is not None:
        record = course.note(fresh, step + 1, step + 1, "regime_change")
        record.end_step, record.reason, record.value = step + 2, "attempt", float(fresh.attempts)
    return fresh


def report(state: MonitorState, run: str) -> RunReport:
    """The run as its detectors see it now."""
    steps = None if state.first_step is None or state.last_step is None else (state.first_step, state.last_step)
    return RunReport(run, steps, _status(state), tuple(words.incident(record) for record in state.records))


def dumps(state: MonitorState) -> bytes:
    """The state as bytes; `loads` gives back a state that behaves the same to the bit."""
    if state.waiting is not None:
        with np.errstate(all="ignore"):
            state = _taken(state)
    return pack.dumps(state, STATE_VERSION)


def loads(data: bytes) -> MonitorState:
    """The inverse of `dumps`.

    Raises:
        StateError: damaged bytes, or another version's; replay the run's frames instead.
    """
    state = pack.loads(data, STATE_VERSION, CLASSES)
    if not isinstance(state, MonitorState):
        raise StateError("not a monitor's state")
    return state


def _status(state: MonitorState) -> RunStatus:
    if any(record.kind in BREAKING and record.end_step is None for record in state.records):
        return "diverged"
    return "recovered" if any(r.kind in ("micro_divergence", *BREAKING) for r in state.records) else "healthy"
