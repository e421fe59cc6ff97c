"""The header of a chunk: JSON from bytes that nobody trusts, and back; `lossguard.wire.chunk` specifies it.

Guarantees. Reading ends in values that the format allows or in a `ChunkError`. A run's chunks say the same few hundred
names again and again; they are checked, parsed and written once and then known by their bytes.
"""

import functools
import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final

from lossguard.wire.arrays import ArrayError, compress, decompress
from lossguard.wire.errors import (
    ChunkError,
    ChunkTooLarge,
    CorruptChunk,
    TruncatedChunk,
    UnsupportedVersion,
    natural,
    text,
)
from lossguard.wire.events import Event, event_from_json
from lossguard.wire.frame import Schema
from lossguard.wire.names import check_name

MAGIC: Final = b"LGC"
VERSION: Final = 2
MAX_HEADER_BYTES: Final = 1 << 20
"""Of the header, and of the schema, before compression."""
_PREFIX_1: Final = struct.Struct("<4sIII")
_PREFIX: Final = struct.Struct("<4sIIII")
_KNOWN_BYTES: Final = 65_536
"""Longer schemas are parsed each time, so that what is remembered stays below 8 MiB."""


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


# Made once: `json.dumps` and `json.loads` with options make a new one at each call.
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode
_from_json: Final = json.JSONDecoder(parse_constant=_no_constant).decode


@dataclass(frozen=True, slots=True)
class ChunkId:
    """Where a chunk belongs.

    Attributes:
        project: the namespace of the run.
        run: the run's name, unique in its project.
        attempt: 32 hex digits drawn when the attempt began. The service numbers attempts in the order in which they
            arrive, so that a restart on a new machine, which remembers nothing, cannot collide with an old attempt.
        index: 0, 1, 2, ... without gaps within the attempt.
    """

    project: str
    run: str
    attempt: str
    index: int


def write(header: dict[str, Any], schema: Schema) -> list[bytes]:
    """The parts between the checksum and the sections, once what they say is what a reader would take."""
    identity(header), drops(header), events(header)
    plain = _to_json(header).encode()
    names, size = _packed_schema(schema)
    if max(len(plain), size) > MAX_HEADER_BYTES:
        raise ChunkTooLarge(
            f"header and schema have {len(plain)} and {size} bytes, at most {MAX_HEADER_BYTES} are allowed: shorten "
            "names or config"
        )
    return [struct.pack("<III", len(plain), len(names), size), plain, names]


@functools.lru_cache(maxsize=64)
def _packed_schema(schema: Schema) -> tuple[bytes, int]:
    _checked_schema(schema.scalars, schema.layers, schema.stats)
    plain = _to_json({"scalars": schema.scalars, "layers": schema.layers, "stats": schema.stats}).encode()
    return compress(plain), len(plain)


def read(data: bytes) -> tuple[dict[str, Any], Schema, int]:
    """The header as JSON, the schema, and where the sections begin; checks the checksum."""
    if len(data) < _PREFIX.size:
        raise TruncatedChunk(f"{len(data)} bytes are too few for a chunk")
    if not data.startswith(MAGIC):
        raise CorruptChunk("these bytes are not a Lossguard chunk")
    if data[3] == 1:
        return _read_1(data)
    if data[3] != VERSION:
        raise UnsupportedVersion(f"chunk format version {data[3]}, this side reads versions 1 to {VERSION}: update it")
    _, crc, plain_size, packed_size, schema_size = _PREFIX.unpack_from(data)
    middle = _PREFIX.size + plain_size
    end = middle + packed_size
    _check(data, crc, max(plain_size, schema_size), end)
    header = _object(data[_PREFIX.size : middle])
    names = _known_schema if packed_size <= _KNOWN_BYTES else _unpacked_schema
    return header, names(bytes(data[middle:end]), schema_size), end


