"""The recorder: one attempt, from the training threads to the journal.

Guarantees. `record` never blocks on a disk, a lock that a disk is waited for under, or the network, never raises, and
answers yes or no; what it answers no to is counted by reason. Memory is bounded by `queue_bytes`. One daemon thread
seals (`lossguard.journal`), a second one uploads if a service is given. Forked children record nothing and harm
nothing. Interpreter exit closes what is open and does not wait for a dead service.
"""

import atexit
import json
import logging
import math
import os
import secrets
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from lossguard import drops
from lossguard.guard import guarded, swallow, swallowed
from lossguard.handoff import Handoff
from lossguard.journal.files import Files
from lossguard.journal.sealer import Journal, Sealer
from lossguard.journal.writer import JournalWriter
from lossguard.wire.chunk import AttemptEnd, AttemptStart, ChunkId, Event, check_config, check_event
from lossguard.wire.frame import Frames
from lossguard.wire.names import check_name
from lossguard.wire.numbers import to_json

if TYPE_CHECKING:
    from lossguard.sidecar.uploader import Uploader

QUEUE_BYTES: Final = 64 << 20
EXIT_SECONDS: Final = 5.0
"""How long interpreter exit may wait for the disk and for a service that answers."""
CHECK_SECONDS: Final = 5.0
"""How long a file system may take to say whether there is a folder."""

_log = logging.getLogger("lossguard")
_open_recorders: "weakref.WeakSet[Recorder]" = weakref.WeakSet()


