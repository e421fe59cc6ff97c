"""Ships one run: its attempts in the order of their start, their chunks in order.

Guarantees. A chunk is passed only when the service has it or when it was set aside with its reason; anything else ends
the turn, and the next one begins at the same chunk. In the place of one that is set aside or rotted the service gets an
empty chunk, or it would wait for that index and judge nothing behind it. An attempt's folder is deleted when its
trainer is gone and all of it was acknowledged.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from lossguard import drops
from lossguard.journal.heartbeat import FOLDER_NAME, Heartbeat, forget, heartbeats
from lossguard.journal.layout import attempt_folders, segments
from lossguard.journal.reader import AttemptReader, Cut, RunLock, remove_stillborn
from lossguard.journal.segment import Record
from lossguard.sidecar.client import Accepted, Failed, Outcome, Refused
from lossguard.wire.chunk import Chunk, ChunkError, ChunkId, decode, encode, outline
from lossguard.wire.frame import Frames, Schema

CHUNKS_PER_TURN: Final = 64
"""A run with a long backlog lets the others have a turn after so many chunks."""

_NO_FRAMES: Final = Frames.of(Schema(()), [], [])
_log = logging.getLogger("lossguard.sidecar")


class Service(Protocol):
    """What a shipper needs of a service: `lossguard.sidecar.client.Client`."""

    def put_chunk(self, identity: ChunkId, data: bytes) -> Outcome:
        """Send a chunk; never raises for what a network or a server does."""
        ...

    def put_heartbeat(self, project: str, run: str, document: dict[str, object]) -> bool:
        """Say that a run's trainer lives."""
        ...


@dataclass(slots=True)
class Shipped:
    """What one run's shipping did so far."""

    chunks: int = 0
    duplicates: int = 0
    bytes: int = 0
    refused: int = 0
    retries: int = 0
    attempts_finished: int = 0
    cut: Cut = field(default_factory=Cut)


@dataclass(frozen=True, slots=True)
class Turn:
    """How a turn ended: with a failure, with more to send (`more`), or with nothing left for now.

    `elsewhere` are the bytes that wait in a run that another process ships. `passed` counts the chunks that the service
    took or refused before that. `empty_since` is the time (ns) at which the run's folder last changed if there is no
    attempt in it: nothing can come before it changes again.
    """

    failure: Failed | None = None
    more: bool = False
    elsewhere: int = 0
    passed: int = 0
    empty_since: int | None = None


