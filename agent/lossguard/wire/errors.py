"""Why bytes are not a chunk that we can read, and the checks of single values that all of the header goes through."""

import math
from typing import Any, Final

MAX_NAME_LENGTH: Final = 512
MAX_PATH_LENGTH: Final = 4_096
MAX_INTEGER: Final = (1 << 53) - 1


class ChunkError(ValueError):
    """Bytes that are not a chunk we can read. Nothing was decoded; keep the bytes if you want to look at them.

    ChunkError
    ├── TruncatedChunk       the bytes end early
    ├── CorruptChunk         the checksum or the structure is wrong
    ├── UnsupportedVersion   written by a newer Lossguard: update this side
    └── ChunkTooLarge        a limit of the format is passed
    """


class TruncatedChunk(ChunkError):
    """The bytes end before the chunk does."""


class CorruptChunk(ChunkError):
    """The checksum does not match, or a part contradicts another."""


class UnsupportedVersion(ChunkError):
    """A later format version: this side must be updated to read it."""


class ChunkTooLarge(ChunkError):
    """More frames, names or bytes than the format allows."""


def check_config(value: Any, depth: int = 0) -> None:
    """Refuse what some database or JSON parser behind us cannot hold.

    Raises:
        CorruptChunk: the value is no JSON, or holds NUL, a lone surrogate, a non-finite or a very large number.
    """
    if depth > 32:
        raise CorruptChunk("config: nested deeper than 32 levels")
    if isinstance(value, str):
        if "\0" in value or not _is_unicode(value):
            raise CorruptChunk("config: text must be Unicode without NUL")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise CorruptChunk('config: numbers must be finite; write "NaN", "Infinity" or "-Infinity" as text')
    elif isinstance(value, int):
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise CorruptChunk("config: whole numbers must have at most 53 bits; write larger ones as text")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_config(key, depth)
            check_config(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_config(item, depth + 1)
    elif value is not None:
        raise CorruptChunk(f"config: must be JSON-like, {type(value).__name__} is not")


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def text(value: Any, what: str, longest: int = MAX_NAME_LENGTH) -> str:
    """The value, if it is printable text of 1 to `longest` characters; else `CorruptChunk`, which names `what`."""
    # Printable excludes lone surrogates and NUL, which databases refuse, and whatever breaks a log line.
    if not isinstance(value, str) or not 0 < len(value) <= longest or not value.isprintable():
        raise CorruptChunk(f"{what}: must be printable text of 1 to {longest} characters")
    return value


def natural(value: Any, what: str) -> int:
    """The value, if it is a whole number from 0 to `MAX_INTEGER`; else `CorruptChunk`, which names `what`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_INTEGER:
        raise CorruptChunk(f"{what}: must be a whole number from 0")
    return value
