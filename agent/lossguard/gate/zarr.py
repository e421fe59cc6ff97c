"""Looks through a Zarr array for NaN and Inf chunk by chunk, without putting the array together.

Guarantees. A chunk is said to be finite only if all of it was read; where it is not said, nothing is: then TensorStore
reads the array and decides. That is so wherever this is not the plain case: Zarr 2, little-endian floats, no filters,
each chunk one Zstandard frame or its bare bytes; a chunk that is missing, or longer or shorter than it must be; a
number that is not finite, which may lie in the part of a chunk that is beyond the array. Memory is bounded by a few
pieces of `PIECE_BYTES`, however large the chunks are.

Why: TensorStore reads and decodes a chunk into fresh memory and copies it into an array. In small pieces, whose memory
is used again, the same takes half of the CPU time (docs/decisions/0504-orbax-through-tensorstore.md).
"""

import io
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import zstandard

from lossguard.gate.findings import look, look_bfloat16

PIECE_BYTES: Final = 1 << 20
"""Of a chunk, read at once: an allocator hands the memory of larger ones back to the system each time."""
_FLOATS: Final = ("<f2", "<f4", "<f8", "bfloat16")


@dataclass(frozen=True, slots=True)
class Layout:
    """What an array's metadata say.

    Attributes:
        dtype: as NumPy writes it, or `bfloat16`.
        shape, chunk: of the array, and of each of its chunks.
        separator: between the numbers of a chunk's key, which are its place in the grid.
        is_compressed: True for Zstandard, False for bare bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    separator: str
    is_compressed: bool

    @property
    def chunk_bytes(self) -> int:
        """Of a decompressed chunk."""
        width = 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize
        return width * int(np.prod(self.chunk, dtype=np.int64))

    @property
    def bits(self) -> int:
        """Of a number."""
        return 16 if self.dtype == "bfloat16" else 8 * np.dtype(self.dtype).itemsize

    @property
    def is_filled(self) -> bool:
        """True if no chunk reaches beyond the array: what lies there may be anything, and belongs to no norm."""
        return not any(extent % size for extent, size in zip(self.shape, self.chunk, strict=True))

    @property
    def values(self) -> int:
        """Of the array."""
        return int(np.prod(self.shape, dtype=np.int64))

    def chunk_keys(self) -> Iterator[str]:
        """The key of every chunk that the array must have."""
        grid = [range(-(-extent // size)) for extent, size in zip(self.shape, self.chunk, strict=True)]
        for place in itertools.product(*grid):
            yield self.separator.join(map(str, place)) or "0"


def layout_of(metadata: bytes) -> Layout | None:
    """The layout that a `.zarray` tells of in the plain case; None for every other."""
    try:
        document = json.loads(metadata)
        dtype, compressor = document["dtype"], document["compressor"]
        shape, chunk = tuple(map(int, document["shape"])), tuple(map(int, document["chunks"]))
        if document["zarr_format"] != 2 or document["filters"] or dtype not in _FLOATS or len(shape) != len(chunk):
            return None
        if min(chunk, default=1) < 1 or (compressor is not None and compressor["id"] != "zstd"):
            return None
        return Layout(dtype, shape, chunk, document.get("dimension_separator", "."), compressor is not None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


class _Chunk(io.RawIOBase):
    """A stored chunk as a stream of bytes, one piece ahead of its reader."""

    def __init__(self, store: Any, key: str) -> None:
        self._store = store
        self._key = key
        self._at = 0
        self._ahead = self._ask()
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._held:
            self._held = memoryview(self._piece())
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._held))
        view[:count] = self._held[:count]
        self._held = self._held[count:]
        return count

    def _ask(self) -> Any:
        return self._store.read(self._key, byte_range=slice(self._at, self._at + PIECE_BYTES))

    def _piece(self) -> bytes:
        try:
            found = self._ahead.result()
        except ValueError:  # it ends before the piece would
            found = self._store.read(self._key, byte_range=slice(self._at, None)).result()
        if found.state != "value":
            raise FileNotFoundError(self._key)
        data: bytes = found.value
        self._at += len(data)
        if data:
            self._ahead = self._ask()
        return data


def squares_of(store: Any, layout: Layout, key: str, buffer: memoryview) -> float:
    """The sum of a chunk's squares if it is as long as it must be, and all of it finite; else NaN.

    Args:
        store: TensorStore's key-value store of the array.
        layout: of its metadata.
        key: the chunk's, of `Layout.chunk_keys`.
        buffer: for the decompressed numbers, a block at a time; a multiple of 16 bytes.

    Raises:
        OSError, ValueError: the chunk is missing or cannot be read.
    """
    left, squares = layout.chunk_bytes, 0.0
    stored: Any = _Chunk(store, key)
    if layout.is_compressed:
        stored = zstandard.ZstdDecompressor().stream_reader(stored, read_size=PIECE_BYTES)
    try:
        with stored as stream:
            while left > 0:
                wanted = min(left, len(buffer))
                got = 0
                while got < wanted:
                    count = stream.readinto(buffer[got:wanted])
                    if not count:
                        return math.nan
                    got += count
                block = buffer[:wanted]
                bfloat16 = layout.dtype == "bfloat16"
                bad, more = (
                    look_bfloat16(np.frombuffer(block, "<u2")) if bfloat16 else look(np.frombuffer(block, layout.dtype))
                )
                if bad:
                    return math.nan
                squares += more
                left -= wanted
            return math.nan if stream.readinto(buffer[:1]) else squares
    except zstandard.ZstdError:
        return math.nan
