"""Makes an export visible to TensorFlow Serving: `<destination>/<version>/`, atomically.

Guarantees. Only with a verdict that is `pass`, for exactly the bytes that were staged (digested again after the copy).
The version appears in one rename, complete and on disk, with the verdict beside the model; before that there is only a
folder whose name starts with a dot, which TensorFlow Serving does not look at. Nothing is ever overwritten; concurrent
publishers get different versions. A process killed at any point leaves at most such a dot-folder, which the next
publisher removes once nobody holds its lock.
"""

import ctypes
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lossguard.gate.artifact import model_kind
from lossguard.gate.digest import VERDICT_NAME, ArtifactFile, artifact_digest, blocks, list_files
from lossguard.gate.errors import NotPublished
from lossguard.gate.signature import check_signature
from lossguard.wire.numbers import to_json
from lossguard.wire.verdict import Verdict, outcome_of

STAGING: Final = ".lossguard-staging-"
MAX_VERSION: Final = 2**63 - 1
_RENAME_NOREPLACE: Final = 1
_AT_FDCWD: Final = -100


def publish(
    artifact: str | Path,
    destination: str | Path,
    verdict: Verdict,
    version: int | None = None,
    *,
    document: Mapping[str, Any] | None = None,
    keys: Mapping[str, bytes] | None = None,
) -> Path:
    """Copy the artifact to `<destination>/<version>/` and make it visible in one step.

    Args:
        artifact: the exported folder or file.
        destination: the model's folder, which TensorFlow Serving watches; is made if it is not there.
        verdict: the service's answer about exactly this artifact.
        version: 1 or more; by default one more than the highest there.
        document: the verdict's JSON as the service sent it, with its signature; by default the verdict alone.
        keys: the public keys that are trusted, by id; with them, only a verdict signed by one of them is published.

    Returns:
        The version's folder.

    Raises:
        NotAModel, ArtifactUnreadable, ArtifactChanged: see `lossguard.gate.errors`.
        NotVerified: the verdict is not signed by one of `keys`.
        NotPublished: the verdict is not a pass for these bytes, the version is taken, or the disk refused. Nothing
            became visible.
    """
    source, target = Path(artifact), Path(destination)
    _must_pass(verdict)
    if document is not None and Verdict.from_json(dict(document)) != Verdict.from_json(verdict.to_json()):
        raise NotPublished("document: is not the JSON of this verdict")
    if keys:
        check_signature(verdict, document or {}, keys)
    if version is not None and not 1 <= version <= MAX_VERSION:
        raise NotPublished(f"--version: must be 1 to {MAX_VERSION}, got {version}")
    model_kind(source)
    if target.exists() and not target.is_dir():
        raise NotPublished(f"{target} is not a folder: name a folder with --to (of check: --publish-to)")
    if target.resolve().is_relative_to(source.resolve()):
        raise NotPublished(f"{target} lies within the artifact {source}: publish to a folder outside of it")
    try:
        _make_folder(target)
        if version is not None and os.path.lexists(target / str(version)):
            raise _taken(target, version)
        sweep(target)
        staging, lock = _open_staging(target)
        try:
            _stage(source, staging, verdict, dict(document or verdict.to_json()))
            return _appear(staging, target, version)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            os.close(lock)
    except OSError as error:
        raise NotPublished(
            f"{error.filename or target}: {error.strerror or error}. Nothing was published; make room or grant the "
            "right to write, and publish again."
        ) from error


def next_version(destination: str | Path) -> int:
    """One more than the highest version there; 1 in an empty folder."""
    taken = (version_of(name) for name in os.listdir(destination))
    return max((version for version in taken if version is not None), default=0) + 1


def version_of(name: str) -> int | None:
    """The version as which TensorFlow Serving would serve a folder of that name; None if it would not.

    Its parser skips spaces around the number; signs are taken for numbers here too, to be on the safe side.

    >>> version_of("007"), version_of(" 7"), version_of(".lossguard-staging-7"), version_of("7b")
    (7, 7, None, None)
    """
    return int(name) if re.fullmatch(r"\s*[+-]?[0-9]+\s*", name) else None


