"""Signs of life of a run's other workers.

Of a training that runs in several processes only the chief journals. Each other worker keeps one file,
<directory>/<project>/<run>/workers/<rank>.heartbeat: 256 bytes, JSON filled up with spaces and rewritten in place,
under a flock that the worker holds as long as it lives. A worker that ends in order deletes its file; a file without a
lock is what a killed one left. A worker that hangs keeps the lock, and its step stands still.
"""

import fcntl
import json
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lossguard.journal.reader import SILENT_SECONDS
from lossguard.journal.writer import NO_LOCKS

FOLDER_NAME: Final = "workers"
_BYTES: Final = 256
_NAME = re.compile(r"(\d{5})\.heartbeat")


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker's file says.

    Attributes:
        key: 32 hex digits that the worker drew when it began.
        worker: its rank, 1 or more; the chief is 0.
        last_step: the last update it made.
        seconds: Unix seconds of that.
        alive: whether its process lives.
    """

    key: str
    worker: int
    last_step: int
    seconds: float
    alive: bool = True

    def to_json(self) -> dict[str, object]:
        """As the service takes it; a key that is no attempt's never counts as the chief's progress."""
        return {"attempt": self.key, "worker": self.worker, "last_step": self.last_step, "time": self.seconds}


class HeartbeatFile:
    """The writing side, for one process. Not for use from several threads at once.

    Args:
        run_folder: `<journal>/<project>/<run>`.
        worker: the rank, 1 to 99999.

    Raises:
        OSError: the file could not be made.
    """

    def __init__(self, run_folder: Path, worker: int) -> None:
        folder = run_folder / FOLDER_NAME
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{worker:05d}.heartbeat"
        new = folder / f".new-{worker:05d}-{os.getpid()}"
        self._file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            # Locked before it has its name, so that no reader ever sees a living worker unlocked.
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            new.rename(self._path)
        except BaseException:
            self.let_go()
            with suppress(OSError):
                new.unlink()
            raise

    def write(self, beat: Heartbeat) -> None:
        """Say how far the worker is.

        Raises:
            OSError: the disk refused.
        """
        os.pwrite(self._file, json.dumps(beat.to_json()).encode().ljust(_BYTES), 0)

    def close(self) -> None:
        """End in order: the file goes."""
        if self._file >= 0:
            with suppress(OSError):
                if os.fstat(self._file).st_ino == os.stat(self._path).st_ino:
                    self._path.unlink()
            self.let_go()

    def let_go(self) -> None:
        """Close the descriptor and leave the file; after a fork, in the child."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)


def heartbeats(run_folder: Path) -> list[Heartbeat]:
    """The run's workers beside the chief, by rank: those that live, and those that were killed."""
    try:
        names = sorted(os.listdir(run_folder / FOLDER_NAME))
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        beat = None if match is None else _read(run_folder / FOLDER_NAME / name, int(match[1]))
        if beat is not None:
            found.append(beat)
    return found


def forget(run_folder: Path, beat: Heartbeat) -> None:
    """Delete what a killed worker left, unless a new one of its rank lives there by now."""
    path = run_folder / FOLDER_NAME / f"{beat.worker:05d}.heartbeat"
    now = _read(path, beat.worker)
    if now is not None and not now.alive and now.key == beat.key:
        path.unlink(missing_ok=True)


def _read(path: Path, worker: int) -> Heartbeat | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        alive = _locked(file)
        said = json.loads(os.pread(file, _BYTES, 0))
        return Heartbeat(str(said["attempt"]), worker, int(said["last_step"]), float(said["time"]), alive)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not written yet, or rotten: the next beat says it
    finally:
        os.close(file)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_LOCKS or time.time() - os.fstat(file).st_mtime < SILENT_SECONDS
    return False
