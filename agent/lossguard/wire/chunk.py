"""Chunks: consecutive frames of one attempt as bytes. The unit of journal, upload and storage.

Guarantees. Decoding gives back what was encoded: steps, times, scalars and presence bit for bit; stats bit for bit with
`mantissa_bits=23`, otherwise rounded to that many mantissa bits, to nearest, ties to even, without bias. NaN stays NaN
(with one bit pattern), the infinities and zeros stay exact, and no finite value rounds to Inf. Decoding bytes from
outside ends in a `Chunk` or in a `ChunkError` that says what is wrong, never in a crash or an unbounded allocation.

Limits: 65,536 frames, 65,536 layers, 256 stats, 4,096 scalars, 1 MiB of header, 256 MiB of decoded arrays (a reader may
ask for less). Steps are 1 to 2^53 - 1. Names are printable and have 1 to 512 characters (a checkpoint's path 4,096),
those of projects and runs also obey `lossguard.wire.names`. Numbers in the header are finite, times included.

Layout, version 1, integers little-endian:

    offset  size  what
    0       4     magic "LGC\\x01" (the last byte is the version)
    4       4     CRC-32 of everything after this field
    8       4     H, bytes of the compressed header
    12      4     h, bytes of the header before compression
    16      H     Zstandard: JSON {project, run, attempt, index, schema, frames, drops, events, sections}
    16+H          the sections, one after the other, sizes in `sections`

Sections, in this order, series-major (each series' values side by side, which is what makes them compress):
steps int64 [T]; times float64 [T]; scalars float64 [S, T]; scalars_present bits [T, S]; stats float32 [K, L, T];
stats_present bits [T, K]. The presence sections are empty when everything is present. Each numeric section is written
by `lossguard.wire.arrays`; empty arrays are empty sections.

The odd choice: a CRC and not a cryptographic hash. It finds rot and torn writes; who may write chunks is the service's
question, not the format's. Decoding trusts nothing that the CRC covers: the sizes that a section claims are compared
with the header's before anything is allocated.
"""

import functools
import json
import math
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lossguard.wire.arrays import ArrayError, compress, decompress, pack, unpack
from lossguard.wire.frame import Floats32, Frames, Schema, Steps
from lossguard.wire.names import check_name

MAGIC: Final = b"LGC"
VERSION: Final = 1
MAX_FRAMES: Final = 65_536
MAX_LAYERS: Final = 65_536
MAX_STATS: Final = 256
MAX_SCALARS: Final = 4_096
MAX_HEADER_BYTES: Final = 1 << 20
MAX_DECODED_BYTES: Final = 256 << 20
MAX_NAME_LENGTH: Final = 512
MAX_PATH_LENGTH: Final = 4_096
MAX_INTEGER: Final = (1 << 53) - 1

_PREFIX = struct.Struct("<4sIII")
_EXPONENT: Final = np.uint32(0x7F800000)

AttemptEnd = Literal["finished", "interrupted", "failed"]
_ENDS: Final = get_args(AttemptEnd)


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