def sweep(destination: str | Path) -> list[Path]:
    """Remove what killed publishers left behind, and say what was removed; those at work hold a lock and stay."""
    removed = []
    for entry in os.listdir(destination):
        path = Path(destination) / entry
        if not entry.startswith(STAGING) or path.is_symlink() or not path.is_dir():
            continue
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
        except OSError:
            continue
        finally:
            os.close(lock)
    return removed


def _must_pass(verdict: Verdict) -> None:
    if verdict.outcome != "pass" or outcome_of(verdict.checks) != "pass":
        reasons = " ".join(verdict.reasons[:3])
        raise NotPublished(f"the verdict is {verdict.outcome}, and only a pass is published. {reasons}".strip())


def _make_folder(target: Path) -> None:
    missing = [folder for folder in (target, *target.parents) if not folder.exists()]
    target.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def _open_staging(target: Path) -> tuple[Path, int]:
    for _ in range(100):
        staging = target / f"{STAGING}{secrets.token_hex(8)}"
        os.mkdir(staging)
        try:
            lock = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another publisher may have swept it between the two calls; then its name is gone, and we begin again.
        if staging.is_dir() and os.path.samestat(os.fstat(lock), os.stat(staging)):
            return staging, lock
        os.close(lock)
    raise NotPublished(f"no staging folder could be held in {target}: is another process removing dot-folders there?")


def _stage(source: Path, staging: Path, verdict: Verdict, document: dict[str, Any]) -> None:
    folders = {staging}
    for file in list_files(source):
        copy = staging / os.fsdecode(file.path)
        for folder in reversed(copy.relative_to(staging).parents[:-1]):
            if staging / folder not in folders:
                os.mkdir(staging / folder)
                folders.add(staging / folder)
        _copy(file, copy)
    staged = artifact_digest(staging)
    if staged != verdict.artifact_digest:
        raise NotPublished(
            f"the verdict is about {verdict.artifact_digest}, and these bytes are {staged}: the export changed since "
            "it was judged. Ask the gate again (`lossguard gate check`)."
        )
    write_durably(staging / VERDICT_NAME, json.dumps(to_json(document), indent=1, ensure_ascii=False).encode())
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        sync_folder(folder)


def _copy(file: ArtifactFile, copy: Path) -> None:
    descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for block in blocks(file):
            _write(descriptor, block)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _write(descriptor, memoryview(data))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(descriptor: int, block: memoryview) -> None:
    while block:
        block = block[os.write(descriptor, block) :]


def _appear(staging: Path, target: Path, version: int | None) -> Path:
    while True:
        number = next_version(target) if version is None else version
        if number > MAX_VERSION:
            raise NotPublished(f"{target} holds version {MAX_VERSION}, the highest there is: name a --version")
        place = target / str(number)
        try:
            rename_new(staging, place)
        except FileExistsError:
            if version is not None:
                raise _taken(target, version) from None
            continue
        sync_folder(target)
        return place


def _taken(target: Path, version: int) -> NotPublished:
    return NotPublished(
        f"{target / str(version)} is there already, and nothing is ever overwritten: leave --version out to get the "
        f"next one, {next_version(target)}"
    )


def rename_new(source: Path, target: Path) -> None:
    """Rename a folder to a name that must not exist; in one step where the system can.

    Raises:
        FileExistsError: the name is taken, be it by an empty folder, which a plain rename would replace.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None, use_errno=True)
        done = library.renameat2(
            _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(_RENAME_NOREPLACE)
        )
        if done == 0:
            return
        code = ctypes.get_errno()
        if code in (errno.EEXIST, errno.ENOTEMPTY):
            raise FileExistsError(code, os.strerror(code), str(target))
        # Some network file systems know no such flag; there, publishers take turns by a lock on the folder.
        if code not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise OSError(code, os.strerror(code), str(target))
    lock = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(source, target)
    finally:
        os.close(lock)