def _read_1(data: bytes) -> tuple[dict[str, Any], Schema, int]:
    _, crc, packed_size, plain_size = _PREFIX_1.unpack_from(data)
    end = _PREFIX_1.size + packed_size
    _check(data, crc, plain_size, end)
    header = _object(_decompressed(data[_PREFIX_1.size : end], plain_size))
    return header, _schema(header.get("schema")), end


def _check(data: bytes, crc: int, plain_size: int, end: int) -> None:
    if plain_size > MAX_HEADER_BYTES:
        raise ChunkTooLarge(f"a header of {plain_size} bytes, at most {MAX_HEADER_BYTES} are allowed")
    if end > len(data):
        raise TruncatedChunk("the header is cut off")
    if zlib.crc32(memoryview(data)[8:]) != crc:
        raise CorruptChunk("the checksum does not match: the bytes were changed or cut")


def _decompressed(packed: bytes, size: int) -> bytes:
    try:
        return decompress(packed, size)
    except ArrayError as error:
        raise CorruptChunk(f"the header does not decompress: {error}") from None


def _unpacked_schema(packed: bytes, size: int) -> Schema:
    return _schema(_object(_decompressed(packed, size)))


_known_schema: Final = functools.lru_cache(maxsize=64)(_unpacked_schema)


def _object(plain: bytes) -> dict[str, Any]:
    try:
        header = _from_json(plain.decode())
    except (ValueError, RecursionError):
        raise CorruptChunk("the header is not JSON") from None
    if not isinstance(header, dict):
        raise CorruptChunk("the header is not a JSON object")
    return header


def identity(header: dict[str, Any]) -> ChunkId:
    """Where the chunk belongs."""
    place = header.get("project"), header.get("run"), header.get("attempt")
    known = _checked_place(*place) if all(type(one) is str for one in place) else _check_place(*place)
    return ChunkId(*known, index=natural(header.get("index"), "index"))


def _check_place(project: Any, run: Any, attempt: Any) -> tuple[str, str, str]:
    try:
        project, run = check_name("project", project), check_name("run", run)
    except ValueError as error:
        raise CorruptChunk(str(error)) from None
    attempt = text(attempt, "attempt")
    if len(attempt) != 32 or not set(attempt) <= set("0123456789abcdef"):
        raise CorruptChunk("attempt: must be 32 hex digits")
    return project, run, attempt


_checked_place: Final = functools.lru_cache(maxsize=1024)(_check_place)


def _schema(schema: Any) -> Schema:
    if not isinstance(schema, dict):
        raise CorruptChunk("the header has no schema")
    columns = []
    for key in ("scalars", "layers", "stats"):
        names = schema.get(key)
        if not isinstance(names, list):
            raise CorruptChunk(f"schema.{key} must be a list of names")
        columns.append(tuple(names))
    try:
        return _checked_schema(*columns)
    except TypeError:
        raise CorruptChunk("schema: names must be text") from None
    except ChunkError:
        raise
    except ValueError as error:
        raise CorruptChunk(str(error)) from None


@functools.lru_cache(maxsize=64)
def _checked_schema(scalars: tuple[str, ...], layers: tuple[str, ...], stats: tuple[str, ...]) -> Schema:
    for key, names in (("scalars", scalars), ("layers", layers), ("stats", stats)):
        for name in names:
            text(name, f"schema.{key}")
    return Schema(scalars, layers, stats)


def drops(header: dict[str, Any]) -> dict[str, int]:
    """Frames dropped, by reason."""
    found = header.get("drops")
    if not isinstance(found, dict):
        raise CorruptChunk("drops must be an object")
    return {text(reason, "drops"): natural(count, "drops") for reason, count in found.items()}


def events(header: dict[str, Any]) -> tuple[Event, ...]:
    """What happened, in order."""
    found = header.get("events")
    if not isinstance(found, list):
        raise CorruptChunk("events must be a list")
    return tuple(event_from_json(event) for event in found)
