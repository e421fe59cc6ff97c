"""The reader: one attempt's sealed chunks, in order, until they are acknowledged.

Guarantees. `next` gives the first chunk that was not acknowledged, as often as it is asked; `acknowledge` moves past it
and survives a crash by at most one step back. Whole segments are deleted once everything in them was acknowledged.
Damaged bytes are passed over and counted, and a tail is called torn only when its writer is gone. For one shipper at
a time (`RunLock`).
"""

import errno
import fcntl
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lossguard.journal.layout import (
    BEAT_BYTES,
    CURSOR_NAME,
    LOCK_NAME,
    REJECTED_NAME,
    SHIPPING_NAME,
    order_of,
    segments,
)
from lossguard.journal.segment import FILE_HEADER_BYTES, Damage, Record, read_header, read_record

SILENT_SECONDS: Final = 900.0
"""Where the file system has no locks, a writer counts as gone after so long without a write."""


@dataclass(slots=True)
class Cut:
    """Bytes that were passed over because they are no whole record.

    Attributes:
        tails: torn tails, one per killed writer at most.
        tail_bytes: their bytes.
        damages: stretches of rotten bytes in the middle.
        damage_bytes: their bytes.
    """

    tails: int = 0
    tail_bytes: int = 0
    damages: int = 0
    damage_bytes: int = 0