@dataclass(frozen=True, slots=True)
class AttemptStart:
    """The first event of an attempt's chunk 0.

    Attributes:
        step: the step of the checkpoint it started from; 0 for a fresh start. Its first frame is `step + 1`.
        time: Unix seconds.
        config: whatever describes the run: `tasks` (name to "binary" or "regression"), `parameters_watched` (share),
            `optimizer`, `treatment`, `versions`, free keys.
    """

    step: int
    time: float
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttemptStop:
    """The last event of an attempt that ended in good order; a killed trainer writes none.

    Attributes:
        step: the last step trained.
        time: Unix seconds.
        reason: "finished", "interrupted" (by the user) or "failed" (an exception in training).
    """

    step: int
    time: float
    reason: AttemptEnd


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The trainer saved the model after `step`.

    Attributes:
        step: the last step in it.
        time: Unix seconds.
        path: where, as the trainer names it.
        has_slots: True if the optimizer's slots are in it, without which it is no rollback target.
    """

    step: int
    time: float
    path: str
    has_slots: bool


Event = AttemptStart | AttemptStop | Checkpoint
_EVENTS: Final[dict[str, type[Event]]] = {
    "attempt_start": AttemptStart,
    "attempt_stop": AttemptStop,
    "checkpoint": Checkpoint,
}
_EVENT_NAMES: Final = {kind: name for name, kind in _EVENTS.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """One chunk.

    Attributes:
        id: where it belongs.
        frames: the frames; may be empty in a chunk that only carries events.
        drops: how many frames were dropped since the chunk before, by reason (`lossguard.drops`).
        events: what happened between the chunk before and the end of this one, in order.
    """

    id: ChunkId
    frames: Frames
    drops: dict[str, int] = field(default_factory=dict)
    events: tuple[Event, ...] = ()


def round_mantissa(values: Floats32, bits: int) -> Floats32:
    """Round float32 values to `bits` mantissa bits, to nearest, ties to even.

    Args:
        values: any shape; not changed.
        bits: 1 to 23; 23 returns a copy.

    Returns:
        float32 of the same shape. NaN becomes the one canonical NaN, the infinities and zeros stay, and finite values
        that would round up to Inf stay as they are (adding to the bit pattern would otherwise carry into the exponent).
        Subnormal values lose more than others: they keep their absolute, not their relative precision.
    """
    if not 1 <= bits <= 23:
        raise ValueError(f"bits: must be 1 to 23, got {bits}")
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32)
    if bits == 23:
        out = raw.copy()
    else:
        drop = 23 - bits
        out = raw >> np.uint32(drop)
        out &= np.uint32(1)
        out += np.uint32((1 << (drop - 1)) - 1)
        out += raw
        out &= np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)
        special = (out & _EXPONENT) == _EXPONENT
        if special.any():
            out[special] = raw[special]
    nan = np.isnan(values)
    if nan.any():
        out[nan] = np.uint32(0x7FC00000)
    return out.view(np.float32)


def encode(chunk: Chunk, *, mantissa_bits: int = 10) -> bytes:
    """The chunk as bytes.

    Args:
        chunk: what to encode.
        mantissa_bits: 1 to 23 for the stats; 23 is lossless. Scalars are always lossless.

    Raises:
        ChunkTooLarge: a limit of the format is passed.
        CorruptChunk: a name, number or event that the format does not allow; decoding would refuse it.
    """
    frames = chunk.frames
    _check_limits(len(frames), frames.schema, MAX_DECODED_BYTES)
    _check_steps(frames.steps)
    stats = round_mantissa(np.ascontiguousarray(frames.stats.transpose(2, 1, 0)), mantissa_bits)
    sections = [
        pack(frames.steps),
        pack(frames.times),
        pack(np.ascontiguousarray(frames.scalars.T)),
        _pack_bits(frames.scalars_present),
        pack(stats),
        _pack_bits(frames.stats_present),
    ]
    header = {
        "project": chunk.id.project,
        "run": chunk.id.run,
        "attempt": chunk.id.attempt,
        "index": chunk.id.index,
        "frames": len(frames),
        "drops": chunk.drops,
        "events": [_event_to_json(event) for event in chunk.events],
        "sections": [len(section) for section in sections],
    }
    _identity(header), _drops(header), _events(header)
    plain = _header_json(header, frames.schema)
    if len(plain) > MAX_HEADER_BYTES:
        raise ChunkTooLarge(
            f"the header has {len(plain)} bytes, at most {MAX_HEADER_BYTES} are allowed: shorten names or config"
        )
    packed = compress(plain)
    body = b"".join([struct.pack("<II", len(packed), len(plain)), packed, *sections])
    return MAGIC + bytes([VERSION]) + struct.pack("<I", zlib.crc32(body)) + body


def _header_json(header: dict[str, Any], schema: Schema) -> bytes:
    rest = json.dumps(header, separators=(",", ":"))
    return (rest[:-1] + ',"schema":' + _schema_json(schema) + "}").encode()


@functools.lru_cache(maxsize=64)
def _schema_json(schema: Schema) -> str:
    # Cached like `_checked_schema`: writing 212 names costs 21 us of a chunk's 150.
    _checked_schema(schema.scalars, schema.layers, schema.stats)
    columns = {"scalars": schema.scalars, "layers": schema.layers, "stats": schema.stats}
    return json.dumps(columns, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Outline:
    """What a chunk says about itself without its stats.

    Attributes:
        id: where it belongs.
        frames: how many.
        last_step: the last step it speaks of: of its frames, else of its events; None if it speaks of none.
    """

    id: ChunkId
    frames: int
    last_step: int | None


def outline(data: bytes) -> Outline:
    """The chunk's identity and last step; checks the checksum and decodes no scalars and no stats.

    Raises:
        TruncatedChunk, CorruptChunk, UnsupportedVersion, ChunkTooLarge: see `ChunkError`.
    """
    header, offset = _header(data)
    count = _natural(header.get("frames"), "frames")
    _check_limits(count, _schema(header), MAX_DECODED_BYTES)
    events = _events(header)
    last = events[-1].step if events else None
    if count:
        sizes = header.get("sections")
        if not isinstance(sizes, list) or not sizes:
            raise CorruptChunk("the header must list sections")
        end = offset + _natural(sizes[0], "section size")
        try:
            steps = unpack(memoryview(data)[offset:end], np.dtype("<i8"), (count,))
        except ArrayError as error:
            raise CorruptChunk(str(error)) from None
        _check_steps(steps)
        last = int(steps[-1])
    return Outline(_identity(header), count, last)


def peek(data: bytes) -> ChunkId:
    """The chunk's identity without decoding its arrays; checks the checksum."""
    return _identity(_header(data)[0])


