"""The section of a chunk that holds its stats; `lossguard.wire.chunk` says where it stands.

Guarantees. `unpack_stats` gives back, bit for bit, what `pack_stats` rounded. For bytes from outside it ends in the
array or in `ArrayError`, before anything is allocated that they do not fill; everything in the array was written here.

Series-major: float32 [K, L, T], n = L * T numbers a stat. Either an array of `lossguard.wire.arrays`, or, where the
second bytes of some stats' numbers (an exponent's last bit, the mantissa's first seven) are noise:

    size            what
    1               255, which no array begins with
    1               P, byte planes kept of the other stats, 1 to 4
    1               B, 0 to 7 further bits that the N stats of noise have below their second byte
    ceil(K / 8)     which stats are noise: bits, the first stat's is the highest of the first byte
    N n             their second bytes, stat by stat
    B ceil(N n / 8) their further bits
    the rest        one Zstandard frame that states its size: plane 0 of all stats [K, n], then planes 1 to P - 1 of
                    those that are not noise; unless B is above 0 or P below 3, planes 2 to P - 1 of those that are

B is the sum of some of 4, 2 and 1. For each of these, w, in this order, stand the next w bits of all N n numbers,
filled up with zeros to a multiple of 8: cut into 8 / w stretches, of which the numbers at place i make up byte i, the
first stretch's highest. Single bits (w = 1) stand as NumPy packs them: of 8 numbers in a row, the first one's highest.

The odd choice: a guess, by a sample of 256 numbers, of what will not compress, which then is not tried
(docs/decisions/0308-noise-stands-as-it-is.md).
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lossguard.wire.arrays import ArrayError, compress_blocks, decompress, join, pack, pack_planes, unpack, used_planes
from lossguard.wire.frame import Floats32
from lossguard.wire.rounding import round_mantissa, rounded_planes

NOISE_FROM: Final = 65_536
"""In sections of fewer numbers nothing is noise: looking costs more than it saves."""
_MARK: Final = 255
_PLACES, _NEIGHBOURS = 32, 8
"""A sample has so many places, at each so many numbers that follow each other in time."""
_EQUAL: Final = 150
"""Of 256 bytes in order of size so many at most equal their neighbour in noise: 94 on average of bytes that are all
alike likely; of recorded norms of gradients and updates 85 to 115, of norms of weights and fractions 190 and more."""

Buffer = bytes | memoryview
Planes = NDArray[np.uint8]


def pack_stats(stats: Floats32, bits: int) -> list[Buffer]:
    """The section's parts, one behind the other.

    Args:
        stats: float32 [T, L, K], of any strides; not changed.
        bits: 1 to 23 of the mantissa are kept.
    """
    if stats.size == 0:
        return []
    series = np.ascontiguousarray(np.asarray(stats, np.float32).transpose(2, 1, 0))
    words = series.view(np.uint32).reshape(len(series), -1)
    planes = rounded_planes(words.reshape(-1), bits)
    if planes is None:
        return [pack(round_mantissa(series, bits))]
    if words.size >= NOISE_FROM:
        by_stat = planes.reshape(len(planes), *words.shape)
        is_noise = _is_noise(by_stat[1])
        if is_noise.any():
            return _pack_apart(by_stat, is_noise)
    return [pack_planes(used_planes(planes))]


def unpack_stats(data: memoryview, shape: tuple[int, int, int]) -> Floats32:
    """The stats [K, L, T] in a section.

    Raises:
        ArrayError: the bytes are something else; says what.
    """
    if not data or data[0] != _MARK:
        return unpack(data, np.dtype("<f4"), shape)
    k, n = shape[0], shape[1] * shape[2]
    head = 3 + (k + 7) // 8
    if len(data) < head or not n:
        raise ArrayError(f"{len(data)} bytes are too few for {k} stats of {n} numbers")
    kept, bits = data[1], data[2]
    is_noise = np.unpackbits(np.frombuffer(data[3:head], np.uint8), count=k).tolist()
    count = sum(is_noise)
    if not (1 <= kept <= 4 and bits <= 7 and count):
        raise ArrayError(f"{kept} planes, {bits} further bits and {count} stats of noise are none that stand apart")
    second = head + count * n
    end = second + bits * -(-count * n // 8)
    if end > len(data):
        raise ArrayError(f"{len(data)} bytes of stats, {end} and more are expected")
    beyond = 0 if bits or kept < 3 else kept - 2  # planes of noise in the frame below the second
    counts = [k, *[k - count] * (kept - 1), *[count] * beyond]
    frame = np.frombuffer(decompress(data[end:], n * sum(counts)), np.uint8).reshape(-1, n)
    top, *others = np.split(frame, np.cumsum(counts[:-1]))
    plain, further = others[: kept - 1], others[kept - 1 :]
    noise = [np.frombuffer(data[head:second], np.uint8).reshape(count, n)]
    noise += [_unpack_bits(data[second:end], bits, count * n).reshape(count, n)] if bits else further
    words = np.empty((k, n), np.uint32)
    first, places = 0, [0, 0]
    for kind, run in groupby(is_noise):  # what stands side by side is joined at once
        rows = len(list(run))
        planes, place = (noise if kind else plain), places[kind]
        below = [plane[place : place + rows].reshape(-1) for plane in planes]
        join([top[first : first + rows].reshape(-1), *below], words[first : first + rows].reshape(-1))
        first, places[kind] = first + rows, place + rows
    return words.view(np.float32).reshape(shape)


def _is_noise(plane: Planes) -> NDArray[np.bool_]:
    """By stat [K]: are these bytes of its numbers [K, n] about as if drawn by lot?"""
    k, n = plane.shape
    apart = n // _PLACES
    if apart < _NEIGHBOURS:
        return np.zeros(k, np.bool_)
    some = plane[:, : _PLACES * apart].reshape(k, _PLACES, apart)[:, :, :_NEIGHBOURS]
    # "stable" sorts bytes by counting them: 12 against 50 us for twelve stats.
    sample = np.sort(some.reshape(k, -1), axis=1, kind="stable")
    found: NDArray[np.bool_] = np.count_nonzero(sample[:, 1:] == sample[:, :-1], axis=1) <= _EQUAL
    return found


def _pack_apart(planes: NDArray[np.uint8], is_noise: NDArray[np.bool_]) -> list[Buffer]:
    noise, others = np.flatnonzero(is_noise), np.flatnonzero(~is_noise)
    parts: list[Buffer] = [np.packbits(is_noise).tobytes(), *(row.data for row in planes[1, noise])]
    bits, beyond = 0, planes[2:]
    if len(planes) == 3:
        low = planes[2, noise].reshape(-1)
        used = int(np.bitwise_or.reduce(low))
        if used and not used & 1:
            bits, beyond = 9 - (used & -used).bit_length(), planes[3:]
            parts += [packed.data for packed in _pack_bits(low, bits)]
    groups: list[Sequence[Planes]] = [[planes[0].reshape(-1)], *(list(plane[others]) for plane in planes[1:])]
    groups += [list(plane[noise]) for plane in beyond]
    filled = [group for group in groups if len(group)]
    return [bytes([_MARK, len(planes), bits]), *parts, *compress_blocks(filled)]


def _pack_bits(plane: Planes, bits: int) -> list[Planes]:
    """The upper bits, 1 to 7, of each byte of a plane."""
    whole = np.pad(plane, (0, -len(plane) % 8)) if len(plane) % 8 else plane
    return [_pack_field(whole, above, wide) for above, wide in _fields(bits)]


def _unpack_bits(data: memoryview, bits: int, count: int) -> Planes:
    eighth = -(-count // 8)
    planes, begin = [], 0
    for above, wide in _fields(bits):
        packed = np.frombuffer(data[begin : begin + wide * eighth], np.uint8)
        planes.append(_unpack_field(packed, above, wide))
        begin += wide * eighth
    whole = planes[0]
    for plane in planes[1:]:
        whole |= plane
    return whole[:count]


def _fields(bits: int) -> list[tuple[int, int]]:
    """How many bits stand above each field, and how many it has."""
    return [(bits & ~(2 * wide - 1), wide) for wide in (4, 2, 1) if bits & wide]


# Bytes are moved up by multiplication: `left_shift` of bytes takes five times as long (NumPy 2.4).
def _pack_field(plane: Planes, above: int, wide: int) -> Planes:
    mask = np.uint8((0xFF << 8 - wide & 0xFF) >> above)
    if wide == 1:
        return np.packbits(plane & mask)
    field = plane & mask
    if above:
        field *= np.uint8(1 << above)
    first, *others = field.reshape(8 // wide, -1)
    for place, stretch in enumerate(others, 1):
        stretch >>= np.uint8(place * wide)
        first |= stretch
    return first


def _unpack_field(packed: Planes, above: int, wide: int) -> Planes:
    if wide == 1:
        plane = np.unpackbits(packed)
        plane *= np.uint8(1 << 7 - above)
        return plane
    plane = np.empty((8 // wide, len(packed)), np.uint8)
    for place in range(len(plane)):
        np.multiply(packed, np.uint8(1 << place * wide), out=plane[place])
    plane &= np.uint8(0xFF << 8 - wide & 0xFF)
    if above:
        plane >>= np.uint8(above)
    return plane.reshape(-1)
