"""Reads TensorFlow's tensor bundles (`variables.index`, `variables.data-*`) without TensorFlow: where each tensor lies.

Guarantees. Bounded memory: the index is read whole (it holds names and places, at most 256 MiB), tensors are not.
Bytes from outside end in entries or in a `BundleError` that says what is wrong.

The index is a LevelDB table: blocks of prefix-compressed entries, each block followed by a compression byte (0 none,
1 Snappy) and a checksum; at the end of the file 48 bytes of footer with the place of the index block and the magic
0xdb4775248b80fb57. Keys are tensor names, values `BundleEntryProto` messages; the empty key holds the header.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lossguard.wire.protobuf import ProtobufError, fields, varint

MAX_INDEX_BYTES: Final = 256 << 20
_MAGIC: Final = 0xDB4775248B80FB57
_FOOTER: Final = 48
_SUFFIX: Final = "/.ATTRIBUTES/VARIABLE_VALUE"


class BundleError(ValueError):
    """The index is not one, or contradicts its data."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies.

    Attributes:
        name: the variable's path.
        dtype: TensorFlow's number of the type (1 float32, 2 float64, ...).
        shard: the number of the data file.
        offset, size: its bytes there.
    """

    name: str
    dtype: int
    shard: int
    offset: int
    size: int


def read_index(path: Path) -> tuple[int, list[Entry]]:
    """The number of shards and every tensor's place.

    Raises:
        BundleError: the file is no index that we can read.
    """
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise BundleError(f"{path.name} is larger than any index")
    data = path.read_bytes()
    if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise BundleError(f"{path.name} is cut off or is no tensor bundle")
    _, place = _handle(data, len(data) - _FOOTER)
    (offset, size), _ = _handle(data, place)
    shards, entries = 0, []
    for _, value in _entries(_block(data, offset, size)):
        (block_offset, block_size), _ = _handle(value, 0)
        for key, message in _entries(_block(data, block_offset, block_size)):
            if not key:
                shards = _numbers(message).get(1, 0)
            else:
                entries.append(_entry(key, message))
    if not 1 <= shards <= 100_000:
        raise BundleError(f"{path.name} names {shards} data files")
    return shards, entries


def shard_path(index: Path, shard: int, shards: int) -> Path:
    """The data file of a shard."""
    return index.with_name(f"{index.name.removesuffix('.index')}.data-{shard:05d}-of-{shards:05d}")


def _entry(key: bytes, message: bytes) -> Entry:
    values = {1: 0, 3: 0, 4: 0, 5: 0} | _numbers(message)
    name = key.decode("utf-8", "replace").removesuffix(_SUFFIX)
    return Entry(name, values[1], values[3], values[4], values[5])


def _numbers(message: bytes) -> dict[int, int]:
    """The fields of a message that are numbers."""
    try:
        return {number: value for number, value in fields(message) if isinstance(value, int)}
    except ProtobufError as error:
        raise BundleError(f"the index holds a message that is none: {error}") from None


def _handle(data: bytes, place: int) -> tuple[tuple[int, int], int]:
    offset, place = _varint(data, place)
    size, place = _varint(data, place)
    return (offset, size), place


def _block(data: bytes, offset: int, size: int) -> bytes:
    if offset + size + 5 > len(data):
        raise BundleError("the index points beyond its end")
    content, compression = data[offset : offset + size], data[offset + size]
    if compression == 0:
        return content
    if compression == 1:
        return _unsnap(content)
    raise BundleError(f"the index uses compression {compression}, which this version does not know")


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(block) < 4:
        raise BundleError("a block of the index is too short")
    restarts = struct.unpack("<I", block[-4:])[0]
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise BundleError("a block of the index contradicts itself")
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        fresh, place = _varint(block, place)
        size, place = _varint(block, place)
        if shared > len(key) or place + fresh + size > end:
            raise BundleError("a block of the index contradicts itself")
        key = key[:shared] + block[place : place + fresh]
        place += fresh
        yield key, block[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    try:
        return varint(data, place)
    except ProtobufError:
        raise BundleError("the index is cut off") from None


def _unsnap(data: bytes) -> bytes:
    """Snappy's raw format: literals, and copies of what was written before."""
    size, place = _varint(data, 0)
    if size > MAX_INDEX_BYTES:
        raise BundleError("a block of the index is larger than any")
    out = bytearray()
    while place < len(data):
        tag = data[place]
        place += 1
        if tag & 3 == 0:
            length = (tag >> 2) + 1
            if length > 60:
                wide = length - 60
                length = int.from_bytes(data[place : place + wide], "little") + 1
                place += wide
            out += data[place : place + length]
            place += length
        else:
            if tag & 3 == 1:
                length, wide = ((tag >> 2) & 7) + 4, 1
                back = (tag >> 5 << 8) | int.from_bytes(data[place : place + 1], "little")
            else:
                length, wide = (tag >> 2) + 1, 2 if tag & 3 == 2 else 4
                back = int.from_bytes(data[place : place + wide], "little")
            place += wide
            if not 0 < back <= len(out):
                raise BundleError("a compressed block of the index contradicts itself")
            for _ in range(length):
                out.append(out[-back])
        if len(out) > size:
            raise BundleError("a compressed block of the index contradicts itself")
    if len(out) != size:
        raise BundleError("a compressed block of the index is cut off")
    return bytes(out)
