"""What passes from the threads that train to the one that records: frames, events and wake-ups.

Guarantees. Handing over takes a lock that is only ever held for a few instructions, waits for nothing, and answers yes
or no; what it answers no to is counted by reason. Steps increase. What waits is bounded in bytes. After `end` nothing
is taken any more, in a forked child nothing from the beginning.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue

from lossguard import drops
from lossguard.journal.sealer import frame_bytes
from lossguard.wire.chunk import AttemptEnd, AttemptStart, AttemptStop, Event
from lossguard.wire.frame import Frames


class Handoff:
    """One attempt's.

    Args:
        start: the attempt's first event.
        counts: the drops.
        queue_bytes: bound of what waits here and behind.
        wake_frames: so many frames wake the recorder's thread.
    """

    def __init__(self, start: AttemptStart, counts: drops.DropCounts, *, queue_bytes: int, wake_frames: int) -> None:
        self._counts = counts
        self._queue_bytes = queue_bytes
        self._wake_frames = wake_frames
        self._queue: deque[Frames | Event] = deque([start])
        # Only producers take this lock, and only for a few instructions; reentrant because a signal handler may record.
        self._producers = threading.RLock()
        self._last_step = start.step
        self._closed = False
        self.newest_step = start.step
        self.frames_in = self._bytes_in = 0
        self._frames_taken = self._bytes_taken = 0
        # Tokens, not an Event: `put` is one C call, while `Event.set` takes a lock that the recorder's thread may hold
        # when the operating system takes it off the core.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self.wake()

    # --- the training threads

    def frames(self, frames: Frames, waiting_bytes: int, refusal: str | None) -> bool:
        """Hand frames over.

        Args:
            frames: what to record; their arrays are kept.
            waiting_bytes: what was taken and waits for the disk.
            refusal: why the disk does not take it, which is then the reason of a drop.

        Returns:
            False if any of them was dropped and counted.
        """
        count = len(frames)
        if count == 0:
            return True
        complete = True
        with self._producers:
            if self._closed:
                self._counts.add(drops.CLOSED, count)
                return False
            newest = self.newest_step = int(frames.steps[-1])
            if frames.steps[0] <= self._last_step:
                late = int((frames.steps <= self._last_step).sum())
                self._counts.add(drops.OUT_OF_ORDER, late)
                if late == count:
                    return False
                frames, count, complete = frames[late:], count - late, False
            size = frame_bytes(frames)
            if self._bytes_in - self._bytes_taken + waiting_bytes + size > self._queue_bytes:
                self._counts.add(refusal or drops.QUEUE_FULL, count)
                return False
            self._last_step = newest
            self._bytes_in += size
            self.frames_in += count
            self._queue.append(frames)
        if self.frames_in - self._frames_taken >= self._wake_frames and self._wake.empty():
            self.wake()
        return complete

    def event(self, event: Event) -> bool:
        """Hand an event over, behind the frames so far; False after the end."""
        with self._producers:
            if self._closed:
                return False
            self._queue.append(event)
        self.wake()
        return True

    def end(self, reason: AttemptEnd | None, skipped_steps: int = 0) -> bool:
        """Take nothing any more, but the event that says so if there is a reason; False if it has ended before."""
        with self._producers:
            if self._closed:
                return False
            if reason is not None:
                self._queue.append(AttemptStop(self._last_step, time.time(), reason, skipped_steps))
            self._closed = True
        return True

    def wake(self) -> None:
        """Let the recorder's thread look."""
        self._wake.put(None)

    # --- the recorder's thread

    def sleep(self, seconds: float) -> None:
        """Wait until there is something to do, or so long."""
        with suppress(Empty):
            self._wake.get(timeout=max(0.0, seconds))
            while True:
                self._wake.get_nowait()

    def take(self) -> Iterator[Frames | Event]:
        """What was handed over, in order; a block counts as waiting here until the next one is asked for."""
        while self._queue:
            item = self._queue.popleft()
            yield item
            if isinstance(item, Frames):
                self._bytes_taken += frame_bytes(item)
                self._frames_taken += len(item)

    def forget_in_child(self) -> None:
        """In a forked child: locks that another thread held are nobody's any more."""
        self._closed = True
        self._producers = threading.RLock()
        self._wake = SimpleQueue()
        self._queue.clear()
