"""Chunks: consecutive frames of one attempt as bytes. The unit of journal, upload and storage.

Guarantees. Decoding gives back what was encoded: steps, times, scalars and presence bit for bit; stats bit for bit with
`mantissa_bits=23`, otherwise rounded to that many mantissa bits, to nearest, ties to even, without bias. NaN stays NaN
(with one bit pattern), the infinities and zeros stay exact, and no finite value rounds to Inf. Decoding bytes from
outside ends in a `Chunk` or in a `ChunkError` that says what is wrong, never in a crash or an unbounded allocation.

Limits: 65,536 frames, 65,536 layers, 256 stats, 4,096 scalars, 1 MiB of header, 256 MiB of decoded arrays (a reader may
ask for less). Steps are 1 to 2^53 - 1. Names are printable and have 1 to 512 characters (a checkpoint's path 4,096),
those of projects and runs also obey `lossguard.wire.names`. Numbers in the header are finite, times included.

Layout, version 2, integers little-endian:

    offset  size  what
    0       4     magic "LGC\\x02" (the last byte is the version)
    4       4     CRC-32 of everything after this field
    8       4     h, bytes of the header
    12      4     C, bytes of the compressed schema
    16      4     c, bytes of the schema before compression
    20      h     JSON {project, run, attempt, index, frames, drops, events, sections}
    20+h    C     Zstandard: JSON {scalars, layers, stats}
    20+h+C        the sections, one after the other, sizes in `sections`

Sections, in this order, series-major (each series' values side by side, which is what makes them compress):
steps int64 [T]; times float64 [T]; scalars float64 [S, T]; scalars_present bits [T, S]; stats float32 [K, L, T];
stats_present bits [T, K]. The presence sections are empty when everything is present. Each numeric section is written
by `lossguard.wire.arrays`, stats by `lossguard.wire.stats_section`; empty arrays are empty sections. Steps without a
gap are 9 bytes: a 9, which no array begins with, and the first one (int64).

Version 1 is read too. In it h and c are missing: at 8 stand C and c, of one JSON object that is compressed as a whole,
the header with the schema as its `schema`, and stats and steps are always arrays.

The odd choice: a CRC and not a cryptographic hash. It finds rot and torn writes; who may write chunks is the service's
question, not the format's. Decoding trusts nothing that the CRC covers: the sizes that a section claims are compared
with the header's before anything is allocated.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lossguard.wire.arrays import ArrayError, pack, unpack
from lossguard.wire.errors import (
    MAX_INTEGER,
    ChunkError,
    ChunkTooLarge,
    CorruptChunk,
    TruncatedChunk,
    UnsupportedVersion,
    check_config,
    natural,
)
from lossguard.wire.events import (
    AttemptEnd,
    AttemptStart,
    AttemptStop,
    Checkpoint,
    Event,
    check_event,
    event_to_json,
)
from lossguard.wire.frame import Frames, Schema, Steps
from lossguard.wire.header import (
    MAGIC,
    VERSION,
    ChunkId,
    drops,
    events,
    identity,
    read,
    write,
)
from lossguard.wire.rounding import round_mantissa
from lossguard.wire.stats_section import Buffer, pack_stats, unpack_stats

MAX_FRAMES: Final = 65_536
MAX_LAYERS: Final = 65_536
MAX_STATS: Final = 256
MAX_SCALARS: Final = 4_096
MAX_DECODED_BYTES: Final = 256 << 20
_GAPLESS: Final = struct.Struct("<Bq")
_NO_GAPS: Final = 9

__all__ = [
    "AttemptEnd",
    "AttemptStart",
    "AttemptStop",
    "Checkpoint",
    "Chunk",
    "ChunkError",
    "ChunkId",
    "ChunkTooLarge",
    "CorruptChunk",
    "Event",
    "Outline",
    "TruncatedChunk",
    "UnsupportedVersion",
    "check_config",
    "check_event",
    "decode",
    "encode",
    "outline",
    "peek",
    "round_mantissa",
]


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
    if len(frames):
        _check_range(int(frames.steps[0]), int(frames.steps[-1]))  # they rise
    sections: list[Sequence[Buffer]] = [
        [_pack_steps(frames.steps)],
        [pack(frames.times)],
        [pack(frames.scalars.T)],
        [_pack_bits(frames.scalars_present)],
        pack_stats(frames.stats, mantissa_bits),
        [_pack_bits(frames.stats_present)],
    ]
    header = {
        "project": chunk.id.project,
        "run": chunk.id.run,
        "attempt": chunk.id.attempt,
        "index": chunk.id.index,
        "frames": len(frames),
        "drops": chunk.drops,
        "events": [event_to_json(event) for event in chunk.events],
        "sections": [sum(map(len, parts)) for parts in sections],
    }
    parts = [*write(header, frames.schema), *(part for parts in sections for part in parts)]
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return b"".join([MAGIC, bytes([VERSION]), struct.pack("<I", crc), *parts])


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
    header, schema, offset = read(data)
    count = natural(header.get("frames"), "frames")
    _check_limits(count, schema, MAX_DECODED_BYTES)
    happened = events(header)
    last = happened[-1].step if happened else None
    if count:
        sizes = header.get("sections")
        if not isinstance(sizes, list) or not sizes:
            raise CorruptChunk("the header must list sections")
        end = offset + natural(sizes[0], "section size")
        try:
            last = int(_unpack_steps(memoryview(data)[offset:end], count)[-1])
        except ArrayError as error:
            raise CorruptChunk(str(error)) from None
    return Outline(identity(header), count, last)


def peek(data: bytes) -> ChunkId:
    """The chunk's identity without decoding its arrays; checks the checksum."""
    return identity(read(data)[0])


