"""What a Watch does by itself about a divergence, where its user opted in: stop, or go back and change something.

Guarantees. The detectors are the service's, run on the same frames in the fetch thread, so that nothing waits for the
service; the training thread only looks at their answer between two executions. Nothing happens before an incident of a
breaking kind is open.

Errors: `TrainingStopped`, raised by `stop`, and by `rollback` when it has nothing left to try. It is the one exception
of ours that reaches the training, and only for those who asked for it. Why not `model.stop_training` alone: decision
0203.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from lossguard.guard import guarded
from lossguard.keras.fetch import Sink
from lossguard.keras.remedy import CHANGES, Change, Remedy
from lossguard.keras.snapshots import Snapshot, Snapshots
from lossguard.keras.treatments.base import Treatment
from lossguard.wire.chunk import AttemptEnd, Event
from lossguard.wire.frame import Frames
from lossguard.wire.incident import BREAKING, Incident

if TYPE_CHECKING:
    from lossguard.detect.monitor import MonitorState

FETCH_STEPS: Final = 16
"""Rows are fetched at least so often while somebody waits to act: the detectors see nothing earlier."""

_log = logging.getLogger("lossguard")


class TrainingStopped(RuntimeError):
    """The run diverged and its user had asked for a stop.

    The attempt is closed, weights are as they were at the last step, and no other callback was told that the training
    ended, so backups and checkpoints lie where they lay. Start again from one that the message's step clears.
    """


@dataclass(frozen=True, slots=True)
class Rollback:
    """How to go back by oneself; `on_full_divergence="rollback"` means the defaults.

    Attributes:
        snapshot_steps: a copy of weights and optimizer state is taken every so many steps ...
        keep: ... and so many are kept in the host's memory, each as large as a checkpoint.
        then: what is changed after the first rollback; after each further one the learning rate is halved.
        limit: so many rollbacks, then the training is stopped.
    """

    snapshot_steps: int = 50
    keep: int = 8
    then: Change = "clippy"
    limit: int = 3

    def __post_init__(self) -> None:
        for name in ("snapshot_steps", "keep", "limit"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name}: must be a whole number of at least 1, got {number!r}")
        if self.then not in CHANGES:
            raise ValueError(f"then: must be one of {', '.join(CHANGES)}, got {self.then!r}")


OnFullDivergence = Literal["advise", "stop", "rollback"] | Rollback


@dataclass(frozen=True, slots=True)
class Trainee:
    """The training, as a reaction needs it.

    Attributes:
        updates: updates so far; copies one integer from the device.
        state: weights and optimizer state, as Keras variables; empty while the optimizer is not built.
        new_attempt: ends the attempt, calls its argument, and opens the next one at the step that it led to.
    """

    updates: Callable[[], int]
    state: Callable[[], Sequence[Any]]
    new_attempt: Callable[[Callable[[], None]], None]


class Reaction:
    """Looks out for a divergence and acts on it.

    Args:
        rollback: how to go back; None stops.
        treatments: the user's.
    """

    def __init__(self, rollback: Rollback | None, treatments: Sequence[Treatment]) -> None:
        self._rollback = rollback
        self._remedy = None if rollback is None else Remedy(rollback.then, treatments)
        self._snapshots = Snapshots(1 if rollback is None else rollback.keep)
        # Only here, for those who opted in: a megabyte that other trainers need not pay.
        from lossguard.detect import monitor

        self._detectors = monitor
        self._monitor: MonitorState | None = None
        self._episodes: tuple[Incident, ...] = ()
        self._listener: _Listener | None = None
        self._since_snapshot = 0
        self._rollbacks: list[dict[str, Any]] = []

    @property
    def treatments(self) -> tuple[Treatment, ...]:
        """What must be in the compiled step for a later change."""
        return () if self._remedy is None else self._remedy.treatments

    @property
    def config(self) -> dict[str, Any]:
        """For the attempt's config: what was done so far."""
        return {"rollbacks": list(self._rollbacks)} if self._rollbacks else {}

    def begin(self, sink: Sink, tasks: Mapping[str, str], trainee: Trainee) -> Sink:
        """An attempt begins; the answer is the sink that its frames must go to."""
        step = trainee.updates()
        detectors, before = self._detectors, self._monitor
        self._monitor = detectors.init(tasks) if before is None else detectors.new_attempt(before, step)
        self._episodes = detectors.report(self._monitor, "").incidents
        if self._listener is not None:
            self._listener.deaf = True
        self._listener = _Listener(sink, self._hear)
        if step not in self._snapshots.steps:
            self._snapshot(trainee, step)
        return self._listener

    def turn(self, steps: int, trainee: Trainee) -> str:
        """Between two executions, `steps` after the last call: act if it is time.

        Returns:
            Why the training must stop now; empty if it need not.
        """
        episode = next((one for one in self._episodes if one.kind in BREAKING and one.end_step is None), None)
        if episode is None:
            self._since_snapshot += steps
            # In an episode that may yet become a full divergence copies would only push the good ones out.
            if self._rollback and self._since_snapshot >= self._rollback.snapshot_steps and not self._in_episode():
                self._snapshot(trainee, trainee.updates())
            return ""
        what = f"{episode.kind.replace('_', ' ')} since step {episode.onset_step}: {episode.explanation}"
        if self._rollback is None:
            return what
        if len(self._rollbacks) >= self._rollback.limit:
            return f"{what} It was rolled back {len(self._rollbacks)} times before."
        snapshot = self._snapshots.newest_good(self._episodes)
        if snapshot is None:
            return f"{what} No snapshot is older than its first sign; take them more often or keep more (Rollback)."
        self._go_back(snapshot, episode, trainee)
        return ""

    def _go_back(self, snapshot: Snapshot, episode: Incident, trainee: Trainee) -> None:
        step = trainee.updates()

        def back() -> None:
            snapshot.restore(trainee.state())
            self._snapshots.forget_after(snapshot.step)
            changed = "" if self._remedy is None else self._remedy.change()
            done = {"from_step": step, "to_step": snapshot.step, "onset_step": episode.onset_step, "changed": changed}
            self._rollbacks.append(done)
            _log.warning(
                "Lossguard: %s at step %d; weights and optimizer are back at step %d, and %s",
                episode.kind.replace("_", " "), episode.onset_step, snapshot.step, changed,
            )  # fmt: skip

        trainee.new_attempt(back)

    def _in_episode(self) -> bool:
        return any(one.kind in (*BREAKING, "micro_divergence") and one.end_step is None for one in self._episodes)

    def _snapshot(self, trainee: Trainee, step: int) -> None:
        self._since_snapshot = 0
        variables = trainee.state() if self._rollback is not None else ()
        if variables:
            self._snapshots.add(Snapshot(step, variables))

    @guarded("Reaction.hear", None)
    def _hear(self, frames: Frames) -> None:
        """In the fetch thread."""
        self._snapshots.fetch()
        assert self._monitor is not None
        self._monitor = self._detectors.update(self._monitor, frames)
        self._episodes = self._detectors.report(self._monitor, "").incidents


