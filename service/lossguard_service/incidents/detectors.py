"""The detectors of all runs that this replica sees: in memory, rebuilt from stored chunks wherever they are not.

`advance` judges a run's lineage as far as it goes and gives the same answer whoever calls it, in whatever order the
chunks came. Memory is bounded by the number of runs; a run that is dropped costs a replay from its last snapshot.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy.engine import Connection

from lossguard.detect import monitor
from lossguard.detect.record import Record
from lossguard.wire.frame import Frames
from lossguard.wire.incident import RunReport
from lossguard_service.incidents.position import Consumed, Position, from_document, is_beginning, to_document
from lossguard_service.recent import Recent
from lossguard_service.store import chunks, states
from lossguard_service.store.bytes import BytesLost
from lossguard_service.store.database import offload
from lossguard_service.store.lineage import Stretch
from lossguard_service.store.record import config_of

SNAPSHOT_FRAMES: Final = 4096
"""A snapshot is written when so many frames were judged since the last one: a replay of less than a second."""
_INLINE_VALUES: Final = 200_000
"""Larger blocks are judged off the event loop. A millisecond at most for smaller ones, in which Python's lock is held
nearly all the time: another thread would only make two of them wait for it."""


class FramesGone(LookupError):
    """Frames that would have to be judged anew are kept no more; the run stays judged as far as it was."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A detector state and what it has seen.

    Attributes:
        position: see `lossguard_service.incidents.position`.
        state: the monitor's state.
        frames: frames judged.
        saved_frames: frames judged as of the newest snapshot that this replica knows of.
    """

    position: Position
    state: monitor.MonitorState
    frames: int
    saved_frames: int

    @property
    def judged_step(self) -> int | None:
        """The last step judged."""
        return next((one.through for one in reversed(self.position) if one.through is not None), None)

    @property
    def records(self) -> list[Record]:
        """What the report's incidents and status follow from; not to be changed."""
        return self.state.records

    def report(self, run: str) -> RunReport:
        """The run as its detectors see it."""
        return monitor.report(self.state, run)


class Detectors:
    """Detector states by run; see the module. One per replica, used from any thread."""

    def __init__(self, *, runs: int = 2000) -> None:
        if runs < 1:
            raise ValueError(f"runs: at least one run must fit, got {runs}")
        self._judged: Recent[int, Judged] = Recent(runs)

    def advance(
        self, connection: Connection, run_id: int, plan: Sequence[Stretch], fresh: Mapping[tuple[int, int], Frames]
    ) -> Judged | None:
        """Judge what is not judged yet; None while the lineage is empty.

        Args:
            connection: inside the transaction that holds the run's lock, or what stands for one
                (`lossguard_service.store.without`): a state that is held and frames that are fresh ask nothing of it.
            run_id: which run.
            plan: its lineage now.
            fresh: frames of chunks by (attempt, index) that need not be read from the store.
        """
        if not plan:
            return None
        judged = self._start(connection, run_id, plan)
        place = max(0, len(judged.position) - 1)
        for stretch in plan[place:]:
            judged = _judge(connection, run_id, judged, stretch, fresh)
        if judged.frames - judged.saved_frames >= SNAPSHOT_FRAMES:
            states.add(connection, run_id, to_document(judged.position), judged.frames, monitor.dumps(judged.state))
            judged = Judged(judged.position, judged.state, judged.frames, judged.frames)
        self._judged.put(run_id, judged)
        return judged

    def forget(self, run_id: int) -> None:
        """Drop a run's state, for example because the transaction that advanced it failed."""
        self._judged.drop(run_id)

    def _start(self, connection: Connection, run_id: int, plan: Sequence[Stretch]) -> Judged:
        held = self._judged.get(run_id)
        if held is not None and is_beginning(held.position, plan):
            return held
        for snapshot in states.snapshots_of(connection, run_id):
            position = from_document(snapshot.position)
            if not is_beginning(position, plan):
                continue
            try:
                state = monitor.loads(states.state_of(connection, run_id, snapshot.sequence))
            except monitor.StateError:
                continue  # written by another version: the frames are the truth
            return Judged(position, state, snapshot.frames, snapshot.frames)
        return Judged((), _initial(config_of(connection, run_id, plan[0].attempt)), 0, 0)


def _initial(config: Mapping[str, object]) -> monitor.MonitorState:
    tasks = config.get("tasks")
    try:
        return monitor.init({str(k): str(v) for k, v in tasks.items()} if isinstance(tasks, dict) else None)
    except ValueError:
        # A kind that this version does not know: judge by the scalars' names rather than not at all.
        return monitor.init()


def _judge(
    connection: Connection,
    run_id: int,
    judged: Judged,
    stretch: Stretch,
    fresh: Mapping[tuple[int, int], Frames],
) -> Judged:
    position, state, frames = judged.position, judged.state, judged.frames
    if not position or position[-1].attempt != stretch.attempt:
        if position:
            state = monitor.new_attempt(state, stretch.start_step)
        position = (*position, Consumed(stretch.attempt, stretch.start_step, 0, None))
    mine = position[-1]
    for index, block in _blocks(connection, run_id, stretch, mine.next_index, fresh):
        if mine.through is not None and mine.through == stretch.limit:
            break
        # A trainer that repeats steps within an attempt is judged on the first time it sends them.
        after = stretch.start_step if mine.through is None else mine.through
        counted = chunks.cut(block, after=after, until=stretch.limit)
        through = mine.through
        if len(block) and block.steps[-1] > after:
            last = int(block.steps[-1])
            through = last if stretch.limit is None else min(last, stretch.limit)
        if len(counted):
            state = _update(state, counted)
            frames += len(counted)
        mine = Consumed(stretch.attempt, stretch.start_step, index + 1, through)
    return Judged((*position[:-1], mine), state, frames, judged.saved_frames)


def _update(state: monitor.MonitorState, frames: Frames) -> monitor.MonitorState:
    work: Callable[[], monitor.MonitorState] = lambda: monitor.update(state, frames)  # noqa: E731
    return offload(work) if is_large(frames) else work()


def is_large(frames: Frames) -> bool:
    """Whether frames are judged off the event loop."""
    return frames.stats.size + frames.scalars.size > _INLINE_VALUES


def _blocks(
    connection: Connection,
    run_id: int,
    stretch: Stretch,
    first: int,
    fresh: Mapping[tuple[int, int], Frames],
) -> Iterable[tuple[int, Frames]]:
    index = first
    while index < stretch.next_index:
        if (stretch.attempt, index) in fresh:
            yield index, fresh[stretch.attempt, index]
            index += 1
            continue
        end = index
        while end < stretch.next_index and (stretch.attempt, end) not in fresh:
            end += 1
        try:
            for place, frames in chunks.decoded(connection, run_id, stretch.attempt, index, end):
                if place != index:
                    break
                yield place, frames
                index += 1
        except BytesLost as error:
            raise FramesGone(str(error)) from None
        if index != end:
            raise FramesGone(f"chunk {index} of attempt {stretch.attempt} is no longer kept in full")
