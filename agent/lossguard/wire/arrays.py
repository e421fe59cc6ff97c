"""Arrays as bytes: byte planes, compressed. Lossless; what chunks and segments store their numbers in.

Guarantees. `unpack` gives back what `pack` was given, bit for bit. For bytes from outside it ends in the array or in
`ArrayError`; nothing is allocated before the bytes have said the size that the caller expects, and everything in the
array was written by the decoder.

Layout: one byte P, the number of byte planes kept; then, unless P is 0, P times n bytes: plane 0 holds the most
significant byte of every number (little-endian numbers' last byte), plane 1 the next one, and so on. The planes left
out are zero. Up to 64 bytes of planes stand as they are, more are one Zstandard frame (content size stated, no
dictionary). An empty array is no bytes at all.

The odd choices: planes made by NumPy and not by a compressor with a shuffle filter, so that rounded stats have an empty
lowest plane, which is not even looked at (docs/decisions/0301-byte-planes.md). And the blocks of a frame end where
planes end, so that each has its own Huffman table (docs/decisions/0307-blocks-end-with-planes.md).
"""

import math
import threading
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import zstandard
from numpy.typing import NDArray

LEVEL: Final = 1
PIECE: Final = 32_768
"""So many numbers are worked on at a time: they, and what is made of them, stay in the second cache."""
PLAIN_BYTES: Final = 64
"""Planes of so many bytes are not compressed: it would make them longer."""
_FEW_BYTES: Final = 4096
"""Up to here calls cost more than bytes."""
_OWN_BLOCKS: Final = 1024
"""Planes of so many bytes end their block; shorter ones are not worth the two calls."""
_PLANES: Final = {"strategy": 1, "min_match": 7, "hash_log": 10, "window_log": 17, "target_length": 0}
"""Level 1 with fewer, longer matches: mantissas are noise, whose short matches cost more than they save."""

_END: Final = zstandard.COMPRESSOBJ_FLUSH_FINISH
_WORDS: Final = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}
_local = threading.local()  # contexts are costly to make and belong to one thread each


class ArrayError(ValueError):
    """The bytes are not the array that was expected."""


def pack(array: NDArray[Any]) -> bytes:
    """The array's numbers as bytes; shape and dtype are the caller's to remember."""
    if array.size == 0:
        return b""
    size = array.dtype.itemsize
    if array.nbytes <= PLAIN_BYTES:
        # In Python: three times as fast as a dozen calls of NumPy for a handful of numbers.
        raw = array.astype(array.dtype.newbyteorder(">")).tobytes()
        plain = [raw[plane::size] for plane in range(size)]
        while plain and not any(plain[-1]):
            plain.pop()
        return bytes([len(plain)]) + b"".join(plain)
    if array.nbytes <= _FEW_BYTES:
        # A byte is read at a time, in two calls instead of two for each plane.
        whole = np.frombuffer(array.astype(array.dtype.newbyteorder(">")).tobytes(), np.uint8).reshape(-1, size)
        every = np.ascontiguousarray(whole.T)
        return pack_planes(used_planes(every))
    native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    words = np.ascontiguousarray(native).reshape(-1).view(_WORDS[size])
    used = int(np.bitwise_or.reduce(words))
    # `used & -used` is the lowest bit of all: the planes below it are zero.
    kept = size - ((used & -used).bit_length() - 1) // 8 if used else 0
    planes = np.empty((kept, len(words)), np.uint8)
    split(words, planes)
    return pack_planes(planes)