class AttemptReader:
    """One attempt's folder.

    Args:
        folder: the attempt's folder; its name is the attempt.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.attempt = folder.name
        self.order = order_of(folder)
        self.cut = Cut()
        self._segment = 0
        self._offset = 0
        self.next_index = 0
        """The index that comes next, if nothing in between has rotted."""
        self._is_new = True
        self.last_step: int | None = None
        self._file = -1
        self._file_number = 0
        self._load_cursor()

    def _load_cursor(self) -> None:
        try:
            cursor = json.loads((self.folder / CURSOR_NAME).read_bytes())
            self._segment, self._offset = int(cursor["segment"]), int(cursor["offset"])
            self.next_index = int(cursor["next_index"])
            self.last_step = None if cursor["last_step"] is None else int(cursor["last_step"])
            self._is_new = False
        except (OSError, ValueError, KeyError, TypeError):
            # No cursor or a broken one: begin again, the service knows what it has.
            self._segment, self._offset, self.next_index = 0, 0, 0

    def next(self) -> Record | None:
        """The first sealed chunk that was not acknowledged; None if there is none now."""
        while True:
            last = self._position()
            if last is None:
                return None
            found = self._read()
            if isinstance(found, Record):
                return found
            # Asked in this order: a writer that is gone now wrote nothing after what we just read.
            if last and self.alive():
                return None
            if last:
                found = self._read()
                if isinstance(found, Record):
                    return found
            if isinstance(found, Damage):
                self._count(found)
                self._offset = found.end
                self._save_cursor()
                if not found.tail:
                    continue
            if last:
                return None
            self._leave_segment()

    def _position(self) -> bool | None:
        """Open the segment to read; returns whether it is the last one, None if there is none."""
        there = [(number, path) for number, path in segments(self.folder) if number >= self._segment]
        if not there:
            return None
        number, path = there[0]
        if number != self._segment:
            self._segment, self._offset = number, 0
        if self._file < 0 or self._file_number != number:
            self.close()
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._file_number = number
        return len(there) == 1

    def _read(self) -> Record | Damage | None:
        if self._offset == 0:
            size = os.fstat(self._file).st_size
            if size == 0:
                return None
            header = read_header(self._file) if size >= FILE_HEADER_BYTES else None
            if header is not None:
                self._offset = FILE_HEADER_BYTES
                # After a lost cursor: what was before this file was acknowledged, or it would be here.
                self.next_index = max(self.next_index, header.first_index if self._is_new else 0)
                self._is_new = False
        return read_record(self._file, self._offset)

    def _count(self, damage: Damage) -> None:
        if damage.tail:
            self.cut.tails += 1
            self.cut.tail_bytes += damage.end - damage.start
        else:
            self.cut.damages += 1
            self.cut.damage_bytes += damage.end - damage.start

    def _leave_segment(self) -> None:
        done = self._segment
        self.close()
        self._segment, self._offset = done + 1, 0
        self._save_cursor()
        for number, path in segments(self.folder):
            if number <= done:
                path.unlink(missing_ok=True)

    def acknowledge(self, record: Record, last_step: int | None = None) -> None:
        """Move past a record that `next` gave: the service has it, or it was set aside.

        Args:
            record: the record.
            last_step: the last step it speaks of, if it speaks of one.
        """
        self._offset = record.end
        self.last_step = self.last_step if last_step is None else last_step
        self.next_index = record.index + 1
        self._save_cursor()

    def set_aside(self, record: Record, reason: str) -> Path:
        """Keep a chunk that the service refused, with the reason, and move past it; returns where it lies."""
        folder = self.folder / REJECTED_NAME
        folder.mkdir(exist_ok=True)
        path = folder / f"{record.index:08d}.chunk"
        path.write_bytes(record.chunk)
        path.with_suffix(".json").write_text(json.dumps({"index": record.index, "reason": reason}) + "\n")
        self.acknowledge(record)
        return path

    def _save_cursor(self) -> None:
        # Not synced, and a full disk is no reason to stop shipping, which is what empties it: with an old or broken
        # cursor chunks are sent again and the service answers that it has them.
        cursor = {
            "segment": self._segment,
            "offset": self._offset,
            "next_index": self.next_index,
            "last_step": self.last_step,
        }
        new = self.folder / (CURSOR_NAME + ".new")
        with suppress(OSError):
            new.write_text(json.dumps(cursor) + "\n")
            new.replace(self.folder / CURSOR_NAME)

    def alive(self) -> bool:
        """True while the attempt's writer lives and has not closed."""
        try:
            lock = os.open(self.folder / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return True
            return time.time() - self._last_write() < SILENT_SECONDS
        finally:
            os.close(lock)

    def newest_step(self) -> int | None:
        """The last step that the trainer handed over, shipped or not; None if none is known."""
        told = None
        with suppress(OSError, ValueError):  # a trainer of a version before tells none
            told = int((self.folder / LOCK_NAME).read_bytes()[:BEAT_BYTES])
        known = [step for step in (told, self.last_step) if step is not None]
        return max(known, default=None)

    def _last_write(self) -> float:
        times = []
        for path in [self.folder / LOCK_NAME, *(path for _, path in segments(self.folder))]:
            with suppress(FileNotFoundError):
                times.append(path.stat().st_mtime)
        return max(times, default=0.0)

    def backlog_bytes(self) -> int:
        """Bytes that were not acknowledged yet."""
        total = 0
        for number, path in segments(self.folder):
            with suppress(FileNotFoundError):
                size = path.stat().st_size
                total += max(0, size - self._offset) if number == self._segment else size * (number > self._segment)
        return total

    def remove_if_done(self) -> bool:
        """Delete the folder if its writer is gone and all it sealed was acknowledged; what was set aside stays.

        Returns:
            True if nothing is left to ship and nothing will come.
        """
        if self.alive() or self.next() is not None:
            return False
        self.close()
        for _, path in segments(self.folder):
            path.unlink(missing_ok=True)
        if (self.folder / REJECTED_NAME).is_dir():
            return True
        shutil.rmtree(self.folder, ignore_errors=True)
        return True

    def close(self) -> None:
        """Close the segment that is being read."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)


def remove_stillborn(run_folder: Path, now: float) -> None:
    """Delete what attempts left that died while they were being made, an hour ago or more."""
    for folder in run_folder.glob(".new-*"):
        with suppress(OSError):
            if now - folder.stat().st_mtime > 3600.0:
                shutil.rmtree(folder)


class RunLock:
    """One shipper per run: the in-process uploader and a sidecar do not send the same chunks twice.

    Where the file system has no locks it is always granted: the service deduplicates.
    """

    def __init__(self, run_folder: Path) -> None:
        self._path = run_folder / SHIPPING_NAME
        self._file = -1

    def acquire(self) -> bool:
        """True if the run is ours to ship now; may be called again and again."""
        if self._file >= 0:
            return True
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(file)
                return False
        self._file = file
        return True

    def release(self) -> None:
        """Let another shipper have the run."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)
