"""The file-system seam: everything the journal's writer does to a disk goes through these few methods.

`LocalFiles` is the real one. Tests put a disk under the writer that writes short, fills up, breaks, or dies between any
two calls. Errors are `OSError` with an errno, as the operating system raises them.
"""

import os
from pathlib import Path
from typing import Protocol


class Files(Protocol):
    """What a journal needs of a disk. A file is known by its descriptor."""

    def create(self, path: Path) -> int:
        """A new, empty file, open for appending. Raises `FileExistsError` if there is one."""
        ...

    def append(self, file: int, data: memoryview) -> int:
        """Write at the end; returns how many bytes were written, which may be fewer than given."""
        ...

    def sync(self, file: int) -> None:
        """Return when the file's bytes are on the disk."""
        ...

    def truncate(self, file: int, size: int) -> None:
        """Cut the file to `size` bytes."""
        ...

    def close(self, file: int) -> None:
        """Forget the descriptor."""
        ...


class LocalFiles:
    """The disk of this machine."""

    def create(self, path: Path) -> int:
        """See `Files.create`."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def append(self, file: int, data: memoryview) -> int:
        """See `Files.append`."""
        return os.write(file, data)

    def sync(self, file: int) -> None:
        """See `Files.sync`; the size is part of what fdatasync writes."""
        os.fdatasync(file) if hasattr(os, "fdatasync") else os.fsync(file)

    def truncate(self, file: int, size: int) -> None:
        """See `Files.truncate`."""
        os.ftruncate(file, size)

    def close(self, file: int) -> None:
        """See `Files.close`."""
        os.close(file)