def used_planes(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The planes [P, n] without the last ones that are zero throughout."""
    kept = len(planes)
    while kept and not planes[kept - 1].any():
        kept -= 1
    return planes[:kept]


def split(words: NDArray[Any], planes: NDArray[np.uint8]) -> None:
    """Write the words' upper planes, as many as there are rows."""
    for place, plane in enumerate(planes):
        # Shifts of whole words: 88 against 147 us for reading every fourth byte of 150,000 numbers.
        np.right_shift(words, 8 * (words.itemsize - 1 - place), out=plane, casting="unsafe")


def pack_planes(planes: NDArray[np.uint8]) -> bytes:
    """An array's bytes from its planes [P, n], of which the last one is not zero throughout."""
    head = bytes([len(planes)])
    if planes.size <= PLAIN_BYTES:
        return head + planes.tobytes()
    if planes.shape[1] < _OWN_BLOCKS:
        return head + compress(planes.data)
    return b"".join([head, *compress_blocks([[plane] for plane in planes])])


def compress_blocks(groups: Sequence[Sequence[NDArray[np.uint8]]]) -> list[bytes]:
    """The parts of one Zstandard frame that states its size; behind each group of arrays a block ends."""
    stream = _compressor("planes").compressobj(size=sum(array.size for group in groups for array in group))
    parts = []
    for group in groups:
        parts += [stream.compress(array.data) for array in group]
        parts.append(stream.flush(_END if group is groups[-1] else zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    return parts


def unpack(data: bytes | memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The array in `data`.

    Raises:
        ArrayError: the bytes are something else; says what.
    """
    count = math.prod(shape)
    if count == 0:
        if len(data):
            raise ArrayError(f"{len(data)} bytes stand for an array that is empty")
        return np.empty(shape, dtype)
    if not len(data):
        raise ArrayError(f"no bytes stand for {count} numbers")
    size, kept = dtype.itemsize, data[0]
    if kept == 0 and len(data) == 1:
        return np.zeros(shape, dtype)
    if not 1 <= kept <= size:
        raise ArrayError(f"{kept} byte planes of numbers of {size} bytes")
    total = kept * count
    plain = data[1:] if total <= PLAIN_BYTES else decompress(data[1:], total)
    if len(plain) != total:
        raise ArrayError(f"{len(plain)} bytes of planes, {total} are expected")
    if count * size <= PLAIN_BYTES:  # in Python, as in `pack`
        whole = bytearray(count * size)
        for place in range(kept):
            whole[place::size] = plain[place * count : (place + 1) * count]
        few: NDArray[Any] = np.frombuffer(whole, dtype.newbyteorder(">")).astype(dtype.newbyteorder("="))
        return few.reshape(shape)
    planes = np.frombuffer(plain, np.uint8).reshape(kept, count)
    if count * size <= _FEW_BYTES:
        joined = np.zeros((count, size), np.uint8)
        joined[:, :kept] = planes.T
        small: NDArray[Any] = joined.reshape(-1).view(dtype.newbyteorder(">")).astype(dtype.newbyteorder("="))
        return small.reshape(shape)
    words = np.empty(count, _WORDS[size])
    join(planes, words)
    array: NDArray[Any] = words.view(dtype.newbyteorder("=")).reshape(shape)
    return array


def join(planes: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], words: NDArray[Any]) -> None:
    """Write words [n] of which these are the upper planes, each [n]; the inverse of `split`."""
    below = 8 * (words.itemsize - len(planes))
    # The upper two planes are joined in half words, if that is what they are: half the way to memory.
    halves = words.itemsize == 4 and len(planes) > 1
    half = np.empty(min(len(words), PIECE) if halves else 0, np.uint16)
    for begin in range(0, len(words), PIECE):
        # Shifts of whole words: 1.6 against 1.9 ns a number for writing every fourth byte.
        some = words[begin : begin + PIECE]
        upper = half[: len(some)] if halves else some
        upper[...] = planes[0][begin : begin + PIECE]
        for place, plane in enumerate(planes[1:]):
            to = upper if place == 0 else some
            to <<= 8
            to |= plane[begin : begin + PIECE]
            if halves and place == 0:
                some[...] = upper
        if below:
            some <<= below


def compress(data: bytes | memoryview) -> bytes:
    """One Zstandard frame that states its size."""
    return _compressor("text").compress(data)


def decompress(data: bytes | memoryview, expected: int) -> bytes:
    """The `expected` bytes in one Zstandard frame.

    Raises:
        ArrayError: it is no such frame, or states another size; then nothing was allocated.
    """
    try:
        about = zstandard.get_frame_parameters(data)
        if about.content_size != expected:
            raise ArrayError(f"a frame claims {about.content_size} bytes, {expected} are expected")
        found: bytes = _decompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ArrayError(f"a frame does not decompress: {error}") from None
    if len(found) != expected:
        raise ArrayError(f"a frame holds {len(found)} bytes, {expected} are expected")
    return found


def _compressor(of: Literal["text", "planes"]) -> zstandard.ZstdCompressor:
    compressor: zstandard.ZstdCompressor | None = getattr(_local, of, None)
    if compressor is None:
        more = _PLANES if of == "planes" else {}
        parameters = zstandard.ZstdCompressionParameters(compression_level=LEVEL, write_content_size=True, **more)
        compressor = zstandard.ZstdCompressor(compression_params=parameters)
        setattr(_local, of, compressor)
    return compressor


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    decompressor: zstandard.ZstdDecompressor = _local.decompressor
    return decompressor
