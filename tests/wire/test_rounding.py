"""Rounding by bit patterns is what a reader of the docstring would compute, one number at a time."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lossguard.wire import rounding
from lossguard.wire.arrays import pack
from lossguard.wire.rounding import round_mantissa
from lossguard.wire.stats_section import pack_stats

EDGES = st.sampled_from(
    [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F7FFFFF, 0xFF7FFFFF,
     0x7F7FE000, 0x7F7FF000, 0xFF7FF001, 0x7F000000, 0x00000001, 0x807FFFFF, 0x3F801000, 0x3F803000, 0xBF801001]
)  # fmt: skip
WORDS = st.one_of(EDGES, st.integers(0, 0xFFFFFFFF))


def reference(word: int, bits: int) -> int:
    """One float32's pattern, rounded to nearest, ties to even."""
    magnitude, sign = word & 0x7FFFFFFF, word & 0x80000000
    if magnitude > 0x7F800000:
        return 0x7FC00000
    unit = 1 << 23 - bits
    down, rest = magnitude // unit * unit, magnitude % unit
    up = 2 * rest > unit or (2 * rest == unit and down // unit % 2 == 1)
    rounded = down + unit * up
    return word if rounded >= 0x7F800000 or magnitude == 0x7F800000 else sign | rounded


@given(st.lists(WORDS, min_size=1, max_size=40), st.integers(1, 23))
@example([0x7F7FFFFF], 10)
@example([0xFF7FFFFF, 0x3F800000], 10)
def test_each_number_is_rounded_as_by_hand(words: list[int], bits: int) -> None:
    values = np.array(words, np.uint32).view(np.float32)
    assert round_mantissa(values, bits).view(np.uint32).tolist() == [reference(word, bits) for word in words]


@given(
    npst.arrays(np.uint32, npst.array_shapes(min_dims=3, max_dims=3, min_side=0, max_side=7), elements=WORDS),
    st.integers(1, 23),
    st.permutations(range(3)),
)
def test_a_section_is_the_rounded_series_packed(words: np.ndarray, bits: int, axes: list[int]) -> None:
    stats = np.ascontiguousarray(words.transpose(axes)).view(np.float32).transpose(np.argsort(axes))
    before = rounding.PIECE
    rounding.PIECE = 11  # so that small arrays have several pieces
    try:
        found = b"".join(pack_stats(stats, bits))
    finally:
        rounding.PIECE = before
    assert found == pack(round_mantissa(np.ascontiguousarray(stats.transpose(2, 1, 0)), bits))
    assert stats.tobytes() == words.tobytes()


@pytest.mark.parametrize("bits", [0, 24])
def test_other_numbers_of_bits_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        round_mantissa(np.ones(3, np.float32), bits)
    with pytest.raises(ValueError, match="bits"):
        pack_stats(np.ones((1, 2, 3), np.float32), bits)
