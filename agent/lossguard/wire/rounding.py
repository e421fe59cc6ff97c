"""Rounding of stats: fewer mantissa bits, no bias, and what is no number stays."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lossguard.wire.arrays import PIECE, split
from lossguard.wire.frame import Floats32

Words = NDArray[np.uint32]
_EXPONENT: Final = np.uint32(0x7F800000)
_MAGNITUDE: Final = np.uint32(0x7FFFFFFF)
_NAN: Final = np.uint32(0x7FC00000)
_LARGE: Final = 0x7F000000
"""From 2^127 on: what is NaN, infinite, or could round up to it, with as few bits as one."""


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
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32)
    out = np.empty_like(raw)
    if not round_words(raw, out, bits):
        out &= mask_of(bits)
    return out.view(np.float32)


def rounded_planes(words: Words, bits: int) -> NDArray[np.uint8] | None:
    """The upper byte planes of what `round_mantissa` makes of the words, in fewer ways to memory.

    Args:
        words: float32 patterns [n]; not changed.
        bits: 1 to 23.

    Returns:
        As many planes [P, n] as can hold more than zeros. None if some number keeps more bits: `round_mantissa` it is.
    """
    kept = (9 + bits + 7) // 8  # sign, exponent, mantissa
    planes = np.empty((kept, len(words)), np.uint8)
    scratch = np.empty(min(len(words), PIECE), np.uint32)
    for begin in range(0, len(words), PIECE):
        raw = words[begin : begin + PIECE]
        rounded = scratch[: len(raw)]
        if round_words(raw, rounded, bits):
            return None
        split(rounded, planes[:, begin : begin + PIECE])
    planes[-1] &= np.uint8(int(mask_of(bits)) >> 8 * (4 - kept) & 0xFF)
    return planes


def mask_of(bits: int) -> np.uint32:
    """What keeps the sign, the exponent and the first `bits` mantissa bits of a word."""
    return np.uint32(0xFFFFFFFF << 23 - bits & 0xFFFFFFFF)


def round_words(raw: Words, out: Words, bits: int) -> bool:
    """Round float32 values by their bit patterns; what `round_mantissa` does, in an array that is there already.

    Args:
        raw: the patterns.
        out: of the same shape; holds the rounded ones afterwards.
        bits: 1 to 23.

    Returns:
        False if the caller must still cut what is below the bits, by `mask_of`, which is cheaper once it has fewer
        bytes to look at. True if it must not: it is cut, and some finite value keeps all of its bits.
    """
    if not 1 <= bits <= 23:
        raise ValueError(f"bits: must be 1 to 23, got {bits}")
    drop = 23 - bits
    if drop == 0:
        np.copyto(out, raw)
    else:
        np.right_shift(raw, np.uint32(drop), out=out)
        out &= np.uint32(1)
        out += np.uint32((1 << (drop - 1)) - 1)
        out += raw
    # Special values are rare, and looking for them costs as much as the rounding. Where the largest word is small there
    # is no negative value either; else the largest positive value is looked for among signed words.
    if not raw.size or int(raw.max()) < _LARGE:
        return False
    if int(raw.max() & _MAGNITUDE) < _LARGE and int(raw.view(np.int32).max()) < _LARGE:
        return False
    out &= mask_of(bits)
    special = (out & _EXPONENT) == _EXPONENT
    special |= (raw & _EXPONENT) == _EXPONENT  # a carry may have gone on into the sign
    out[special] = raw[special]
    out[(raw & _MAGNITUDE) > _EXPONENT] = _NAN
    return bool((out[special] & ~mask_of(bits)).any())
