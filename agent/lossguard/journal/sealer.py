"""Groups frames and events into chunks and has them sealed: what the recorder's thread does, without the thread.

Guarantees. Frames are sealed in their order, each once; a chunk ends after `seal_frames` frames, at a change of the
schema, with an event, or when `flush` says so. While the disk refuses, frames and events wait here; whoever hands them
over bounds them (`waiting_bytes`). Events are never given up. The drops counted so far travel in every sealed chunk.
"""

import errno
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import numpy as np

from lossguard import drops
from lossguard.journal.writer import JournalFull
from lossguard.wire.chunk import MAX_FRAMES, Chunk, ChunkError, ChunkId, Event, encode
from lossguard.wire.frame import Frames, Schema

MAX_CHUNK_ARRAY_BYTES: Final = 8 << 20
"""A chunk is sealed early at this size, so that one body stays small; one larger frame is a chunk of its own."""


MAX_CHUNK_EVENTS: Final = 24
"""So many fit into a chunk's header, whatever their paths."""

_log = logging.getLogger("lossguard")


class Journal(Protocol):
    """Where sealed chunks go: `lossguard.journal.writer.JournalWriter`."""

    next_index: int

    def append(self, chunk: bytes) -> int:
        """Seal under `next_index`; raises and adds nothing if it cannot."""
        ...


def frame_bytes(frames: Frames) -> int:
    """Bytes of the block's arrays."""
    return int(
        frames.stats.nbytes
        + frames.scalars.nbytes
        + frames.steps.nbytes * 2
        + frames.scalars_present.nbytes
        + frames.stats_present.nbytes
    )


