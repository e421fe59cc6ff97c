"""Detector state as bytes: what `monitor.dumps` writes and `monitor.loads` reads.

A state is a tree of the dataclasses it is told about, dictionaries with string keys, lists, tuples, numbers, strings,
None and NumPy arrays. Bytes: the magic `LGS`, one version byte, then a zlib stream of: the length of the header (8
bytes, little endian), the header (JSON; floats by their shortest exact decimal, NaN and the infinities by JavaScript's
names, an array as its dtype, shape and offset), and the arrays one after the other. A round trip is exact to the bit.
It is a cache, not an archive: bytes of another version are refused, and the state is rebuilt by replaying the frames.
"""

import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
NOT_PACKED = {"packed": False}
"""Metadata of a field that is left out of the bytes; such fields come last and have a default."""
_MAGIC = b"LGS"
_TAG = "\x00"  # no key of a state begins with a NUL, so a tagged object cannot be mistaken for a dictionary


class StateError(ValueError):
    """These bytes are no detector state that this version can read: replay the run's frames into a fresh state."""


_FIXED = frozenset({int, float, str, bool, type(None), tuple, bytes})
_getters: dict[type, Callable[[Any], tuple[Any, ...]] | None] = {}
"""A memo of all fields' getters: asking `dataclasses` each time took most of a single frame's time."""


def clone(value: Any) -> Any:
    """A copy that shares nothing that can change; many times faster than `copy.deepcopy` on a state."""
    kind = type(value)
    if kind in _FIXED:
        return value
    if kind is np.ndarray:
        return value.copy()
    if kind is list:
        return value[:] if not value or type(value[0]) in _FIXED else [clone(item) for item in value]
    if kind is dict:
        return {key: clone(item) for key, item in value.items()}
    getter = _getter(kind)
    if getter is None:
        return value
    return kind(*[one if type(one) in _FIXED else clone(one) for one in getter(value)])


def shallow(value: T) -> T:
    """A copy of a dataclass that shares its fields' values."""
    getter = _getter(type(value))
    return value if getter is None else type(value)(*getter(value))


def lists(value: T) -> T:
    """A copy of a dataclass that shares all but its fields' lists, whose items it does share."""
    getter = _getter(type(value))
    if getter is None:
        return value
    return type(value)(*[one[:] if type(one) is list else one for one in getter(value)])


def _getter(kind: type) -> Callable[[Any], tuple[Any, ...]] | None:
    """All fields of a dataclass at once; None for another class."""
    try:
        return _getters[kind]
    except KeyError:
        names = [field.name for field in fields(kind)] if is_dataclass(kind) else []
        # A getter of one name gives a bare value.
        getter = attrgetter(*names) if len(names) > 1 else _single(names[0]) if names else None
        return _getters.setdefault(kind, getter)


def _single(name: str) -> Callable[[Any], tuple[Any, ...]]:
    return lambda value: (getattr(value, name),)


def dumps(state: Any, version: int) -> bytes:
    """The bytes of a state; `version` (1 to 255) names the meaning of its fields."""
    arrays: list[bytes] = []
    offset = 0

    def encode(value: Any) -> Any:
        nonlocal offset
        if isinstance(value, np.ndarray):
            data = np.ascontiguousarray(value).tobytes()
            arrays.append(data)
            offset += len(data)
            return {_TAG + "array": [value.dtype.str, list(value.shape), offset - len(data)]}
        if is_dataclass(value) and not isinstance(value, type):
            return {
                _TAG + type(value).__name__: [
                    encode(getattr(value, field.name)) for field in fields(value) if not field.metadata
                ]
            }
        if isinstance(value, tuple):
            return {_TAG + "tuple": [encode(item) for item in value]}
        if isinstance(value, list):
            return [encode(item) for item in value]
        if isinstance(value, dict):
            return {key: encode(item) for key, item in value.items()}
        if isinstance(value, np.generic):
            return value.item()
        return value

    header = json.dumps(encode(state), separators=(",", ":")).encode()
    body = b"".join([len(header).to_bytes(8, "little"), header, *arrays])
    return _MAGIC + bytes([version]) + zlib.compress(body, 1)


def loads(data: bytes, version: int, classes: Iterable[type]) -> Any:
    """The inverse of `dumps`.

    Args:
        data: what `dumps` gave.
        version: the version that this code reads.
        classes: the dataclasses that may stand in the tree.

    Raises:
        StateError: the bytes are damaged, or of another version.
    """
    if data[:3] != _MAGIC:
        raise StateError("not a detector state: it does not begin with LGS")
    if len(data) < 4 or data[3] != version:
        found = data[3] if len(data) > 3 else "none"
        raise StateError(f"a detector state of version {found}, this code reads version {version}")
    known = {cls.__name__: cls for cls in classes}
    try:
        body = zlib.decompress(data[4:])
        length = int.from_bytes(body[:8], "little")
        header = json.loads(body[8 : 8 + length])
        base = 8 + length

        def decode(value: Any) -> Any:
            if isinstance(value, list):
                return [decode(item) for item in value]
            if not isinstance(value, dict):
                return value
            if len(value) == 1:
                ((key, inner),) = value.items()
                if key == _TAG + "array":
                    dtype, shape, offset = np.dtype(inner[0]), tuple(inner[1]), base + inner[2]
                    count = int(np.prod(shape, dtype=np.int64))
                    return np.frombuffer(body, dtype, count, offset).reshape(shape).copy()
                if key == _TAG + "tuple":
                    return tuple(decode(item) for item in inner)
                if key.startswith(_TAG):
                    return known[key[1:]](*(decode(item) for item in inner))
            return {key: decode(item) for key, item in value.items()}

        return decode(header)
    except (zlib.error, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise StateError(f"a damaged detector state: {error}") from None