class Recorder:
    """Records one attempt of one run.

    Args:
        directory: root of the journal, on a local disk.
        project, run: the run's names (`lossguard.wire.names`).
        start_step: the step of the checkpoint that this attempt starts from; its first frame is one later.
        config: describes the run, see `lossguard.wire.chunk.AttemptStart`; must be JSON-like.
        service: URL of the service; None leaves the shipping to a sidecar.
        token: bearer token for the service.
        seal_frames: frames per chunk.
        seal_seconds: the longest time after which a recorded frame is sealed.
        journal_bytes: bound of the run's folder, all attempts together.
        mantissa_bits: precision of the stats, 23 is lossless.
        queue_bytes: bound of what waits in memory.
        files: the disk, for tests.

    Raises:
        ValueError: an argument is wrong; the message names it.

    Example:
        >>> import tempfile
        >>> from lossguard.wire.frame import Frames, Schema
        >>> folder = tempfile.TemporaryDirectory()
        >>> recorder = Recorder(folder.name, "ads", "ranker-7")
        >>> recorder.record(Frames.of(Schema(("loss",)), [1, 2], [[0.7], [0.69]]))
        True
        >>> recorder.close()
        >>> recorder.counters["frames_sealed"]
        2
        >>> folder.cleanup()
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        project: str,
        run: str,
        *,
        start_step: int = 0,
        config: Mapping[str, Any] | None = None,
        service: str | None = None,
        token: str | None = None,
        seal_frames: int = 64,
        seal_seconds: float = 2.0,
        journal_bytes: int = 1 << 30,
        mantissa_bits: int = 10,
        queue_bytes: int = QUEUE_BYTES,
        files: Files | None = None,
    ) -> None:
        check_name("project", project)
        check_name("run", run)
        for name, number, low in (
            ("start_step", start_step, 0),
            ("seal_frames", seal_frames, 1),
            ("journal_bytes", journal_bytes, 1 << 16),
            ("queue_bytes", queue_bytes, 1 << 10),
        ):
            if isinstance(number, bool) or not isinstance(number, int) or number < low:
                raise ValueError(f"{name}: must be a whole number of at least {low}, got {number!r}")
        if not (isinstance(seal_seconds, (int, float)) and math.isfinite(seal_seconds) and seal_seconds > 0):
            raise ValueError(f"seal_seconds: must be a positive number of seconds, got {seal_seconds!r}")
        checked_token(token)
        if service is not None and not isinstance(service, str):
            raise ValueError(f"service: must be a URL such as http://127.0.0.1:8080, got {service!r}")
        if mantissa_bits not in range(1, 24):
            raise ValueError(f"mantissa_bits: must be 1 to 23, got {mantissa_bits!r}")
        self.directory: Final = _checked_path(directory)
        self.project: Final = project
        self.run: Final = run
        self.attempt: Final = secrets.token_hex(16)
        self._seal_seconds = seal_seconds
        self._journal_bytes = journal_bytes
        self._files = files
        self._started = time.time()
        start = AttemptStart(start_step, self._started, checked_config(config))

        self._pid = os.getpid()
        self._drops = drops.DropCounts()
        self._handoff = Handoff(start, self._drops, queue_bytes=queue_bytes, wake_frames=seal_frames)
        self._flush_asked = self._flush_done = 0
        self._flushed = threading.Condition()
        self._stopping = False
        self._writer: JournalWriter | None = None
        self._uploader: Uploader | None = None
        self._sealer = Sealer(
            ChunkId(project, run, self.attempt, 0),
            self._open_journal,
            self._drops,
            seal_frames=seal_frames,
            mantissa_bits=mantissa_bits,
        )
        self._check_directory()
        if service is not None:
            self._uploader = _make_uploader(self.directory / project / run, service, token)
        self._thread = threading.Thread(target=self._work, name=f"lossguard-recorder-{run}", daemon=True)
        self._thread.start()
        if self._uploader is not None:
            self._uploader.start()
        _open_recorders.add(self)
        atexit.register(self._at_exit)

    def _check_directory(self) -> None:
        """Refuse a folder that cannot hold a journal; on a file system that does not answer, do without knowing."""
        refusals: list[ValueError] = []
        asking = threading.Thread(target=self._ask_directory, args=[refusals], name="lossguard-directory", daemon=True)
        asking.start()
        asking.join(CHECK_SECONDS)
        if asking.is_alive():
            _log.warning("Lossguard: the file system of %s does not answer; training goes on", self.directory)
        for refusal in refusals:
            raise refusal

    def _ask_directory(self, refusals: list[ValueError]) -> None:
        try:
            self._make_directory()
        except ValueError as error:
            refusals.append(error)

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ValueError(f"directory: cannot keep a journal in {self.directory}: that is no folder") from None
        except PermissionError as error:
            raise ValueError(f"directory: cannot keep a journal in {self.directory}: {error.strerror}") from None
        except OSError:
            return  # a full or broken disk is no reason not to train: the sealer tries again
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise ValueError(f"directory: {self.directory} is not writable")

    # --- the training thread

    def record(self, frames: Frames) -> bool:
        """Hand frames over. Keeps the arrays: do not write to them afterwards.

        Returns:
            False if any of them was dropped and counted.
        """
        try:
            return self._handoff.frames(frames, self._sealer.waiting_bytes, self._sealer.refusal)
        except Exception as error:
            swallow("Recorder.record", error)
            self.drop(drops.INTERNAL_ERROR, 1)
            return False

    @guarded("Recorder.event", False)
    def event(self, event: Event) -> bool:
        """Hand an event over, after the frames recorded so far; it is sealed at once.

        Returns:
            False after `close`, or if no chunk can carry it (which is logged).
        """
        check_event(event)
        return self._handoff.event(event)

    @guarded("Recorder.drop", None)
    def drop(self, reason: str, count: int) -> None:
        """Count frames that were dropped before they came here (`lossguard.drops`)."""
        self._drops.add(reason, count)

    @guarded("Recorder.seal", None)
    def seal(self) -> None:
        """Seal soon what was recorded so far; does not wait for it."""
        with self._flushed:
            self._flush_asked += 1
        self._handoff.wake()

    @guarded("Recorder.flush", False)
    def flush(self, timeout_seconds: float = 30.0) -> bool:
        """Seal what was recorded so far.

        Returns:
            True when it is on disk; False if the disk refused or the time ran out.
        """
        with self._flushed:
            self._flush_asked += 1
            mine = self._flush_asked
        self._handoff.wake()
        with self._flushed:
            self._flushed.wait_for(lambda: self._flush_done >= mine or not self._thread.is_alive(), timeout_seconds)
            done = self._flush_done >= mine
        return done and not self._sealer.waiting

    @guarded("Recorder.close", None)
    def close(self, reason: AttemptEnd = "finished", timeout_seconds: float = 30.0, *, skipped_steps: int = 0) -> None:
        """End the attempt: write its stop event, seal, and give the uploader what is left of the time.

        Returns early where waiting is no use (the disk refuses, the service does not answer): what is sealed stays in
        the journal for a sidecar or the run's next attempt. Calling it again does nothing.

        Args:
            reason: why.
            timeout_seconds: the longest time to wait.
            skipped_steps: steps after the last frame that were no updates.
        """
        deadline = time.monotonic() + timeout_seconds
        if reason not in get_args(AttemptEnd):
            told = ", ".join(get_args(AttemptEnd))
            _log.warning("Lossguard: close: reason must be one of %s, got %r; it is taken as interrupted", told, reason)
            reason = "interrupted"
        if not self._handoff.end(reason, skipped_steps):
            return
        self._stopping = True
        self._handoff.wake()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            _log.warning(
                "Lossguard: the disk under %s has not taken the last %d frames of run %s, and is waited for no longer; "
                "what it has not taken when this process ends is lost",
                self.directory,
                self.counters["frames_waiting"],
                self.run,
            )
        if self._uploader is not None:
            self._uploader.close(max(0.0, deadline - time.monotonic()))
        atexit.unregister(self._at_exit)
        _open_recorders.discard(self)
        lost = self._drops.total()
        if lost:
            told = ", ".join(f"{count} {reason}" for reason, count in sorted(lost.items()))
            _log.warning("Lossguard: frames dropped in run %s: %s", self.run, told)

    def _at_exit(self) -> None:
        if os.getpid() != self._pid:
            return
        kind = getattr(sys, "last_type", None)
        reason: AttemptEnd = "finished"
        if kind is not None:
            reason = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
        self.close(reason, EXIT_SECONDS)

    @property
    def counters(self) -> dict[str, int]:
        """What happened so far: frames, chunks, bytes, drops by reason (`dropped_<reason>`), and the uploader's."""
        sealer = self._sealer
        counters = {
            "frames_recorded": self._handoff.frames_in,
            "frames_sealed": sealer.frames_sealed,
            "frames_waiting": self._handoff.frames_in - sealer.frames_sealed,
            "chunks_sealed": sealer.chunks_sealed,
            "bytes_sealed": sealer.bytes_sealed,
            "last_sealed_step": sealer.last_sealed_step or 0,
            "sync_failures": self._writer.sync_failures if self._writer else 0,
            "errors_swallowed": swallowed(),
        }
        counters.update({f"dropped_{reason}": count for reason, count in self._drops.total().items()})
        if self._uploader is not None:
            counters.update(self._uploader.counters)
        return counters

    # --- the recorder's own thread

    def _work(self) -> None:
        try:
            empty_since = time.monotonic()
            finished = False
            while not finished:
                self._handoff.sleep(empty_since + self._seal_seconds - time.monotonic())
                due = time.monotonic() >= empty_since + self._seal_seconds
                finished = self._turn(due)
                if due or not self._sealer.waiting:
                    empty_since = time.monotonic()
        except BaseException as error:
            # What is no Exception, too: Python ends a thread by SystemExit without a word.
            self._handoff.end(None)
            for item in self._handoff.take():
                self._sealer.add(item)
            self._sealer.abandon(drops.INTERNAL_ERROR)
            swallow("Recorder's thread", error)
        finally:
            if self._writer is not None:
                self._writer.close()
            with self._flushed:
                self._flushed.notify_all()

    def _turn(self, due: bool) -> bool:
        """Take what is queued and seal it: whole chunks, or all there is when due; True at the end of the attempt."""
        stopping = self._stopping
        with self._flushed:
            asked = self._flush_asked
        for item in self._handoff.take():
            self._sealer.add(item)
        flush = due or stopping or asked > self._flush_done
        # A disk that refused is tried again when it is due, not with every frame.
        if flush or self._sealer.refusal is None:
            self._sealer.seal(flush=flush)
        if self._writer is not None:
            self._writer.beat(self._handoff.newest_step)  # also while the disk is full and everything is dropped
        if stopping:
            self._sealer.abandon()
        with self._flushed:
            self._flush_done = asked
            self._flushed.notify_all()
        if self._uploader is not None:
            self._uploader.wake()
        return stopping

    def _open_journal(self) -> Journal:
        self._writer = JournalWriter(
            self.directory,
            self.project,
            self.run,
            self.attempt,
            started=self._started,
            journal_bytes=self._journal_bytes,
            files=self._files,
        )
        return self._writer

    def _after_fork_in_child(self) -> None:
        self._handoff.forget_in_child()
        self._flushed = threading.Condition()
        self._drops.forget_lock()
        if self._writer is not None:
            # The child's copy of the lock's descriptor would keep the attempt alive after the parent's death.
            self._writer.close()
        if self._uploader is not None:
            self._uploader.forget_in_child()