class Sealer:
    """One attempt's frames on their way to the journal. For one thread.

    Args:
        identity: project, run and attempt; the index is the journal's.
        open_journal: makes the journal; called again as long as it raises `OSError`.
        counts: the drops.
        seal_frames: frames per chunk.
        mantissa_bits: see `lossguard.wire.chunk.encode`.
    """

    def __init__(
        self,
        identity: ChunkId,
        open_journal: Callable[[], Journal],
        counts: drops.DropCounts,
        *,
        seal_frames: int,
        mantissa_bits: int,
    ) -> None:
        self._identity = identity
        self._open_journal = open_journal
        self._journal: Journal | None = None
        self._counts = counts
        self._seal_frames = min(seal_frames, MAX_FRAMES)
        self._mantissa_bits = mantissa_bits
        self._waiting: deque[Frames | Event] = deque()
        self._rows = 0
        self._empty = Schema(())
        self.waiting_bytes = 0
        self.frames_sealed = 0
        self.chunks_sealed = 0
        self.bytes_sealed = 0
        self.last_sealed_step: int | None = None
        self.refusal: str | None = None
        """Why the disk did not take the last chunk: a drop reason, None if it did."""

    def add(self, item: Frames | Event) -> None:
        """Take frames or an event; `seal` acts on them."""
        self._waiting.append(item)
        if isinstance(item, Frames):
            self._rows += len(item)
            self.waiting_bytes += frame_bytes(item)

    @property
    def waiting(self) -> bool:
        """True if something is not sealed yet."""
        return bool(self._waiting)

    def seal(self, *, flush: bool) -> bool:
        """Seal what makes whole chunks; with `flush`, everything.

        Returns:
            False if the disk refused; what waits can be tried again later.
        """
        while self._waiting:
            taken, events, whole = self._next_chunk()
            if not (whole or flush):
                break
            if not self._seal(taken, events):
                return False
        return True

    def _next_chunk(self) -> tuple[list[Frames], list[Event], bool]:
        """The next chunk's frames and events, and whether it has an end of its own. Takes nothing away."""
        taken: list[Frames] = []
        rows = size = 0
        items = iter(self._waiting)
        for item in items:
            if not isinstance(item, Frames):
                events = [item]
                for following in items:
                    if isinstance(following, Frames) or len(events) >= MAX_CHUNK_EVENTS:
                        break
                    events.append(following)
                return taken, events, True
            if taken and item.schema is not taken[0].schema and item.schema != taken[0].schema:
                return taken, [], True
            per_row = max(1, frame_bytes(item) // max(1, len(item)))
            room = min(self._seal_frames - rows, max(0 if taken else 1, (MAX_CHUNK_ARRAY_BYTES - size) // per_row))
            if room < len(item):
                if room > 0:
                    taken.append(item[:room])
                return taken, [], True
            taken.append(item)
            rows += len(item)
            size += per_row * len(item)
        return taken, [], rows >= self._seal_frames

    def _seal(self, taken: list[Frames], events: list[Event]) -> bool:
        counts = self._counts.take()
        try:
            if self._journal is None:
                self._journal = self._open_journal()
            frames = _joined(taken) if taken else _no_frames(self._empty)
            identity = ChunkId(
                self._identity.project, self._identity.run, self._identity.attempt, self._journal.next_index
            )
            data = encode(Chunk(identity, frames, counts, tuple(events)), mantissa_bits=self._mantissa_bits)
            self._journal.append(data)
        except (OSError, JournalFull) as error:
            self._counts.give_back(counts)
            self.refusal = _reason(error)
            return False
        except ChunkError as error:
            self._counts.give_back(counts)
            self._give_up(taken, events, error)
            return True
        self.refusal = None
        self._remove(taken, events)
        self.chunks_sealed += 1
        self.bytes_sealed += len(data)
        self.frames_sealed += len(frames)
        if len(frames):
            self.last_sealed_step = int(frames.steps[-1])
        return True

    def _give_up(self, taken: list[Frames], events: list[Event], error: ChunkError) -> None:
        # Trying again is no use. A frame's events are kept: what is wrong may be the frames alone.
        rows = sum(len(block) for block in taken)
        if rows:
            self._counts.add(drops.NOT_ENCODABLE, rows)
            self._remove(taken, [])
        else:
            self._remove([], events)
        _log.warning("Lossguard: %d frames and %d events do not fit into a chunk: %s", rows, len(events), error)

    def _remove(self, taken: list[Frames], events: list[Event]) -> None:
        rows = sum(len(block) for block in taken)
        self._rows -= rows
        while rows:
            first = self._waiting.popleft()
            assert isinstance(first, Frames)
            self.waiting_bytes -= frame_bytes(first)
            if len(first) > rows:
                rest = first[rows:]
                self._waiting.appendleft(rest)
                self.waiting_bytes += frame_bytes(rest)
                rows = 0
            else:
                rows -= len(first)
        for _ in events:
            self._waiting.popleft()

    def abandon(self, reason: str = drops.QUEUE_FULL) -> int:
        """Forget what waits, counted under the disk's last refusal or else this reason; the number of frames."""
        rows = self._rows
        if rows:
            self._counts.add(self.refusal or reason, rows)
        self._waiting.clear()
        self._rows = 0
        self.waiting_bytes = 0
        return rows


def _reason(error: OSError | JournalFull) -> str:
    if isinstance(error, JournalFull):
        return drops.JOURNAL_FULL
    return drops.DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else drops.DISK_ERROR


def _joined(blocks: list[Frames]) -> Frames:
    if len(blocks) == 1:
        return blocks[0]
    return Frames(
        schema=blocks[0].schema,
        steps=np.concatenate([block.steps for block in blocks]),
        times=np.concatenate([block.times for block in blocks]),
        scalars=np.concatenate([block.scalars for block in blocks]),
        stats=np.concatenate([block.stats for block in blocks]),
        scalars_present=np.concatenate([block.scalars_present for block in blocks]),
        stats_present=np.concatenate([block.stats_present for block in blocks]),
    )


def _no_frames(schema: Schema) -> Frames:
    return Frames.of(schema, [], [])
