"""Rounding of stats: fewer mantissa bits, no bias, and nothing that is no number changes."""

from typing import Final

import numpy as np

from lossguard.wire.frame import Floats32

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
    if not 1 <= bits <= 23:
        raise ValueError(f"bits: must be 1 to 23, got {bits}")
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32)
    drop = 23 - bits
    if drop == 0:
        out = raw.copy()
    else:
        out = raw >> np.uint32(drop)
        out &= np.uint32(1)
        out += np.uint32((1 << (drop - 1)) - 1)
        out += raw
        out &= np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)
    if raw.size and int((raw & _MAGNITUDE).max()) >= _LARGE:  # rare, and looking for it costs as much as the rounding
        special = (out & _EXPONENT) == _EXPONENT
        special |= (raw & _EXPONENT) == _EXPONENT  # a carry may have gone on into the sign
        out[special] = raw[special]
        out[(raw & _MAGNITUDE) > _EXPONENT] = _NAN
    return out.view(np.float32)
