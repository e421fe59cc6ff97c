"""Segments: files of sealed chunks, appended one after the other.

Limits: a record holds at most 272 MiB (the largest chunk and its header).

Layout, version 1, integers little-endian. A file begins with 32 bytes:

    offset  size  what
    0       4     magic "LGJ\\x01" (the last byte is the version)
    4       4     CRC-32 of the next 24 bytes
    8       8     order: 1 + the largest order among the run's attempts when this one began
    16      8     float64, Unix seconds when the attempt began
    24      8     index of the first chunk in this file

and goes on with records:

    0       4     magic "LGR\\x01"
    4       4     CRC-32 of everything after this field
    8       4     N, bytes of the chunk
    12      8     index of the chunk
    20      N     the chunk, as `lossguard.wire.chunk` encodes it

A record is sealed as soon as all its bytes are in the file; whatever follows the last whole record is a torn tail.
Bytes that rotted in the middle cost their record and no more: the reader looks for the next whole record behind them.
"""

import os
import struct
import zlib
from dataclasses import dataclass
from typing import Final

FILE_MAGIC: Final = b"LGJ\x01"
RECORD_MAGIC: Final = b"LGR\x01"
MAX_RECORD_BYTES: Final = 272 << 20

_FILE = struct.Struct("<4sIQdQ")
_RECORD = struct.Struct("<4sIIQ")
FILE_HEADER_BYTES: Final = _FILE.size
RECORD_HEADER_BYTES: Final = _RECORD.size
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says about itself: see the layout."""

    order: int
    started: float
    first_index: int

    def pack(self) -> bytes:
        """The 32 bytes."""
        body = struct.pack("<QdQ", self.order, self.started, self.first_index)
        return FILE_MAGIC + struct.pack("<I", zlib.crc32(body)) + body


@dataclass(frozen=True, slots=True)
class Record:
    """One sealed chunk and the offset behind it."""

    index: int
    chunk: bytes
    end: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are no whole record.

    Attributes:
        start: where they begin.
        end: where the next whole record begins, or the end of the file.
        tail: True if they reach the end of the file: a torn tail, or a record that is being written right now.
    """

    start: int
    end: int
    tail: bool


def pack_record(index: int, chunk: bytes) -> bytes:
    """A record's bytes."""
    rest = struct.pack("<IQ", len(chunk), index)
    crc = zlib.crc32(chunk, zlib.crc32(rest))
    return b"".join([RECORD_MAGIC, struct.pack("<I", crc), rest, chunk])


def read_header(file: int) -> SegmentHeader | None:
    """The segment's header; None if it is not whole or not ours."""
    data = os.pread(file, FILE_HEADER_BYTES, 0)
    if len(data) < FILE_HEADER_BYTES:
        return None
    magic, crc, order, started, first_index = _FILE.unpack(data)
    if magic != FILE_MAGIC or crc != zlib.crc32(data[8:]):
        return None
    return SegmentHeader(order, started, first_index)


def read_record(file: int, offset: int) -> Record | Damage | None:
    """What stands at `offset`: a whole record, bytes that are none, or nothing (the clean end of the file)."""
    size = os.fstat(file).st_size
    if offset >= size:
        return None
    record = _whole_record(file, offset, size)
    if record is not None:
        return record
    following = _next_record(file, offset + 1, size)
    return Damage(offset, size if following is None else following, tail=following is None)


def _whole_record(file: int, offset: int, size: int) -> Record | None:
    head = os.pread(file, RECORD_HEADER_BYTES, offset)
    if len(head) < RECORD_HEADER_BYTES:
        return None
    magic, crc, length, index = _RECORD.unpack(head)
    end = offset + RECORD_HEADER_BYTES + length
    if magic != RECORD_MAGIC or length > MAX_RECORD_BYTES or end > size:
        return None
    chunk = os.pread(file, length, offset + RECORD_HEADER_BYTES)
    if len(chunk) < length or zlib.crc32(chunk, zlib.crc32(head[8:])) != crc:
        return None
    return Record(index, chunk, end)


def _next_record(file: int, offset: int, size: int) -> int | None:
    while offset < size:
        block = os.pread(file, _BLOCK + len(RECORD_MAGIC) - 1, offset)
        at = block.find(RECORD_MAGIC)
        while at != -1:
            if _whole_record(file, offset + at, size) is not None:
                return offset + at
            at = block.find(RECORD_MAGIC, at + 1)
        offset += _BLOCK
    return None