def decode(data: bytes, *, max_decoded_bytes: int = MAX_DECODED_BYTES) -> Chunk:
    """The chunk in `data`.

    Args:
        data: the bytes.
        max_decoded_bytes: refuse arrays of more bytes before anything is allocated; a few bytes can claim them all.

    Raises:
        TruncatedChunk, CorruptChunk, UnsupportedVersion, ChunkTooLarge: see `ChunkError`.
    """
    header, schema, offset = read(data)
    count = natural(header.get("frames"), "frames")
    _check_limits(count, schema, max_decoded_bytes)
    shapes = _section_shapes(count, schema)
    sizes = header.get("sections")
    if not isinstance(sizes, list) or len(sizes) != len(shapes):
        raise CorruptChunk(f"the header must list {len(shapes)} sections")
    whole = memoryview(data)
    parts = []
    for size in sizes:
        end = offset + natural(size, "section size")
        if end > len(data):
            raise TruncatedChunk(f"a section ends at byte {end}, the data at byte {len(data)}")
        parts.append(whole[offset:end])
        offset = end
    if offset != len(data):
        raise CorruptChunk(f"{len(data) - offset} bytes stand after the last section")
    steps, times, scalars, scalar_bits, stats, stat_bits = parts
    try:
        frames = Frames(
            schema=schema,
            steps=_unpack_steps(steps, count),
            times=unpack(times, np.dtype("<f8"), shapes[1]),
            scalars=np.ascontiguousarray(unpack(scalars, np.dtype("<f8"), shapes[2]).T),
            # As they lie, series by series: who reads them step by step lays out anew what it needs, once.
            stats=unpack_stats(stats, (len(schema.stats), len(schema.layers), count)).transpose(2, 1, 0),
            scalars_present=_unpack_bits(scalar_bits, shapes[3]),
            stats_present=_unpack_bits(stat_bits, shapes[5]),
        )
    except ChunkError:
        raise
    except ValueError as error:
        raise CorruptChunk(str(error)) from None
    return Chunk(id=identity(header), frames=frames, drops=drops(header), events=events(header))


def _section_shapes(count: int, schema: Schema) -> list[tuple[int, ...]]:
    s, n_layers, k = len(schema.scalars), len(schema.layers), len(schema.stats)
    return [(count,), (count,), (s, count), (count, s), (k, n_layers, count), (count, k)]


def _pack_steps(steps: Steps) -> bytes:
    if len(steps) and int(steps[-1]) - int(steps[0]) == len(steps) - 1:
        return _GAPLESS.pack(_NO_GAPS, int(steps[0]))
    return pack(steps)


def _unpack_steps(data: memoryview, count: int) -> Steps:
    if count and len(data) == _GAPLESS.size and data[0] == _NO_GAPS:
        first = _GAPLESS.unpack(data)[1]
        _check_range(first, first + count - 1)
        return np.arange(first, first + count, dtype=np.int64)
    steps: Steps = unpack(data, np.dtype("<i8"), (count,))
    if len(steps):
        _check_range(int(steps.min()), int(steps.max()))
    return steps


def _check_range(first: int, last: int) -> None:
    if not (first >= 1 and last <= MAX_INTEGER):
        raise CorruptChunk(f"steps: must be from 1 to {MAX_INTEGER}, got {first} to {last}")


def _check_limits(count: int, schema: Schema, max_decoded_bytes: int) -> None:
    scalars, layers, stats = len(schema.scalars), len(schema.layers), len(schema.stats)
    if count > MAX_FRAMES or scalars > MAX_SCALARS or layers > MAX_LAYERS or stats > MAX_STATS:
        found = zip((count, scalars, layers, stats), (MAX_FRAMES, MAX_SCALARS, MAX_LAYERS, MAX_STATS), strict=True)
        for what, (number, limit) in zip(("frames", "scalars", "layers", "stats"), found, strict=True):
            if number > limit:
                raise ChunkTooLarge(f"{number} {what}, at most {limit} are allowed")
    decoded = count * (16 + 9 * scalars + stats * (1 + 4 * layers))
    if decoded > max_decoded_bytes:
        raise ChunkTooLarge(f"{decoded} bytes of arrays, at most {max_decoded_bytes} are allowed: use fewer frames")


def _pack_bits(present: NDArray[np.bool_]) -> bytes:
    # Looked for as a byte: a third of the time of `all` for a few hundred bits.
    return b"" if b"\0" not in present.tobytes() else np.packbits(present).tobytes()


def _unpack_bits(data: memoryview, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    count = math.prod(shape)
    if not data:
        return np.ones(shape, np.bool_)
    if len(data) != (count + 7) // 8:
        raise CorruptChunk(f"{len(data)} bytes of presence bits, {(count + 7) // 8} expected")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count).astype(np.bool_).reshape(shape)
