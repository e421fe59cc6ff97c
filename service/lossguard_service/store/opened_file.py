"""Whether the file that is open still is the one that the path names.

On Unix an open file lives on when it is deleted or when another one takes its name. What is committed to it then is
gone with the process, although the disk took it: chunks would be acknowledged, and deleted by their sidecars, for
nothing.
"""

import os
from pathlib import Path


class DatabaseMoved(OSError):
    """The path names no file, or another one than is open; nothing of the transaction was stored."""


class OpenedFile:
    """Remembers which file the path names when it is asked first, right after the file was opened."""

    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        self._known: tuple[int, int] | None = None

    def check(self) -> None:
        """Ask again; 2 us on a local disk.

        Raises:
            DatabaseMoved: with a sentence for whoever runs the service.
        """
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            raise DatabaseMoved(f"{self._path} was deleted while the service had it open: {_WHAT_TO_DO}") from None
        identity = found.st_dev, found.st_ino
        if self._known is None:
            self._known = identity
        elif self._known != identity:
            raise DatabaseMoved(f"{self._path} was replaced while the service had it open: {_WHAT_TO_DO}")


_WHAT_TO_DO = "stop the service, put the right file there, and start it again"
