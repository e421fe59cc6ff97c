"""One chunk, one transaction: stored once, the detectors advanced, incidents updated, the reply made from all that.

The same chunk twice changes nothing the second time. A chunk that comes early is stored and waits; when the gap before
it fills, everything up to the next gap is judged. Any number of replicas and requests may do this at once: the run's
lock puts them in a row, and the end state is the one that sending the chunks one by one would give.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy.engine import Connection

from lossguard.wire import chunk as wire
from lossguard.wire.chunk import AttemptStart, AttemptStop, Checkpoint, ChunkId
from lossguard.wire.frame import Schema
from lossguard.wire.numbers import from_json_number
from lossguard.wire.replies import ChunkReply
from lossguard_service.errors import Busy, ChunkConflict, NotFound, Refusal
from lossguard_service.incidents import track
from lossguard_service.incidents.advise import advise
from lossguard_service.incidents.announce import announce
from lossguard_service.incidents.detectors import Detectors
from lossguard_service.ingest.prepare import Prepared, digest, prepare
from lossguard_service.store import checkpoints, chunks, drops, record
from lossguard_service.store.bytes import Kept, run_folder
from lossguard_service.store.database import Database
from lossguard_service.store.incidents import StoredIncident, incidents_of
from lossguard_service.store.lineage import Attempt, Stretch, lineage
from lossguard_service.store.runs import Run, attempts_of

log = logging.getLogger(__name__)
_INLINE_BYTES: Final = 16_384
"""Smaller bodies are decoded on the event loop: the hop to a thread would cost more."""
_ALONE_BYTES: Final = 262_144
"""The same while no other chunk is in work: half a millisecond, for which nobody waits."""


@dataclass(frozen=True, slots=True)
class _View:
    """What a replica remembers of a run's rows; true as long as the run's revision is the same."""

    run: Run
    attempts: list[Attempt]
    incidents: list[StoredIncident]
    schemas: dict[Schema, int]


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
        self._remembered = remembered
        self._destinations = destinations
        self._pending = 0
        self._views: OrderedDict[int, _View] = OrderedDict()

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
            touched: list[int] = []
            store, folder = self._database.bytes, run_folder(identity.project, identity.run)
            kept = await store.keep(folder, f"{identity.attempt}/{identity.index:08}", data)
            try:
                reply = await self._database.write(lambda connection: self._store(connection, prepared, kept, touched))
            except BaseException as error:
                # What was not committed did not happen: the state in memory may be ahead of it.
                for run_id in touched:
                    self._detectors.forget(run_id)
                    self._views.pop(run_id, None)
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

        def write(connection: Connection) -> bool:
            run = record.lock_run(connection, project, name)
            if run is None:
                return False
            values: dict[str, Any] = {"last_seen": max(run.last_seen, now)}
            newest = next((one for one in reversed(attempts_of(connection, run.id)) if one.key == attempt), None)
            if newest is not None and newest.number == run.attempt and last_step is not None:
                heard = max(run.heard_step or 0, run.last_step or 0)
                if last_step > heard:
                    values |= {"heard_step": last_step, "last_progress": max(run.last_progress, now)}
                    stored = incidents_of(connection, run.id)
                    if track.resume(connection, run.id, stored, last_step, now):
                        self._tell(connection, run, stored, now)
            record.update_run(connection, run.id, values)
            return True

        if not await self._database.write(write):
            raise NotFound(f"no chunk of run {project}/{name} has come yet")

    def _store(self, connection: Connection, prepared: Prepared, kept: Kept, touched: list[int]) -> ChunkReply:
        identity, now = prepared.chunk.id, self._clock()
        view = self._view(connection, identity, now)
        run, attempts = view.run, list(view.attempts)
        touched.append(run.id)
        attempt = next((one for one in attempts if one.key == identity.attempt), None)
        if attempt is not None and (identity.index < attempt.next_index or run.waiting_chunks):
            known = chunks.digest_of(connection, run.id, attempt.number, identity.index)
            if known is not None:
                if known != prepared.sha256:
                    raise ChunkConflict(
                        f"chunk {identity.index} of attempt {attempt.number} of {identity.project}/{identity.run} is "
                        f"stored with other bytes (sha256 {known[:12]}..., these are {prepared.sha256[:12]}...)"
                    )
                return self._reply(connection, run, attempt, view.incidents, duplicate=True)
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
            newest = _digest_of_last(connection, run.id, attempt) or newest
        run_values |= _run_values(run, attempt, prepared, absorbed, newest, now)
        run = replace(run, **run_values)
        judged, incidents = self._judge(connection, run, attempts, attempt, prepared, view.incidents, now)
        run_values |= judged
        self._database.bytes.check(kept)
        chunks.store(connection, row, kept, attempt_values, run_values)
        run = replace(run, **judged, revision=run.revision + 1)
        self._views[run.id] = _View(run, attempts, incidents, view.schemas)
        return self._reply(connection, run, attempt, incidents, duplicate=False)

    def _view(self, connection: Connection, identity: ChunkId, now: float) -> _View:
        """The run, locked, with its attempts, incidents and column names: from memory if nobody has written since."""
        found = record.lock_revision(connection, identity.project, identity.run)
        if found is not None:
            run_id, revision = found
            view = self._views.get(run_id)
            if view is not None and view.run.revision == revision:
                self._views.move_to_end(run_id)
                return view
        while len(self._views) >= self._remembered:
            self._views.popitem(last=False)
        run = record.lock_or_open_run(connection, identity.project, identity.run, now)
        return _View(
            run,
            attempts_of(connection, run.id),
            incidents_of(connection, run.id),
            {names: number for number, names in chunks.schemas_of(connection, run.id).items()},
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
        stored: list[StoredIncident],
        now: float,
    ) -> tuple[dict[str, Any], list[StoredIncident]]:
        """Advance the detectors and the incidents; returns the run's changed columns and the incidents as they are."""
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
            self._detectors.forget(run.id)
            judged = None
        if judged is not None:
            report = judged.report(run.name)
            changed |= track.reconcile(connection, run.id, stored, report.incidents, now)
            values = {"judged_step": judged.judged_step, "status": report.status}
        return values, self._tell(connection, run, stored, now) if changed else stored

    def _tell(self, connection: Connection, run: Run, before: list[StoredIncident], now: float) -> list[StoredIncident]:
        """The run's incidents as they are now; what changed is told to whoever wants to hear of it."""
        after = incidents_of(connection, run.id)
        name = (run.project, run.name)
        announce(connection, run.id, name, before, after, destinations=self._destinations, now=now)
        return after

    def _reply(
        self, connection: Connection, run: Run, attempt: Attempt, incidents: list[StoredIncident], *, duplicate: bool
    ) -> ChunkReply:
        saved = checkpoints.checkpoints_of(connection, run.id) if run.status == "diverged" else []
        advice = advise([one.incident for one in incidents], saved)
        return ChunkReply(duplicate, attempt.number, attempt.next_index, run.judged_step, run.status, advice)


