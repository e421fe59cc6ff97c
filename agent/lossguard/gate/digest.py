"""The digest of an artifact: one SHA-256 over every file's path, size and content.

Guarantees. Streaming, with bounded memory. The same tree gives the same digest on every machine; a changed byte, a
renamed, added or removed file gives another one. `lossguard_verdict.json` at the top is not part of the artifact: it
is where the verdict about it lies. Links that leave the tree, links to folders, devices and sockets are refused.

The digest, version 1: SHA-256 of the line `lossguard artifact 1\\n`, then for each file in the byte order of its
relative path (with `/`): 8 bytes length of the path, the path, 8 bytes size, the content; numbers little-endian. Empty
folders do not count. A single file counts as a tree that holds only it, under its own name.
"""

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lossguard.gate.errors import ArtifactChanged, ArtifactUnreadable

VERDICT_NAME: Final = "lossguard_verdict.json"
"""The verdict's file beside the model, at the top of the artifact."""
BLOCK_BYTES: Final = 1 << 20
_HEADER: Final = b"lossguard artifact 1\n"


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """One file of an artifact.

    Attributes:
        path: relative to the artifact, with `/`, as the file system's bytes.
        source: where to read it.
        size: in bytes, when it was found.
        stamp: inode and times, which tell whether it was written to since.
    """

    path: bytes
    source: Path
    size: int
    stamp: tuple[int, int, int]


def list_files(artifact: Path) -> list[ArtifactFile]:
    """The artifact's files in digest order.

    Raises:
        ArtifactUnreadable: something in it cannot be part of an export.
    """
    if not artifact.exists():
        raise ArtifactUnreadable(f"{artifact} does not exist: name the exported folder or file with --artifact")
    try:
        root = artifact.resolve(strict=True)
        if not root.is_dir():
            return [_file(root, os.fsencode(artifact.name), root.parent)]
        files = [_file(path, relative, root) for path, relative in _walk(root, b"")]
    except OSError as error:
        raise ArtifactUnreadable(f"{error.filename or artifact} cannot be read: {error.strerror}") from None
    return sorted((file for file in files if file.path != os.fsencode(VERDICT_NAME)), key=lambda file: file.path)


def artifact_digest(artifact: str | Path, *, seen: Callable[[ArtifactFile, memoryview], None] | None = None) -> str:
    """The digest, as `sha256:` and 64 hex digits.

    Args:
        artifact: a folder or a file.
        seen: is handed every block that is hashed, so that a copy or a scan reads the bytes once.

    Raises:
        ArtifactUnreadable: something in it cannot be part of an export.
        ArtifactChanged: a file grew, shrank or vanished while it was read.
    """
    return digest_of(list_files(Path(artifact)), seen=seen)


def digest_of(files: list[ArtifactFile], *, seen: Callable[[ArtifactFile, memoryview], None] | None = None) -> str:
    """The digest of files that `list_files` found."""
    sha = hashlib.sha256(_HEADER)
    for file in files:
        hash_file(sha, file, seen)
    return f"sha256:{sha.hexdigest()}"


def hash_file(sha: Any, file: ArtifactFile, seen: Callable[[ArtifactFile, memoryview], None] | None = None) -> None:
    """Add one file to the hash."""
    sha.update(struct.pack("<Q", len(file.path)) + file.path + struct.pack("<Q", file.size))
    left = file.size
    for block in blocks(file):
        left -= len(block)
        if left < 0:
            break
        sha.update(block)
        if seen is not None:
            seen(file, block)
    if left != 0:
        raise ArtifactChanged(f"{file.source} changed while it was read: wait until the export is done, then ask again")


def blocks(file: ArtifactFile) -> Iterator[memoryview]:
    """The file's content, block by block; each block is overwritten by the next."""
    buffer = bytearray(BLOCK_BYTES)
    view = memoryview(buffer)
    try:
        with open(file.source, "rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                yield view[:count]
    except OSError as error:
        raise ArtifactChanged(f"{file.source} cannot be read: {error.strerror}") from None


def _walk(folder: Path, prefix: bytes) -> Iterator[tuple[Path, bytes]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            relative = prefix + os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder / entry.name, relative + b"/")
            else:
                yield folder / entry.name, relative


def _file(path: Path, relative: bytes, root: Path) -> ArtifactFile:
    source = path
    if path.is_symlink():
        try:
            source = path.resolve(strict=True)
        except (OSError, RuntimeError):
            raise ArtifactUnreadable(f"{path} is a link to nothing: export again, or remove it") from None
        if not source.is_relative_to(root):
            raise ArtifactUnreadable(
                f"{path} is a link to {source}, outside of the artifact: copy the file into it, so that what is judged "
                "is what is served"
            )
        if source.is_dir():
            raise ArtifactUnreadable(f"{path} is a link to a folder: copy the folder's files instead")
    status = source.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactUnreadable(f"{path} is neither a file nor a folder: an export holds nothing else")
    stamp = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    return ArtifactFile(relative, source, status.st_size, stamp)