def decode(data: bytes, *, max_decoded_bytes: int = MAX_DECODED_BYTES) -> Chunk:
    """The chunk in `data`.

    Args:
        data: the bytes.
        max_decoded_bytes: refuse arrays of more bytes before anything is allocated; a few bytes can claim them all.

    Raises:
        TruncatedChunk, CorruptChunk, UnsupportedVersion, ChunkTooLarge: see `ChunkError`.
    """
    header, offset = _header(data)
    schema = _schema(header)
    count = _natural(header.get("frames"), "frames")
    _check_limits(count, schema, max_decoded_bytes)
    shapes = _section_shapes(count, schema)
    sizes = header.get("sections")
    if not isinstance(sizes, list) or len(sizes) != len(shapes):
        raise CorruptChunk(f"the header must list {len(shapes)} sections")
    whole = memoryview(data)
    parts = []
    for size in sizes:
        end = offset + _natural(size, "section size")
        if end > len(data):
            raise TruncatedChunk(f"a section ends at byte {end}, the data at byte {len(data)}")
        parts.append(whole[offset:end])
        offset = end
    if offset != len(data):
        raise CorruptChunk(f"{len(data) - offset} bytes stand after the last section")
    steps, times, scalars, scalar_bits, stats, stat_bits = parts
    try:
        step_numbers = unpack(steps, np.dtype("<i8"), shapes[0])
        _check_steps(step_numbers)
        frames = Frames(
            schema=schema,
            steps=step_numbers,
            times=unpack(times, np.dtype("<f8"), shapes[1]),
            scalars=np.ascontiguousarray(unpack(scalars, np.dtype("<f8"), shapes[2]).T),
            stats=np.ascontiguousarray(unpack(stats, np.dtype("<f4"), shapes[4]).transpose(2, 1, 0)),
            scalars_present=_unpack_bits(scalar_bits, shapes[3]),
            stats_present=_unpack_bits(stat_bits, shapes[5]),
        )
    except ChunkError:
        raise
    except ValueError as error:
        raise CorruptChunk(str(error)) from None
    return Chunk(id=_identity(header), frames=frames, drops=_drops(header), events=_events(header))


def _section_shapes(count: int, schema: Schema) -> list[tuple[int, ...]]:
    s, n_layers, k = len(schema.scalars), len(schema.layers), len(schema.stats)
    return [(count,), (count,), (s, count), (count, s), (k, n_layers, count), (count, k)]


def _check_steps(steps: Steps) -> None:
    if len(steps) and not (int(steps.min()) >= 1 and int(steps.max()) <= MAX_INTEGER):
        raise CorruptChunk(f"steps: must be from 1 to {MAX_INTEGER}, got {int(steps.min())} to {int(steps.max())}")


def _check_limits(count: int, schema: Schema, max_decoded_bytes: int) -> None:
    for what, number, limit in (
        ("frames", count, MAX_FRAMES),
        ("scalars", len(schema.scalars), MAX_SCALARS),
        ("layers", len(schema.layers), MAX_LAYERS),
        ("stats", len(schema.stats), MAX_STATS),
    ):
        if number > limit:
            raise ChunkTooLarge(f"{number} {what}, at most {limit} are allowed")
    decoded = count * (16 + 9 * len(schema.scalars) + len(schema.stats) * (1 + 4 * len(schema.layers)))
    if decoded > max_decoded_bytes:
        raise ChunkTooLarge(f"{decoded} bytes of arrays, at most {max_decoded_bytes} are allowed: use fewer frames")


def _pack_bits(present: NDArray[np.bool_]) -> bytes:
    return b"" if bool(present.all()) else np.packbits(present).tobytes()


