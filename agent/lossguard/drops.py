"""Why a frame was dropped: the closed list.

A dropped frame is a fact. Every drop has one of these reasons and a count, and the counts since the last sealed chunk
travel in the next chunk's `drops`, so that the service and its gate know. Reasons are only ever added: stored chunks
hold the old ones.
"""

from threading import Lock
from typing import Final

QUEUE_FULL: Final = "queue_full"
JOURNAL_FULL: Final = "journal_full"
DISK_FULL: Final = "disk_full"
DISK_ERROR: Final = "disk_error"
OUT_OF_ORDER: Final = "out_of_order"
NOT_ENCODABLE: Final = "not_encodable"
CLOSED: Final = "closed"
RING_OVERRUN: Final = "ring_overrun"
REFUSED: Final = "refused"
INTERNAL_ERROR: Final = "internal_error"

MEANING: Final = {
    QUEUE_FULL: "the hand-off to the journal was full: the disk is slower than the training",
    JOURNAL_FULL: "the run's journal reached journal_bytes: nobody ships it",
    DISK_FULL: "no space (or quota) left on the journal's disk",
    DISK_ERROR: "the journal's disk answered with an error",
    OUT_OF_ORDER: "its step was not after the last recorded one",
    NOT_ENCODABLE: "the chunk format cannot hold it: a frame too large, or a name it does not allow",
    CLOSED: "it came after close()",
    RING_OVERRUN: "the ring on the device was overwritten before it was read",
    REFUSED: "the service, or a proxy before it, refused its chunk, which the sidecar has set aside",
    INTERNAL_ERROR: "an error of ours, logged and swallowed",
}

REASONS: Final = tuple(MEANING)


class DropCounts:
    """Counts by reason, from any thread.

    `take` hands the counts to a chunk, `give_back` returns them if that chunk was not sealed; `total` never goes down.

    >>> counts = DropCounts()
    >>> counts.add(QUEUE_FULL, 2)
    >>> counts.take(), counts.take(), counts.total()
    ({'queue_full': 2}, {}, {'queue_full': 2})
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: dict[str, int] = {}
        self._total: dict[str, int] = {}

    def add(self, reason: str, count: int) -> None:
        """Count dropped frames.

        Raises:
            ValueError: a reason that is not in the list, or a count below 1.
        """
        if reason not in MEANING:
            raise ValueError(f"reason: must be one of {', '.join(REASONS)}, got {reason!r}")
        if count < 1:
            raise ValueError(f"count: must be 1 or more, got {count}")
        with self._lock:
            self._waiting[reason] = self._waiting.get(reason, 0) + count
            self._total[reason] = self._total.get(reason, 0) + count

    def take(self) -> dict[str, int]:
        """The counts since the last `take`, for the next chunk."""
        with self._lock:
            taken, self._waiting = self._waiting, {}
        return taken

    def give_back(self, counts: dict[str, int]) -> None:
        """The chunk that took them was not sealed."""
        with self._lock:
            for reason, count in counts.items():
                self._waiting[reason] = self._waiting.get(reason, 0) + count

    def total(self) -> dict[str, int]:
        """All counts so far."""
        with self._lock:
            return dict(self._total)

    def forget_lock(self) -> None:
        """For a forked child: another thread of the parent may have held the lock at the fork."""
        self._lock = Lock()