def _make_uploader(run_folder: Path, service: str, token: str | None) -> "Uploader":
    # Imported only here: the HTTP client costs import time that a trainer with a sidecar need not pay.
    from lossguard.sidecar.uploader import Uploader

    return Uploader(run_folder, service, token=token)


def checked_token(token: str | None) -> str | None:
    """A bearer token, or None.

    Raises:
        ValueError: no header can hold it. The message does not repeat it.
    """
    if token is not None and not (isinstance(token, str) and token.isprintable() and token == token.strip()):
        raise ValueError("token: must be text in one line, as `lossguard token` printed it")
    return token


def _checked_path(directory: str | os.PathLike[str]) -> Path:
    try:
        return Path(directory)
    except TypeError:
        raise ValueError(f"directory: must be the path of a folder, got {directory!r}") from None


def checked_config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """A run's config as its first event holds it.

    Raises:
        ValueError: it is nothing that JSON holds, or too large; the message says what.
    """
    if not isinstance(config, Mapping | None):
        raise ValueError(f"config: must be a JSON-like mapping, got {config!r}")
    try:
        checked: dict[str, Any] = json.loads(json.dumps(to_json(dict(config or {})), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"config: must be a JSON-like mapping: {error}") from None
    if len(json.dumps(checked)) > 256 << 10:
        raise ValueError("config: at most 256 KiB of JSON")
    check_config(checked)
    return checked


def _after_fork_in_child() -> None:
    for recorder in list(_open_recorders):
        recorder._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
