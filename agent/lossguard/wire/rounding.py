"""Rounding of stats: fewer mantissa bits, no bias, and nothing that is no number changes."""

from typing import Final

import numpy as np

from lossguard.wire.frame import Floats32

_EXPONENT: Final = np.uint32(0x7F800000)


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