def _run_values(
    run: Run, attempt: Attempt, prepared: Prepared, absorbed: int, newest: dict[str, Any] | None, now: float
) -> dict[str, Any]:
    """The run's changed columns; a function of which chunks are here, not of the order in which they came."""
    values: dict[str, Any] = {
        "last_seen": max(run.last_seen, now),
        "frames": run.frames + len(prepared.chunk.frames),
        "dropped_frames": run.dropped_frames + sum(prepared.chunk.drops.values()),
        "waiting_chunks": run.waiting_chunks + (1 if absorbed < 0 else -absorbed),
    }
    if prepared.first_step is not None:
        steps = (run.first_step, prepared.first_step)
        values["first_step"] = min(step for step in steps if step is not None)
    if attempt.number != run.attempt:
        return values
    for start in prepared.events(AttemptStart):
        values["config"] = start.config
    for stop in prepared.events(AttemptStop):
        values["stop_reason"] = stop.reason
    if prepared.first_step is not None:
        values["last_progress"] = max(run.last_progress, now)
    if absorbed >= 0:
        values["last_step"] = attempt.start_step if attempt.last_step is None else attempt.last_step
        if newest is not None:
            loss = newest["scalars"].get("loss")
            values |= {"summary": newest, "loss_last": None if loss is None else from_json_number(loss)}
    return values


def _digest_of_last(connection: Connection, run_id: int, attempt: Attempt) -> dict[str, Any] | None:
    """The digest of the attempt's last contiguous chunk that holds frames."""
    rows = chunks.rows_of(connection, run_id, attempt=attempt.number, first=attempt.last_step)
    last = max((row.index for row in rows if row.index < attempt.next_index), default=None)
    if last is None:
        return None
    data = chunks.bytes_now(connection, chunks.bytes_of(connection, run_id, attempt.number, last, last))
    return digest(wire.decode(data[last]).frames)
