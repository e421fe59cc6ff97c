"""One chunk, one transaction: stored once, the detectors advanced, incidents updated, the reply made from all that.

The same chunk twice changes nothing the second time. A chunk that comes early is stored and waits; when the gap before
it fills, everything up to the next gap is judged. Any number of replicas and requests may do this at once: the run's
lock puts them in a row, and the end state is the one that sending the chunks one by one would give.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, cast

from sqlalchemy.engine import Connection

from lossguard.detect.record import Record
from lossguard.wire.chunk import AttemptStart, AttemptStop, Checkpoint, ChunkId
from lossguard.wire.frame import Schema
from lossguard.wire.replies import ChunkReply
from lossguard_service.errors import Busy, ChunkConflict, NotFound, Refusal
from lossguard_service.incidents import track
from lossguard_service.incidents.advise import advise
from lossguard_service.incidents.announce import announce
from lossguard_service.incidents.detectors import Detectors, is_large
from lossguard_service.ingest.prepare import Prepared, prepare
from lossguard_service.ingest.work import View, Work, digest_of_last
from lossguard_service.ingest.work import run_values as changed_by
from lossguard_service.recent import Recent
from lossguard_service.store import checkpoints, chunks, drops, record
from lossguard_service.store.bytes import Kept, run_folder
from lossguard_service.store.database import Database
from lossguard_service.store.incidents import StoredIncident, incidents_of
from lossguard_service.store.lineage import Attempt, Stretch, lineage
from lossguard_service.store.runs import Run, attempts_of
from lossguard_service.store.without import NeedsTransaction, NoTransaction

log = logging.getLogger(__name__)
_INLINE_BYTES: Final = 16_384
"""Smaller bodies are decoded and stored on the event loop: the hop to a thread would cost more."""
_ALONE_BYTES: Final = 262_144
"""The same while no other chunk is in work: half a millisecond, for which nobody waits."""


class Ingest:
    """Takes chunks and heartbeats; one per replica."""

    def __init__(
        self,
        database: Database,
        detectors: Detectors,
        clock: Callable[[], float],
        *,
        max_pending: int = 256,
        remembered: int = 2000,
        destinations: Sequence[str] = (),
    ) -> None:
        self._database = database
        self._detectors = detectors
        self._clock = clock
        self._max_pending = max_pending
        self._destinations = destinations
        self._pending = 0
        self._views: Recent[tuple[str, str], View] = Recent(remembered)

    @property
    def pending(self) -> int:
        """Chunks in work right now."""
        return self._pending

    async def accept(self, identity: ChunkId, data: bytes) -> ChunkReply:
        """Store a chunk and say how the run stands.

        Raises:
            UnreadableChunk, WrongIdentity, ChunkConflict: the chunk will never be taken.
            Busy: not now.
        """
        if self._pending >= self._max_pending:
            raise Busy(f"{self._pending} chunks are in work: send this one again")
        self._pending += 1
        try:
            if len(data) <= (_INLINE_BYTES if self._pending > 1 else _ALONE_BYTES):
                prepared = prepare(identity, data)
            else:
                prepared = await asyncio.to_thread(prepare, identity, data)
            touched: list[Run] = []
            store, folder = self._database.bytes, run_folder(identity.project, identity.run)
            kept = await store.keep(folder, f"{identity.attempt}/{identity.index:08}", data)
            try:
                tried = self._try(prepared, touched)
                reply = None
                is_small = len(data) <= _INLINE_BYTES
                at_once = is_small or self._pending == 1 or self._database.is_far
                if tried is not None and at_once and kept.object is None:
                    reply = await self._at_once(tried, kept, together=is_small)
                if reply is None:
                    reply = await self._database.write(
                        lambda connection: self._store(connection, prepared, kept, touched, tried)
                    )
            except BaseException as error:
                # What was not committed did not happen: the state in memory may be ahead of it.
                for run in touched:
                    self._forget(run)
                if isinstance(error, Refusal):  # after any other error the transaction may have been committed
                    await store.discard(kept)
                raise
            if reply.duplicate:
                await store.discard(kept)
            return reply
        finally:
            self._pending -= 1

    async def heartbeat(self, project: str, name: str, *, attempt: str, last_step: int | None) -> None:
        """Note that a trainer's side lives, and whether its trainer made progress.

        Raises:
            NotFound: no chunk of the run has come yet; the heartbeat is not needed then.
        """
        now = self._clock()

        def write(connection: Connection) -> tuple[Run, dict[str, Any] | None] | None:
            run = record.lock_run(connection, project, name)
            if run is None:
                return None
            told = False
            values: dict[str, Any] = {"last_seen": max(run.last_seen, now)}
            newest = next((one for one in reversed(attempts_of(connection, run.id)) if one.key == attempt), None)
            if newest is not None and newest.number == run.attempt and last_step is not None:
                heard = max(run.heard_step or 0, run.last_step or 0)
                if last_step > heard:
                    values |= {"heard_step": last_step, "last_progress": max(run.last_progress, now)}
                    stored = incidents_of(connection, run.id)
                    if track.resume(connection, run.id, stored, last_step, now):
                        self._tell(connection, run, stored, now)
                        told = True
            record.update_run(connection, run.id, values)
            return run, None if told else values

        written = await self._database.write(write)
        if written is None:
            raise NotFound(f"no chunk of run {project}/{name} has come yet")
        run, changed = written
        view = self._views.get((project, name))
        # What is remembered goes along: heartbeats come several times as often as chunks, which would find another run.
        if changed is not None and view is not None and (view.run.id, view.run.revision) == (run.id, run.revision):
            self._remember(replace(view, run=replace(view.run, **changed, revision=run.revision + 1)))

    def _try(self, prepared: Prepared, touched: list[Run]) -> Work | None:
        """What an ordinary chunk makes of a run that is remembered, before the run is locked; None if it is not one.

        It counts only where the run is locked, or guarded, as it was remembered.
        """
        identity, now = prepared.chunk.id, self._clock()
        view = self._views.get((identity.project, identity.run))
        if view is None or view.run.waiting_chunks or view.run.status == "diverged" or is_large(prepared.chunk.frames):
            return None
        attempt = next((one for one in view.attempts if one.key == identity.attempt), None)
        if attempt is None or identity.index != attempt.next_index:
            return None
        touched.append(view.run)
        try:
            work = self._work(cast("Connection", NoTransaction()), view, attempt, prepared, now)
        except NeedsTransaction:
            return None
        return None if work.after.run.status == "diverged" else work

    async def _at_once(self, work: Work, kept: Kept, *, together: bool) -> ChunkReply | None:
        """Store what was worked out without locking first; None if it is to go the ordinary way."""
        revision = work.before.run.revision
        stored = await chunks.store_at_once(self._database, work, kept, revision, together=together)
        if not stored:
            if stored is None:  # what is in memory may be behind what is stored, or ahead of it
                self._forget(work.before.run)
            return None
        self._remember(work.after)
        return self._reply(cast("Connection", NoTransaction()), work.attempt, work.after)

    def _forget(self, run: Run) -> None:
        self._detectors.forget(run.id)
        self._views.drop((run.project, run.name))

    def _remember(self, view: View) -> None:
        self._views.put((view.run.project, view.run.name), view)

    def _store(
        self, connection: Connection, prepared: Prepared, kept: Kept, touched: list[Run], tried: Work | None
    ) -> ChunkReply:
        identity, now = prepared.chunk.id, self._clock()
        view = self._view(connection, identity, now)
        if tried is None or view is not tried.before:
            run = view.run
            touched.append(run)
            attempt = next((one for one in view.attempts if one.key == identity.attempt), None)
            if attempt is not None and (identity.index < attempt.next_index or run.waiting_chunks):
                known = chunks.digest_of(connection, run.id, attempt.number, identity.index)
                if known is not None:
                    if known != prepared.sha256:
                        raise ChunkConflict(
                            f"chunk {identity.index} of attempt {attempt.number} of {identity.project}/{identity.run} "
                            f"is stored with other bytes (sha256 {known[:12]}..., these are {prepared.sha256[:12]}...)"
                        )
                    return self._reply(connection, attempt, view, duplicate=True)
            tried = self._work(connection, view, attempt, prepared, now)
        self._database.bytes.check(kept)
        chunks.store(connection, tried, kept)
        self._remember(tried.after)
        return self._reply(connection, tried.attempt, tried.after)

    def _work(
        self, connection: Connection, view: View, attempt: Attempt | None, prepared: Prepared, now: float
    ) -> Work:
        """What a new chunk makes of its run; an ordinary one asks nothing of the connection."""
        run, attempts, identity = view.run, list(view.attempts), prepared.chunk.id
        run_values: dict[str, Any] = {}
        if attempt is None:
            number = attempts[-1].number + 1 if attempts else 1
            attempt = record.open_attempt(connection, run.id, number, identity.attempt)
            attempts.append(attempt)
            run_values |= {"attempt": number, "stop_reason": None, "last_progress": now, "heard_step": None}
            run = replace(run, **run_values)
        row = self._row(connection, run, attempt, prepared, view.schemas, now)
        checkpoints.add(connection, run.id, attempt.number, prepared.events(Checkpoint))
        drops.add(connection, run.id, prepared.chunk.drops)
        attempt, attempt_values, absorbed = self._advance_attempt(connection, run, attempt, prepared)
        attempts[attempt.number - 1] = attempt
        newest = prepared.digest
        if absorbed > 0:
            newest = digest_of_last(connection, run.id, attempt) or newest
        run_values |= changed_by(run, attempt, prepared, absorbed, newest, now)
        run = replace(run, **run_values)
        judged, incidents, records = self._judge(connection, run, attempts, attempt, prepared, view, now)
        run_values |= judged
        run = replace(run, **judged, revision=run.revision + 1)
        after = View(run, attempts, incidents, view.schemas, records)
        return Work(row, attempt_values, run_values, view, attempt, after)

    def _view(self, connection: Connection, identity: ChunkId, now: float) -> View:
        """The run, locked, with its attempts, incidents and column names: from memory if nobody has written since."""
        found = record.lock_revision(connection, identity.project, identity.run)
        if found is not None:
            view = self._views.get((identity.project, identity.run))
            if view is not None and (view.run.id, view.run.revision) == found:
                return view
        run = record.lock_or_open_run(connection, identity.project, identity.run, now)
        return View(
            run,
            attempts_of(connection, run.id),
            incidents_of(connection, run.id),
            {names: number for number, names in chunks.schemas_of(connection, run.id).items()},
            None,
        )

    def _row(
        self,
        connection: Connection,
        run: Run,
        attempt: Attempt,
        prepared: Prepared,
        schemas: dict[Schema, int],
        now: float,
    ) -> dict[str, Any]:
        """The chunk's index row."""
        chunk = prepared.chunk
        schema = schemas.get(chunk.frames.schema)
        if schema is None:
            schema = max(schemas.values(), default=0) + 1
            chunks.add_schema(connection, run.id, schema, chunk.frames.schema)
            schemas[chunk.frames.schema] = schema
        return {
            "run_id": run.id,
            "attempt": attempt.number,
            "index": chunk.id.index,
            "first_step": prepared.first_step,
            "last_step": prepared.last_step,
            "frames": len(chunk.frames),
            "schema": schema,
            "missing": prepared.missing,
            "drops": chunk.drops,
            "sha256": prepared.sha256,
            "received": now,
        }

    def _advance_attempt(
        self, connection: Connection, run: Run, attempt: Attempt, prepared: Prepared
    ) -> tuple[Attempt, dict[str, Any], int]:
        """The attempt with this chunk, its changed columns, and how many waiting chunks it set free (-1: it waits)."""
        values: dict[str, Any] = {}
        index = prepared.chunk.id.index
        if index == 0:
            start = next(iter(prepared.events(AttemptStart)), None)
            if start is not None:
                values |= {"start_step": start.step, "started": start.time, "config": start.config}
            else:
                values["start_step"] = (prepared.first_step or 1) - 1
        for stop in prepared.events(AttemptStop):
            values |= {"stopped": stop.time, "stop_reason": stop.reason}
            if stop.skipped_steps:
                values["skipped_steps"] = stop.skipped_steps
        absorbed = -1
        if index == attempt.next_index:
            following, last = index + 1, prepared.last_step
            if run.waiting_chunks:
                following, step = record.contiguous(connection, run.id, attempt.number, index + 1)
                last = last if step is None else step
            absorbed = following - index - 1
            values["next_index"] = following
            if last is not None:
                values["last_step"] = last
        changed = {name: value for name, value in values.items() if name != "config"}
        return replace(attempt, **changed), values, absorbed

    def _judge(
        self,
        connection: Connection,
        run: Run,
        attempts: list[Attempt],
        attempt: Attempt,
        prepared: Prepared,
        view: View,
        now: float,
    ) -> tuple[dict[str, Any], list[StoredIncident], list[Record] | None]:
        """Advance the detectors and the incidents.

        Returns:
            The run's changed columns, the incidents as they are, and the detectors' records that they are of.
        """
        stored, records = view.incidents, view.records
        plan: tuple[Stretch, ...] = lineage(attempts)
        fresh = {(attempt.number, prepared.chunk.id.index): prepared.chunk.frames}
        values: dict[str, Any] = {}
        changed = False
        if run.stop_reason is not None or prepared.first_step is not None:
            changed = track.resume(connection, run.id, stored, run.last_step or 0, now)
        try:
            judged = self._detectors.advance(connection, run.id, plan, fresh)
        except (ValueError, ArithmeticError, LookupError, TypeError):
            # The trainer's data must be kept even where our detectors fail on it; judged_step stays behind, which the
            # gate refuses to pass.
            log.exception("the detectors failed on run %s/%s", run.project, run.name)
            judged = None
        if judged is None:
            records = None
        else:
            values = {"judged_step": judged.judged_step, "status": run.status}
            if records is None or judged.records != records:
                report, records = judged.report(run.name), judged.records
                changed |= track.reconcile(connection, run.id, stored, report.incidents, now)
                values["status"] = report.status
        return values, self._tell(connection, run, stored, now) if changed else stored, records

    def _tell(self, connection: Connection, run: Run, before: list[StoredIncident], now: float) -> list[StoredIncident]:
        """The run's incidents as they are now; what changed is told to whoever wants to hear of it."""
        after = incidents_of(connection, run.id)
        name = (run.project, run.name)
        announce(connection, run.id, name, before, after, destinations=self._destinations, now=now)
        return after

    def _reply(self, connection: Connection, attempt: Attempt, view: View, *, duplicate: bool = False) -> ChunkReply:
        run = view.run
        saved = checkpoints.checkpoints_of(connection, run.id) if run.status == "diverged" else []
        advice = advise([one.incident for one in view.incidents], saved)
        return ChunkReply(duplicate, attempt.number, attempt.next_index, run.judged_step, run.status, advice)
