"""From the rings on the device to the recorder, off the training thread.

The training thread takes a snapshot of the new rows (a gather on the device) and hands it over; this thread waits for
the copy, makes frames of it and records them. The hand-over never waits: if 64 snapshots lie there unread, the next
one is dropped and counted.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from keras import ops

from lossguard import drops
from lossguard.guard import guarded
from lossguard.keras.ring import Layout, frames_of, numbered
from lossguard.wire.chunk import AttemptEnd, Event
from lossguard.wire.frame import Floats64, Frames, Schema

MAX_WAITING: Final = 64


class Sink(Protocol):
    """Where frames go: `lossguard.recorder.Recorder`, or what a test puts in its place."""

    def record(self, frames: Frames) -> bool:
        """Take frames; False if some were dropped and counted."""

    def event(self, event: Event) -> bool:
        """Take an event; False after the end."""

    def drop(self, reason: str, count: int) -> None:
        """Count frames that were lost on the way here."""

    def seal(self) -> None:
        """Let what was taken so far come to disk soon; does not wait."""

    def close(self, reason: AttemptEnd = "finished", timeout_seconds: float = 30.0, *, skipped_steps: int = 0) -> None:
        """End the attempt, `skipped_steps` after its last frame."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """New rows of all rings.

    Attributes:
        first: the step of the first row.
        times: float64 [T], Unix seconds at which the rows' steps ended.
        parts: layout and device tensor of each ring.
        after: for each ring, the device tensor of its layers' norms after the last of these steps; empty if not taken.
    """

    first: int
    times: Floats64
    parts: tuple[tuple[Layout, Any], ...]
    after: tuple[Any, ...] = ()


class Fetcher:
    """The thread, one per attempt."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._queue: queue.Queue[Snapshot | Event | Callable[[], None] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._work, name="lossguard-fetch", daemon=True)
        self._thread.start()

    def hand_over(self, snapshot: Snapshot) -> bool:
        """Give the thread a snapshot; False if it was dropped."""
        try:
            self._queue.put_nowait(snapshot)
        except queue.Full:
            self.sink.drop(drops.QUEUE_FULL, len(snapshot.times))
            return False
        return True

    def event(self, event: Event) -> bool:
        """Hand an event on, behind the frames before it; False if it was lost."""
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            return self.sink.event(event)
        return True

    def seal(self) -> None:
        """Let the frames so far come to disk soon, once they are frames."""
        self.run(self.sink.seal)

    def run(self, job: Callable[[], None]) -> bool:
        """Let the thread do something else, once; False if it has too much to do."""
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            return False
        return True

    def close(self, timeout_seconds: float) -> None:
        """Record what waits, then end the thread."""
        deadline = time.monotonic() + timeout_seconds
        try:
            self._queue.put(None, timeout=timeout_seconds)
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            self._do(item)

    @guarded("Fetcher.do", None)
    def _do(self, item: Snapshot | Event | Callable[[], None]) -> None:
        if callable(item):
            item()
        elif not isinstance(item, Snapshot):
            self.sink.event(item)
        elif not self._record(item):
            self.sink.drop(drops.INTERNAL_ERROR, len(item.times))

    @guarded("Fetcher.record", False)
    def _record(self, snapshot: Snapshot) -> bool:
        norms = [ops.convert_to_numpy(one) for one in snapshot.after] or [None] * len(snapshot.parts)
        blocks = [
            frames_of(layout, snapshot.first, ops.convert_to_numpy(rows), snapshot.times, after)
            for (layout, rows), after in zip(snapshot.parts, norms, strict=True)
        ]
        self.sink.record(side_by_side(blocks))
        return True


def side_by_side(blocks: list[Frames]) -> Frames:
    """Frames of the same steps from several rings as one block, the scalars and layers of the first first.

    A name that stands in several (two models of one name) is numbered.
    """
    if len(blocks) == 1:
        return blocks[0]
    first = blocks[0]
    return Frames(
        schema=Schema(
            numbered(name for block in blocks for name in block.schema.scalars),
            numbered(name for block in blocks for name in block.schema.layers),
            first.schema.stats,
        ),
        steps=first.steps,
        times=first.times,
        scalars=np.concatenate([block.scalars for block in blocks], 1),
        stats=np.concatenate([block.stats for block in blocks], 1),
        scalars_present=np.concatenate([block.scalars_present for block in blocks], 1),
        stats_present=np.logical_and.reduce([block.stats_present for block in blocks]),
    )
