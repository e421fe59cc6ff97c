"""The convergence view of a large model: what stands out or moves most is shown, the rest is said and searched."""

from dataclasses import replace

import numpy as np
from test_words import FULL, RUN, stored

from lossguard_service.store.series import HeatMap
from lossguard_service.web import layers
from lossguard_service.web.layers import LayersView, view

NAMES = tuple(f"tower/block_{n}/{part}/kernel" for n in range(80) for part in ("query", "key", "value"))


def heat(stat: str, values: np.ndarray) -> HeatMap:
    steps = np.arange(1, values.shape[1] + 1)
    return HeatMap(stat, NAMES, steps, steps, values, values, (~np.isfinite(values)).astype(np.int64))


def large(search: str = "", most: int = layers.MOST_ROWS) -> LayersView:
    """240 layers over 20 steps; layer n still changes by n per mille, 7 has an infinity, 9 no gradient."""
    weight = np.ones((len(NAMES), 20))
    weight[:, -1] += np.arange(len(NAMES)) / 1000
    gradient = np.ones((len(NAMES), 20))
    gradient[7, 3], gradient[9, 15:] = np.inf, 0.0
    maps = {"weight_norm": heat("weight_norm", weight), "gradient_norm": heat("gradient_norm", gradient)}
    return view(RUN, maps, [stored(replace(FULL, first_layer=NAMES[30]))], search, most)


def test_what_stands_out_comes_first_and_the_rest_by_how_much_it_moves() -> None:
    shown = large()
    assert (shown.layers, shown.found, len(shown.rows)) == (240, 240, layers.MOST_ROWS)
    # 0 did not change at all, 7 is not finite, 9 has no gradient, 30 began the divergence.
    assert [row.name for row in shown.rows[:4]] == [NAMES[7], NAMES[30], NAMES[9], NAMES[0]]
    assert [row.name for row in shown.rows[4:]] == [NAMES[n] for n in range(239, 239 - layers.MOST_ROWS + 4, -1)]
    assert all(row.weight.line for row in shown.rows)


def test_the_search_takes_parts_of_a_name_in_any_order_and_case() -> None:
    found = large("QUERY block_7")
    assert {row.name for row in found.rows} == {f"tower/block_{n}/query/kernel" for n in (7, *range(70, 80))}
    assert (found.found, found.layers, found.search) == (11, 240, "QUERY block_7")
    assert large("nowhere").rows == ()
    assert len(large(most=layers.ALL_ROWS).rows) == 240