class _Listener:
    """A sink that lets somebody hear the frames, behind the one that stores them."""

    def __init__(self, sink: Sink, hear: Callable[[Frames], None]) -> None:
        self.sink = sink
        self.deaf = False
        self._hear = hear

    @property
    def attempt(self) -> str | None:
        """The attempt's key."""
        return getattr(self.sink, "attempt", None)

    def record(self, frames: Frames) -> bool:
        recorded = self.sink.record(frames)
        if not self.deaf:
            self._hear(frames)
        return recorded

    def event(self, event: Event) -> bool:
        return self.sink.event(event)

    def drop(self, reason: str, count: int) -> None:
        self.sink.drop(reason, count)

    def seal(self) -> None:
        self.sink.seal()

    def close(self, reason: AttemptEnd = "finished", timeout_seconds: float = 30.0, *, skipped_steps: int = 0) -> None:
        self.sink.close(reason, timeout_seconds, skipped_steps=skipped_steps)


def reaction_of(chosen: OnFullDivergence, treatments: Sequence[Treatment]) -> Reaction | None:
    """The reaction of that name; None for `advise`, which leaves it to people and the service.

    Raises:
        ValueError: there is none of that name.
    """
    match chosen:
        case "advise":
            return None
        case "stop":
            return Reaction(None, treatments)
        case "rollback":
            return Reaction(Rollback(), treatments)
        case Rollback():
            return Reaction(chosen, treatments)
    raise ValueError(f"on_full_divergence: must be 'advise', 'stop', 'rollback' or a Rollback, got {chosen!r}")
