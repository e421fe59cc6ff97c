"""Several byte strings as one, their sizes in front, and presence bits: what the parts of segments are made of."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def join(parts: Sequence[bytes]) -> bytes:
    """The sizes of the parts, uint32, little-endian, then the parts."""
    return struct.pack(f"<{len(parts)}I", *map(len, parts)) + b"".join(parts)


def take(data: bytes, count: int) -> list[memoryview]:
    """The `count` parts that `join` made one of."""
    return split(data, 4 * count, struct.unpack_from(f"<{count}I", data))


def split(data: bytes, start: int, sizes: Sequence[int]) -> list[memoryview]:
    """Parts of these sizes, one after the other from `start` on."""
    view, result = memoryview(data), []
    for size in sizes:
        result.append(view[start : start + size])
        start += size
    return result


def pack_bits(present: NDArray[np.bool_]) -> bytes:
    """Presence bits; no bytes where all is present."""
    return b"" if bool(present.all()) else np.packbits(present).tobytes()


def unpack_bits(data: bytes | memoryview, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The inverse of `pack_bits`."""
    if not len(data):
        return np.ones(shape, np.bool_)
    bits: NDArray[Any] = np.unpackbits(np.frombuffer(data, np.uint8), count=shape[0] * shape[1])
    return bits.astype(np.bool_).reshape(shape)