def _unpack_bits(data: memoryview, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    count = int(np.prod(shape))
    if not data:
        return np.ones(shape, np.bool_)
    if len(data) != (count + 7) // 8:
        raise CorruptChunk(f"{len(data)} bytes of presence bits, {(count + 7) // 8} expected")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count).astype(np.bool_).reshape(shape)


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    if len(data) < _PREFIX.size:
        raise TruncatedChunk(f"{len(data)} bytes are too few for a chunk")
    magic, crc, packed_size, plain_size = _PREFIX.unpack_from(data)
    if magic[:3] != MAGIC:
        raise CorruptChunk("these bytes are not a Lossguard chunk")
    if magic[3] != VERSION:
        raise UnsupportedVersion(f"chunk format version {magic[3]}, this side reads version {VERSION}: update it")
    if plain_size > MAX_HEADER_BYTES:
        raise ChunkTooLarge(f"a header of {plain_size} bytes, at most {MAX_HEADER_BYTES} are allowed")
    if _PREFIX.size + packed_size > len(data):
        raise TruncatedChunk("the header is cut off")
    if zlib.crc32(memoryview(data)[8:]) != crc:
        raise CorruptChunk("the checksum does not match: the bytes were changed or cut")
    try:
        plain = decompress(memoryview(data)[_PREFIX.size : _PREFIX.size + packed_size], plain_size)
    except ArrayError as error:
        raise CorruptChunk(f"the header does not decompress: {error}") from None
    try:
        header = json.loads(plain, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise CorruptChunk("the header is not JSON") from None
    if not isinstance(header, dict):
        raise CorruptChunk("the header is not a JSON object")
    return header, _PREFIX.size + packed_size


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _identity(header: dict[str, Any]) -> ChunkId:
    try:
        project, run = check_name("project", header.get("project")), check_name("run", header.get("run"))
    except ValueError as error:
        raise CorruptChunk(str(error)) from None
    attempt = _text(header.get("attempt"), "attempt")
    if len(attempt) != 32 or not set(attempt) <= set("0123456789abcdef"):
        raise CorruptChunk("attempt: must be 32 hex digits")
    return ChunkId(project=project, run=run, attempt=attempt, index=_natural(header.get("index"), "index"))


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
    # Cached, because a run's chunks say the same two hundred names again and again: 47 us of 180 for a chunk of one
    # frame with 200 layers.
    for key, names in (("scalars", scalars), ("layers", layers), ("stats", stats)):
        for name in names:
            _text(name, f"schema.{key}")
    return Schema(scalars, layers, stats)


def _drops(header: dict[str, Any]) -> dict[str, int]:
    drops = header.get("drops")
    if not isinstance(drops, dict):
        raise CorruptChunk("drops must be an object")
    return {_text(reason, "drops"): _natural(count, "drops") for reason, count in drops.items()}


def _event_to_json(event: Event) -> dict[str, Any]:
    fields = {name: getattr(event, name) for name in type(event).__slots__}
    return {"type": _EVENT_NAMES[type(event)], **fields}


def _events(header: dict[str, Any]) -> tuple[Event, ...]:
    events = header.get("events")
    if not isinstance(events, list):
        raise CorruptChunk("events must be a list")
    return tuple(_event(event) for event in events)


def check_event(event: Event) -> None:
    """Refuse an event that no chunk can carry.

    Raises:
        CorruptChunk: says why.
    """
    _event(_event_to_json(event))


def _event(event: Any) -> Event:
    if not isinstance(event, dict):
        raise CorruptChunk("an event must be an object")
    kind, step, time = event.get("type"), _natural(event.get("step"), "event step"), event.get("time")
    if isinstance(time, bool) or not isinstance(time, (int, float)) or not abs(time) < MAX_INTEGER:
        raise CorruptChunk("an event's time must be a finite number of seconds")
    if kind == "attempt_start" and isinstance(event.get("config"), dict):
        check_config(event["config"])
        return AttemptStart(step=step, time=float(time), config=event["config"])
    if kind == "attempt_stop" and event.get("reason") in _ENDS:
        return AttemptStop(step=step, time=float(time), reason=event["reason"])
    if kind == "checkpoint" and isinstance(event.get("has_slots"), bool):
        return Checkpoint(
            step=step,
            time=float(time),
            path=_text(event.get("path"), "path", MAX_PATH_LENGTH),
            has_slots=event["has_slots"],
        )
    raise CorruptChunk(f"an event of type {str(kind)[:80]!r} is not one this version knows, or it lacks a field")


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


def _text(value: Any, what: str, longest: int = MAX_NAME_LENGTH) -> str:
    # Printable excludes lone surrogates and NUL, which databases refuse, and whatever breaks a log line.
    if not isinstance(value, str) or not 0 < len(value) <= longest or not value.isprintable():
        raise CorruptChunk(f"{what}: must be printable text of 1 to {longest} characters")
    return value


def _natural(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_INTEGER:
        raise CorruptChunk(f"{what}: must be a whole number from 0")
    return value
