"""The sign of life of a process that trains a run but does not journal it.

Guarantees. `beat` only stores a number: it never blocks, never raises, never touches the disk. One daemon thread writes
the file (`lossguard.journal.heartbeat`), a second one tells the service if one is given. A forked child is no worker.
However the process ends, a sidecar beside it sees that: the file is gone, or its lock is.
"""

import atexit
import os
import secrets
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lossguard.guard import guarded
from lossguard.journal.heartbeat import Heartbeat, HeartbeatFile
from lossguard.wire.chunk import AttemptEnd, Event
from lossguard.wire.frame import Frames
from lossguard.wire.names import check_name

if TYPE_CHECKING:
    from lossguard.sidecar.uploader import Uploader

BEAT_SECONDS: Final = 1.0

_living: "weakref.WeakSet[Worker]" = weakref.WeakSet()


class Worker:
    """One process of a run, not its chief; stands where the chief has its `lossguard.recorder.Recorder`.

    Args:
        directory: root of the journal, on a local disk.
        project, run: the run's names (`lossguard.wire.names`), as the chief has them.
        rank: 1 or more.
        start_step: updates before this process began.
        service: URL of the service; None leaves the telling to a sidecar.
        token: bearer token for the service.

    Raises:
        ValueError: an argument is wrong; the message names it.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        project: str,
        run: str,
        rank: int,
        *,
        start_step: int = 0,
        service: str | None = None,
        token: str | None = None,
    ) -> None:
        if not 1 <= rank <= 99_999:
            raise ValueError(f"rank: must be 1 to 99999, got {rank!r}: the chief has rank 0 and journals")
        self.rank: Final = rank
        self.key: Final = secrets.token_hex(16)
        self._folder = Path(directory) / check_name("project", project) / check_name("run", run)
        self._step, self._seconds = start_step, time.time()
        self._file: HeartbeatFile | None = None
        self._ending = threading.Event()
        self._pid = os.getpid()
        self._uploader = None if service is None else _started_uploader(self._folder, service, token)
        self._thread = threading.Thread(target=self._work, name=f"lossguard-worker-{rank}", daemon=True)
        self._thread.start()
        _living.add(self)
        atexit.register(self.close)

    def beat(self, step: int) -> None:
        """Say that `step` updates were made."""
        self._step, self._seconds = step, time.time()

    def record(self, frames: Frames) -> bool:
        """Only how far they go is told: the chief has the same frames, and journals them."""
        if len(frames):
            self.beat(int(frames.steps[-1]))
        return True

    def event(self, event: Event) -> bool:
        """The chief's business."""
        return True

    def drop(self, reason: str, count: int) -> None:
        """What is not journalled cannot be lost."""

    def seal(self) -> None:
        """The chief's business."""

    @guarded("Worker.close", None)
    def close(self, reason: AttemptEnd = "finished", timeout_seconds: float = 5.0, *, skipped_steps: int = 0) -> None:
        """End in order, whatever the reason; what was skipped, the chief tells. Calling it again does nothing."""
        if os.getpid() != self._pid or self._ending.is_set():
            return
        self._ending.set()
        atexit.unregister(self.close)
        _living.discard(self)
        self._thread.join(timeout_seconds)
        if self._uploader is not None:
            self._uploader.close(timeout_seconds)

    def _work(self) -> None:
        while True:
            self._write()
            if self._ending.wait(BEAT_SECONDS):
                break
        if self._file is not None:
            self._file.close()

    @guarded("Worker.write", None)
    def _write(self) -> None:
        if self._file is None:
            self._file = HeartbeatFile(self._folder, self.rank)
        self._file.write(Heartbeat(self.key, self.rank, self._step, self._seconds))

    def _after_fork_in_child(self) -> None:
        self._ending = threading.Event()
        if self._file is not None:
            # The child's copy of the lock's descriptor would keep the worker alive after the parent's death.
            self._file.let_go()
        if self._uploader is not None:
            self._uploader.forget_in_child()


def _started_uploader(run_folder: Path, service: str, token: str | None) -> "Uploader":
    # Imported only here: the HTTP client costs import time that a trainer with a sidecar need not pay.
    from lossguard.sidecar.uploader import Uploader

    uploader = Uploader(run_folder, service, token=token)
    uploader.start()
    return uploader


def _after_fork_in_child() -> None:
    for worker in list(_living):
        worker._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
