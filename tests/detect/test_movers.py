"""Which layer is named: the one whose movement leads into the onset, not the one that coughed long before."""

import numpy as np
import pytest

from lossguard.detect import layers

NAMES = ("a/kernel", "b/bias", "c/kernel")
ONSET = 15
"""The onset's place in a window of 20 frames; it was flagged 4 frames later."""


def named(moved: dict[int, list[int]], since: int = 4) -> list[tuple[str, int]]:
    """The ranking for layers that moved at these places."""
    tall = np.zeros((20, len(NAMES)), np.float16)
    for i, at in moved.items():
        tall[at, i] = 9 + i
    return [(name, ago) for name, ago, _ in layers.movers(layers.Layers(names=NAMES, tall=tall), 20, since)]


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        ({}, []),
        ({1: [4], 0: [15, 16]}, [("a/kernel", 4)]),
        ({1: [4]}, []),
        ({1: [4, 9, 14], 0: [15]}, [("b/bias", 15), ("a/kernel", 4)]),
        ({1: [4, 12, 15]}, [("b/bias", 7)]),
        ({0: [15], 1: [15], 2: [15]}, [("c/kernel", 4), ("b/bias", 4), ("a/kernel", 4)]),
        ({0: [19], 1: [11]}, [("b/bias", 8), ("a/kernel", 0)]),
    ],
)
def test_a_movement_counts_from_where_it_leads_without_a_break_into_the_onset(
    moved: dict[int, list[int]], expected: list[tuple[str, int]]
) -> None:
    assert named(moved) == expected
