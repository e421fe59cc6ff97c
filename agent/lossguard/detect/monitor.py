"""One run's detectors, composed: frames in, incidents out.

The state is a value: `update` returns a new one and leaves the old one as it was. The answer depends on the frames
alone: any split into blocks, a round trip through `dumps` and `loads`, and a replay give the same incidents to the
bit. Memory is bounded whatever the number of steps. NaN is judged, never absorbed.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from lossguard.detect import pack
from lossguard.detect.pack import StateError
from lossguard.wire.frame import Frames
from lossguard.wire.incident import BREAKING, Incident, RunReport, RunStatus

__all__ = ["MonitorState", "StateError", "dumps", "init", "loads", "new_attempt", "report", "update"]

STATE_VERSION = 1
_WINDOW = 64  # frames: the baseline's memory
_MINIMUM = 16  # frames before a voice judges


@dataclass(slots=True)
class Voice:
    """One loss and its baseline."""

    accepted: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Episode:
    """The open episode."""

    number: int
    onset_step: int
    frames: int
    centre: dict[str, float]
    scale: dict[str, float]


@dataclass(slots=True)
class MonitorState:
    """Everything the detectors remember about one run.

    Attributes:
        tasks: task name to kind (`binary` or `regression`), as told or inferred.
        first_step: the first step seen; None before the first frame.
        last_step: the last step judged; None before the first frame.
        attempts: how many attempts were opened so far.
        incidents: all episodes, in the order of their numbers.
    """

    tasks: dict[str, str]
    first_step: int | None = None
    last_step: int | None = None
    attempts: int = 1
    incidents: list[Incident] = field(default_factory=list)
    voices: dict[str, Voice] = field(default_factory=dict)
    episode: Episode | None = None
    nonfinite: int | None = None


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
    state = copy.deepcopy(state)
    losses = [i for i, name in enumerate(frames.schema.scalars) if name == "loss" or name.startswith("loss/")]
    counts = [i for i, name in enumerate(frames.schema.stats) if name == "nonfinite_count"]
    for t in range(len(frames)):
        step = int(frames.steps[t])
        state.first_step = step if state.first_step is None else state.first_step
        values = {frames.schema.scalars[i]: float(frames.scalars[t, i]) for i in losses if frames.scalars_present[t, i]}
        layer = None
        for k in counts:
            hit = np.flatnonzero(~(frames.stats[t, :, k] == 0)) if frames.stats_present[t, k] else np.empty(0, int)
            layer = frames.schema.layers[hit[0]] if len(hit) else layer
        _nonfinite(state, step, [name for name, value in values.items() if not math.isfinite(value)], layer)
        _losses(state, step, values)
        state.last_step = step
    return state


def new_attempt(state: MonitorState, step: int) -> MonitorState:
    """The state after a restart from a checkpoint at `step`: open episodes end there, the baselines begin anew."""
    state = copy.deepcopy(state)
    state.incidents = [i if i.end_step is not None else replace(i, end_step=step + 1) for i in state.incidents]
    state.episode, state.nonfinite, state.voices = None, None, {}
    state.attempts += 1
    state.last_step = step
    return state


def report(state: MonitorState, run: str) -> RunReport:
    """The run as its detectors see it now."""
    steps = None if state.first_step is None or state.last_step is None else (state.first_step, state.last_step)
    return RunReport(run, steps, _status(state), tuple(state.incidents))


def dumps(state: MonitorState) -> bytes:
    """The state as bytes; `loads` gives back a state that behaves the same to the bit."""
    return pack.dumps(state, STATE_VERSION)


def loads(data: bytes) -> MonitorState:
    """The inverse of `dumps`.

    Raises:
        StateError: damaged bytes, or another version's; replay the run's frames instead.
    """
    state = pack.loads(data, STATE_VERSION, (MonitorState, Voice, Episode, Incident))
    if not isinstance(state, MonitorState):
        raise StateError("not a monitor's state")
    return state


def _status(state: MonitorState) -> RunStatus:
    if any(i.kind in BREAKING and i.end_step is None for i in state.incidents):
        return "diverged"
    return "recovered" if any(i.kind in ("micro_divergence", *BREAKING) for i in state.incidents) else "healthy"


def _nonfinite(state: MonitorState, step: int, names: list[str], layer: str | None) -> None:
    if state.nonfinite is not None or not (names or layer):
        return
    state.nonfinite = len(state.incidents)
    tasks = tuple(name.partition("/")[2] for name in names if "/" in name)
    where = layer or ", ".join(names)
    state.incidents.append(
        Incident(
            number=len(state.incidents), kind="nonfinite", onset_step=step, detected_step=step,
            declared_full_step=None, end_step=None, peak_step=step, peak=math.inf, residual=math.inf,
            first_signal_step=None, first_layer=layer, tasks=tasks, confidence=1.0,
            explanation=f"NaN or Inf in {where} at step {step}.",
            advice=f"Stop, and go back to a checkpoint with optimizer slots from before step {step}.",
        )
    )  # fmt: skip


def _losses(state: MonitorState, step: int, values: dict[str, float]) -> None:
    high: list[tuple[str, float]] = []
    calm = True
    for name, value in values.items():
        voice = state.voices.setdefault(name, Voice())
        if not math.isfinite(value):
            continue
        voice.recent = [*voice.recent, value][-15:]
        episode = state.episode
        if episode is not None and name in episode.centre:
            middle = float(np.median(voice.recent))
            calm &= middle <= episode.centre[name] + 3 * episode.scale[name]
            continue
        if len(voice.accepted) >= _MINIMUM:
            centre = float(np.median(voice.accepted))
            scale = max(1.4826 * float(np.median(np.abs(np.array(voice.accepted) - centre))), 0.02 * abs(centre))
            if float(np.median(voice.recent[-3:])) > centre + 8 * scale:
                high.append((name, (value - centre) / scale))
        voice.accepted = [*voice.accepted, value][-_WINDOW:]
    episode = state.episode
    if episode is None and high:
        name, peak = max(high, key=lambda item: item[1])
        statistics = {n: np.array(v.accepted[:-3]) for n, v in state.voices.items() if len(v.accepted) >= _MINIMUM}
        centres = {n: float(np.median(a)) for n, a in statistics.items()}
        scales = {
            n: max(1.4826 * float(np.median(np.abs(a - centres[n]))), 0.02 * abs(centres[n]))
            for n, a in statistics.items()
        }
        number = len(state.incidents)
        state.episode = Episode(number, step, 0, centres, scales)
        tasks = tuple(n.partition("/")[2] for n, _ in high if "/" in n)
        state.incidents.append(
            Incident(
                number=number, kind="micro_divergence", onset_step=step, detected_step=step, declared_full_step=None,
                end_step=None, peak_step=step, peak=peak, residual=0.0, first_signal_step=None, first_layer=None,
                tasks=tasks, confidence=0.5, explanation=f"The {name} left its baseline at step {step}.",
                advice="Keep the checkpoints from before it.",
            )
        )  # fmt: skip
    elif episode is not None:
        episode.frames += 1
        incident = state.incidents[episode.number]
        if calm and episode.frames >= 15:
            state.incidents[episode.number] = replace(incident, kind="micro_divergence", end_step=step)
            state.episode = None
        elif episode.frames == 60:
            state.incidents[episode.number] = replace(
                incident, kind="full_divergence", declared_full_step=step,
                advice="Go back to a checkpoint with optimizer slots from before it, with half the learning rate.",
            )  # fmt: skip
