"""A disk that misbehaves on demand, under the journal's writer."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from lossguard.journal.files import LocalFiles


class Crash(BaseException):
    """The process died here."""


class FaultyFiles:
    """`LocalFiles` with a fault drawn before every call.

    `draw(operation)` answers None (works), "short" (half is written), "full" (ENOSPC, half is written), "broken" (EIO),
    "lost" (EIO although the bytes were written), or "crash" (half is written, then the process dies).
    """

    def __init__(self, draw: Callable[[str], str | None] = lambda operation: None) -> None:
        self.draw = draw
        self._real = LocalFiles()
        self._paths: dict[int, Path] = {}
        self.synced: dict[Path, int] = {}
        """Bytes that survive a power cut."""

    def create(self, path: Path) -> int:
        self._fail(self.draw("create"))
        file = self._real.create(path)
        self._paths[file] = path
        self.synced[path] = 0
        return file

    def append(self, file: int, data: memoryview) -> int:
        fault = self.draw("append")
        if fault in ("short", "full", "crash"):
            half = self._real.append(file, data[: len(data) // 2]) if len(data) > 1 else 0
            if fault == "short" and half:
                return half
            if fault == "full" and half:
                # The operating system reports what it wrote, and the error with the next call.
                self._next_append_fails(file)
                return half
        self._fail(fault)
        return self._real.append(file, data)

    def _next_append_fails(self, file: int) -> None:
        draw = self.draw

        def once(operation: str) -> str | None:
            self.draw = draw
            return "full-now"

        self.draw = once

    def sync(self, file: int) -> None:
        self._fail(self.draw("sync"))
        self._real.sync(file)
        self.synced[self._paths[file]] = os.fstat(file).st_size

    def truncate(self, file: int, size: int) -> None:
        self._fail(self.draw("truncate"))
        self._real.truncate(file, size)

    def close(self, file: int) -> None:
        self._paths.pop(file, None)
        self._real.close(file)

    def close_all(self) -> None:
        """What the kernel does when a process dies."""
        for file in list(self._paths):
            self.close(file)

    def _fail(self, fault: str | None) -> None:
        if fault in ("full", "full-now"):
            raise OSError(errno.ENOSPC, "no space left")
        if fault == "broken":
            raise OSError(errno.EIO, "broken")
        if fault == "crash":
            raise Crash