class RunShipper:
    """One run's folder. For one thread at a time.

    Args:
        run_folder: `<journal>/<project>/<run>`.
        service: where to.

    Attributes:
        workers: the run's other workers that lived at the last heartbeat.
    """

    def __init__(self, run_folder: Path, service: Service) -> None:
        self.run_folder = run_folder
        self.project, self.run = run_folder.parent.name, run_folder.name
        self.shipped = Shipped()
        self.failing: str | None = None
        self.workers: tuple[Heartbeat, ...] = ()
        self._service = service
        self._lock = RunLock(run_folder)
        self._readers: dict[str, AttemptReader] = {}
        self._finished: set[str] = set()
        self._beheaded: set[str] = set()
        self._elsewhere = False
        remove_stillborn(run_folder, time.time())

    def turn(self, stop: Callable[[], bool] = lambda: False) -> Turn:
        """Send what there is, up to `CHUNKS_PER_TURN` chunks; `stop` ends it between two chunks."""
        changed = self.changed()
        if changed is None:
            self.close()
            self._readers.clear()
            return Turn(empty_since=0)
        if not self._lock.acquire():
            if not self._elsewhere:
                _log.info("%s/%s: is shipped by another process, its trainer for example", self.project, self.run)
            self._elsewhere = True
            return Turn(elsewhere=sum(AttemptReader(one).backlog_bytes() for one in attempt_folders(self.run_folder)))
        self._elsewhere = False
        sent = 0
        for reader in self._attempts():
            while (record := self._next(reader)) is not None:
                if stop() or sent >= CHUNKS_PER_TURN:
                    return Turn(more=True, passed=sent)
                failure = self._send(reader, record)
                if failure is not None:
                    self.shipped.retries += 1
                    self.failing = failure.reason
                    return Turn(failure=failure, passed=sent)
                self.failing = None
                sent += 1
            self._finish(reader)
        if not self._readers:
            # A pod that trains for years has thousands of finished runs: they keep no descriptor open.
            self._lock.release()
            # Clocks of file systems are coarse: what changed a moment ago may change again within the same tick.
            if not (self.run_folder / FOLDER_NAME).is_dir() and time.time_ns() - changed > 2_000_000_000:
                return Turn(passed=sent, empty_since=changed)
        return Turn(passed=sent)

    def changed(self) -> int | None:
        """When something last came into the run's folder or went from it, in ns; None if it is gone."""
        try:
            return os.stat(self.run_folder).st_mtime_ns
        except FileNotFoundError:
            return None

    def _attempts(self) -> list[AttemptReader]:
        there = {folder.name: folder for folder in attempt_folders(self.run_folder)}
        for name in [name for name in self._readers if name not in there]:
            self._readers.pop(name).close()
        for name, folder in there.items():
            if name in self._finished and not segments(folder):
                continue  # what was set aside keeps its folder
            if name not in self._readers or self._readers[name].order[0] == 0:
                if name in self._readers:
                    self._readers[name].close()
                self._readers[name] = AttemptReader(folder)
        # What has sealed nothing yet began last, and may have sealed something by the time its turn has come.
        return sorted(self._readers.values(), key=lambda one: (one.order[0] == 0, one.order, one.attempt))

    def _next(self, reader: AttemptReader) -> Record | None:
        before = (reader.cut.tails, reader.cut.damages)
        bytes_before = (reader.cut.tail_bytes, reader.cut.damage_bytes)
        record = reader.next()
        tails, damages = reader.cut.tails - before[0], reader.cut.damages - before[1]
        if tails or damages:
            cut = self.shipped.cut
            cut.tails += tails
            cut.damages += damages
            cut.tail_bytes += reader.cut.tail_bytes - bytes_before[0]
            cut.damage_bytes += reader.cut.damage_bytes - bytes_before[1]
            _log.warning(
                "%s/%s: cut %d torn tail(s) and %d damaged stretch(es) of attempt %s",
                self.project,
                self.run,
                tails,
                damages,
                reader.attempt,
            )
        return record

    def _send(self, reader: AttemptReader, record: Record) -> Failed | None:
        for index in range(max(1, reader.next_index), record.index):
            # Rotted away. Not the first one: without its event nobody knows from which step the attempt began.
            outcome = self._stand_in(reader, index)
            if isinstance(outcome, Failed):
                return outcome
        try:
            about = outline(record.chunk)
        except ChunkError as error:
            return self._set_aside(reader, record, f"not readable: {error}")
        outcome = self._service.put_chunk(about.id, record.chunk)
        if isinstance(outcome, Failed):
            return outcome
        if isinstance(outcome, Refused):
            return self._set_aside(reader, record, outcome.reason)
        assert isinstance(outcome, Accepted)
        if outcome.reply.next_index > 0:
            for index in range(outcome.reply.next_index, record.index):
                # Deleted with a journal, or lost with a database that a backup was put in the place of.
                gap = self._stand_in(reader, index)
                if isinstance(gap, Failed):
                    return gap
        elif record.index > 0 and reader.attempt not in self._beheaded:
            self._beheaded.add(reader.attempt)
            _log.error(
                "%s/%s: the first chunk of attempt %s is lost from the journal, so the service cannot know from which "
                "step it began: it keeps what follows, and judges none of this attempt",
                self.project,
                self.run,
                reader.attempt,
            )
        reader.acknowledge(record, about.last_step)
        self.shipped.chunks += 1
        self.shipped.bytes += len(record.chunk)
        self.shipped.duplicates += outcome.reply.duplicate
        return None

    def _set_aside(self, reader: AttemptReader, record: Record, reason: str) -> Failed | None:
        outcome = self._stand_in(reader, record.index, record.chunk)
        if isinstance(outcome, Failed):
            return outcome  # the service must hear of it before the chunk is passed
        path = reader.set_aside(record, reason)
        self.shipped.refused += 1
        _log.error(
            "%s/%s: chunk %d was refused and set aside in %s: %s", self.project, self.run, record.index, path, reason
        )
        if isinstance(outcome, Refused):
            _log.error("%s/%s: nor was an empty one taken in its place: %s", self.project, self.run, outcome.reason)
        return None

    def _stand_in(self, reader: AttemptReader, index: int, lost: bytes = b"") -> Outcome:
        """Send an empty chunk in the place of one that is lost, with what is known of that."""
        try:
            was = decode(lost)
            counts, events = {drops.REFUSED: len(was.frames)} if len(was.frames) else {}, was.events
            counts |= was.drops
        except ChunkError:
            counts, events = {}, ()
        identity = ChunkId(self.project, self.run, reader.attempt, index)
        return self._service.put_chunk(identity, encode(Chunk(identity, _NO_FRAMES, counts, events)))

    def _finish(self, reader: AttemptReader) -> None:
        if not reader.folder.is_dir():
            # Its trainer may live, and begins anew with the next chunk.
            self._readers.pop(reader.attempt).close()
            _log.warning(
                "%s/%s: somebody deleted attempt %s from the journal: what was not shipped of it is lost",
                self.project,
                self.run,
                reader.attempt,
            )
        elif reader.remove_if_done():
            self.shipped.attempts_finished += 1
            self._finished.add(reader.attempt)
            self._readers.pop(reader.attempt, None)
            _log.info("%s/%s: attempt %s is shipped to its end", self.project, self.run, reader.attempt)

    def heartbeat(self, now: float) -> None:
        """Tell the service which trainer of this run lives, if one does, and which of its workers beside the chief.

        With the newest step that the trainer handed over, be it shipped or not: a service that takes no chunks for a
        while must not take a trainer that steps for a silent one.
        """
        self._hear_workers()
        alive = [reader for reader in self._readers.values() if reader.alive()]
        if alive:
            newest = max(alive, key=lambda reader: reader.order)
            self._service.put_heartbeat(
                self.project, self.run, {"attempt": newest.attempt, "last_step": newest.newest_step(), "time": now}
            )

    def _hear_workers(self) -> None:
        there = heartbeats(self.run_folder)
        for worker in there:
            if worker.alive:
                self._service.put_heartbeat(self.project, self.run, worker.to_json())
                continue
            _log.warning(
                "%s/%s: worker %d is gone without a goodbye, its last step was %d",
                self.project,
                self.run,
                worker.worker,
                worker.last_step,
            )
            forget(self.run_folder, worker)
        self.workers = tuple(worker for worker in there if worker.alive)

    def backlog_bytes(self) -> int:
        """Bytes on disk that the service does not have yet."""
        return sum(reader.backlog_bytes() for reader in list(self._readers.values()))

    def close(self) -> None:
        """Let the run go."""
        for reader in self._readers.values():
            reader.close()
        self._lock.release()
