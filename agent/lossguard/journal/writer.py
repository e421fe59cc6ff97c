"""The writer: one attempt's segments, appended by one process.

Guarantees. When `append` returns, the record is whole in the file (it survives `kill -9`) and on the disk as far as the
operating system can promise (it survives a power cut; `sync_failures` counts where it could not). When it raises, no
whole record was added and the same index may be used again. The run's folder, all attempts together, stays within
`journal_bytes`. Indices have no gaps: the next one is `next_index`. Where somebody deletes the files under the writer,
the next record goes to new ones: what was deleted is lost, and a gap that the service sees; what follows is not.

    JournalError
    └── JournalFull       the run's folder reached journal_bytes; ship it or raise the bound
    OSError               the disk's own words (ENOSPC, EIO, ...)
"""

import errno
import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from lossguard.journal.files import Files, LocalFiles
from lossguard.journal.layout import BEAT_BYTES, LOCK_NAME, attempt_folders, folder_bytes, next_order, segment_name
from lossguard.journal.segment import SegmentHeader, pack_record

NO_LOCKS: Final = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""What file systems without flock answer; the reader then judges by the time of the last write."""

_log = logging.getLogger("lossguard")


class JournalError(Exception):
    """The journal did not take the chunk. Nothing was written; the caller may try again later."""


class JournalFull(JournalError):
    """The run's folder is at its bound."""


class JournalWriter:
    """Appends chunks of one attempt. Not for use from several threads at once.

    Args:
        directory: the journal's root.
        project, run, attempt: whose chunks; the folder is `directory/project/run/attempt`.
        started: Unix seconds at which the attempt began.
        journal_bytes: bound of the run's folder over all its attempts.
        segment_bytes: a new file is begun when one has reached this size, or an eighth of the bound or of the volume.
        files: the disk.

    Raises:
        OSError: the folder or its lock could not be made.
    """

    def __init__(
        self,
        directory: Path,
        project: str,
        run: str,
        attempt: str,
        *,
        started: float,
        journal_bytes: int = 1 << 30,
        segment_bytes: int = 8 << 20,
        files: Files | None = None,
    ) -> None:
        self._files: Files = LocalFiles() if files is None else files
        self._run_folder = directory / project / run
        self._folder = self._run_folder / attempt
        self._started = started
        self._journal_bytes = journal_bytes
        self._segment: int | None = None
        self._segment_number = 0
        self._end = 0
        self._abandoned = False
        self.next_index = 0
        self.sync_failures = 0
        self._run_folder.mkdir(parents=True, exist_ok=True)
        # An open segment is never freed: where it is most of what there is, all that is shipped still lies there.
        room = min(journal_bytes, _volume_bytes(self._run_folder) or journal_bytes)
        self._segment_bytes = min(segment_bytes, max(1, room // 8))
        self._bytes = folder_bytes(self._run_folder)
        self._order = next_order(attempt_folders(self._run_folder))
        self._lock = self._make_folder()

    @property
    def folder(self) -> Path:
        """The attempt's folder."""
        return self._folder

    def _make_folder(self) -> int:
        # The lock is taken before the folder has its name, so that no shipper ever sees a living attempt unlocked.
        new = self._run_folder / f".new-{self._folder.name}"
        new.mkdir(exist_ok=True)  # it is ours from a try that found the disk full
        lock = self._make_lock(new)
        try:
            new.rename(self._folder)
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _make_lock(self, folder: Path) -> int:
        lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            # Written before anything else, so that later ones find their block also on a disk that is full.
            os.pwrite(lock, b" " * BEAT_BYTES, 0)
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _begin_anew(self) -> None:
        """Make again what somebody has deleted."""
        if not self._folder.is_dir():
            self._run_folder.mkdir(parents=True, exist_ok=True)
            lock = self._make_folder()
        else:
            lock = self._make_lock(self._folder)
        self._end_segment()
        os.close(self._lock)
        self._lock = lock
        self._bytes = folder_bytes(self._run_folder)
        _log.warning(
            "Lossguard: somebody deleted the journal %s of this training: what was in it and not shipped yet is lost; "
            "it goes on in new files",
            self._folder,
        )

    def beat(self, step: int) -> None:
        """Say in the lock file that `step` was handed over: the sign of life while nothing can be sealed or shipped."""
        with suppress(OSError):
            os.pwrite(self._lock, b"%*d" % (BEAT_BYTES, step), 0)

    def append(self, chunk: bytes) -> int:
        """Seal one chunk under `next_index`; returns that index.

        Raises:
            JournalFull, OSError: see the module; nothing was added.
        """
        index = self.next_index
        record = pack_record(index, chunk)
        if _is_deleted(self._lock, self._folder / LOCK_NAME):
            self._begin_anew()
        elif self._segment is not None and _is_deleted(
            self._segment, self._folder / segment_name(self._segment_number)
        ):
            self._abandoned = True
        self._check_bound(len(record))
        if self._segment is None or self._abandoned or self._end >= self._segment_bytes:
            self._begin_segment(index)
        self._write(record)
        self.next_index += 1
        self._sync()
        return index

    def _check_bound(self, more: int) -> None:
        if self._bytes + more > self._journal_bytes:
            self._bytes = folder_bytes(self._run_folder)
            if self._bytes + more > self._journal_bytes:
                raise JournalFull(
                    f"{self._run_folder} holds {self._bytes} of {self._journal_bytes} bytes: does a sidecar ship it?"
                )

    def _begin_segment(self, index: int) -> None:
        self._end_segment()
        self._segment_number += 1
        self._segment = self._files.create(self._folder / segment_name(self._segment_number))
        self._end = 0
        self._abandoned = False
        try:
            self._write(SegmentHeader(self._order, self._started, index).pack())
        except OSError:
            self._abandoned = True
            raise

    def _write(self, data: bytes) -> None:
        assert self._segment is not None
        view = memoryview(data)
        written = 0
        try:
            while written < len(view):
                step = self._files.append(self._segment, view[written:])
                if step <= 0:
                    raise OSError(errno.EIO, "the disk accepted no bytes")
                written += step
        except OSError:
            self._cut(written)
            raise
        self._end += written
        self._bytes += written

    def _cut(self, written: int) -> None:
        # If the torn bytes cannot be cut off, this file is over: readers skip the tail of a file, so the next record
        # goes to a new one.
        if written:
            assert self._segment is not None
            try:
                self._files.truncate(self._segment, self._end)
            except OSError:
                self._abandoned = True
                self._bytes += written

    def _sync(self) -> None:
        # The record is whole and a shipper may have read it already, so that a failed sync cannot take it back. What
        # such a file holds later is unknown (Linux drops the dirty pages), hence a new file.
        assert self._segment is not None
        try:
            self._files.sync(self._segment)
        except OSError:
            self.sync_failures += 1
            self._abandoned = True

    def _end_segment(self) -> None:
        if self._segment is not None:
            segment, self._segment = self._segment, None
            with suppress(OSError):
                self._files.close(segment)

    def close(self) -> None:
        """Let the lock go: whoever ships the folder now knows that nothing follows."""
        self._end_segment()
        if self._lock >= 0:
            lock, self._lock = self._lock, -1
            os.close(lock)


def _is_deleted(file: int, path: Path) -> bool:
    # Asked by path too: not every file system counts links.
    return os.fstat(file).st_nlink == 0 and not path.exists()


def _volume_bytes(folder: Path) -> int:
    """Size of the file system that the folder lies on; 0 where it does not say."""
    volume = os.statvfs(folder)
    return volume.f_blocks * volume.f_frsize
