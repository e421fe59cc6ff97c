"""The header of a chunk: JSON from bytes that nobody trusts, and back; `lossguard.wire.chunk` specifies it.

Guarantees. Reading ends in values that the format allows or in a `ChunkError`. A run's chunks say the same few hundred
names again and again; they are checked, parsed and written once and then known by their bytes.
"""

import functools
import json
import struct
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from lossguard.wire.arrays import ArrayError, decompress
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
VERSION: Final = 1
MAX_HEADER_BYTES: Final = 1 << 20
PREFIX: Final = struct.Struct("<4sIII")
_SCHEMA: Final = b',"schema":'
_KNOWN_BYTES: Final = 65_536
"""Longer schemas are parsed each time, so that what is remembered stays below 4 MiB."""
_known: OrderedDict[bytes, Schema] = OrderedDict()


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


def write(header: dict[str, Any], schema: Schema) -> bytes:
    """The header as JSON, once what it says is what a reader would take."""
    identity(header), drops(header), events(header)
    rest = _to_json(header)
    return (rest[:-1] + ',"schema":' + _schema_json(schema) + "}").encode()


@functools.lru_cache(maxsize=64)
def _schema_json(schema: Schema) -> str:
    _checked_schema(schema.scalars, schema.layers, schema.stats)
    columns = {"scalars": schema.scalars, "layers": schema.layers, "stats": schema.stats}
    return _to_json(columns)


def read(data: bytes) -> tuple[dict[str, Any], Schema, int]:
    """The header as JSON without its schema, the schema, and where the sections begin; checks the checksum."""
    if len(data) < PREFIX.size:
        raise TruncatedChunk(f"{len(data)} bytes are too few for a chunk")
    magic, crc, packed_size, plain_size = PREFIX.unpack_from(data)
    if magic[:3] != MAGIC:
        raise CorruptChunk("these bytes are not a Lossguard chunk")
    if magic[3] != VERSION:
        raise UnsupportedVersion(f"chunk format version {magic[3]}, this side reads version {VERSION}: update it")
    if plain_size > MAX_HEADER_BYTES:
        raise ChunkTooLarge(f"a header of {plain_size} bytes, at most {MAX_HEADER_BYTES} are allowed")
    if PREFIX.size + packed_size > len(data):
        raise TruncatedChunk("the header is cut off")
    if zlib.crc32(memoryview(data)[8:]) != crc:
        raise CorruptChunk("the checksum does not match: the bytes were changed or cut")
    try:
        plain = decompress(memoryview(data)[PREFIX.size : PREFIX.size + packed_size], plain_size)
    except ArrayError as error:
        raise CorruptChunk(f"the header does not decompress: {error}") from None
    header, schema = _parse(plain)
    return header, schema, PREFIX.size + packed_size


def _parse(plain: bytes) -> tuple[dict[str, Any], Schema]:
    # What we write ends in `,"schema":{...}}`. If the rest with a brace behind it is an object, then the whole is that
    # object with this schema: in a string the quotes would be escaped, and within another object the rest is none.
    place = plain.rfind(_SCHEMA)
    rest, end = plain[:place] + b"}", plain[place:]
    schema = _known.get(end) if place > 0 else None
    if schema is not None:
        try:
            found = _object(rest)
        except CorruptChunk:
            found = {}  # it stands elsewhere
        if found:  # behind an empty object's brace there could be no comma
            return found, schema
    header = _object(plain)
    schema = _schema(header)
    if place > 0 and len(end) <= _KNOWN_BYTES and _stands_last(rest, end):
        _known[end] = schema
        while len(_known) > 64:
            _known.popitem(last=False)
    return header, schema


def _stands_last(rest: bytes, end: bytes) -> bool:
    try:
        return len(_object(b"{" + end[1:])) == 1 and isinstance(_object(rest), dict)
    except CorruptChunk:
        return False


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


def _schema(header: dict[str, Any]) -> Schema:
    schema = header.get("schema")
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
