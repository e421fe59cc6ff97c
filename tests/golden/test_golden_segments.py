"""Segments and pyramids that an old version wrote are read for ever."""

from pathlib import Path

import numpy as np
import pytest
from make_wire_and_journal import SCHEMA, frames
from numpy.testing import assert_array_equal

from lossguard.wire.frame import Frames
from lossguard_service.store import layout, pyramid

HERE = Path(__file__).parent / "segments"
FIELDS = ("steps", "times", "scalars", "stats", "scalars_present", "stats_present")
BY_LAYER = ["first", "steps-apart"]


def parts(name: str) -> dict[int, bytes]:
    with np.load(HERE / f"{name}.npz") as held:
        return {int(part): held[part].tobytes() for part in held}


@pytest.mark.parametrize("name", [*BY_LAYER, "in-one"])
def test_a_segment_gives_its_frames_bit_for_bit(name: str) -> None:
    found, wanted = layout.load(parts(name), SCHEMA), frames()
    assert found.schema == SCHEMA
    for field in FIELDS:
        assert getattr(found, field).tobytes() == getattr(wanted, field).tobytes(), field


@pytest.mark.parametrize("name", BY_LAYER)
@pytest.mark.parametrize(("layer", "stat"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_segment_gives_one_series(name: str, layer: int, stat: int) -> None:
    held = parts(name)
    steps = layout.STEPS if layout.STEPS in held else layout.COMMON
    start, size = layout.place_of(held[layer][: 4 * len(SCHEMA.stats)], stat)
    whole, one = {layer: held[layer]}, {layout.SLICES + layer: held[layer][start : start + size]}
    for some in (whole, one):
        laid = layout.Laid(1, 1 << 40, 4, {steps: held[steps]} | some)
        (found,) = layout.load_series([laid], SCHEMA, layer, stat)
        check(found, layer, stat)


@pytest.mark.parametrize(("layer", "stat"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_segment_in_one_piece_gives_one_series(layer: int, stat: int) -> None:
    held = parts("in-one")
    assert not layout.is_enough(held, layer)
    laid = layout.Laid(1, 1 << 40, 4, held)
    (found,) = layout.load_series([laid], SCHEMA, layer, stat)
    check(found, layer, stat)


def check(found: Frames, layer: int, stat: int) -> None:
    block = frames()
    assert found.steps.tolist() == block.steps.tolist()
    assert found.stats[:, 0, 0].tobytes() == block.stats[:, layer, stat].tobytes()
    assert_array_equal(found.stats_present[:, 0], block.stats_present[:, stat])


def test_a_segment_of_a_later_version_is_refused_in_words() -> None:
    held = parts("first")
    held[layout.COMMON] = b"\x03" + held[layout.COMMON][1:]
    with pytest.raises(ValueError, match="a segment of version 3, this replica reads versions up to 2"):
        layout.load(held, SCHEMA)


def test_a_pyramid_gives_its_buckets() -> None:
    found, nan, inf = pyramid.load(parts("pyramid"), SCHEMA), np.nan, np.inf
    assert (found.first.tolist(), found.last.tolist()) == ([1, 3], [2, 1 << 40])
    assert found.count.tolist() == [[2, 2, 2], [2, 1, 2]]
    assert found.nonfinite.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert_array_equal(found.maximum, [[0.7, inf, 0.1], [0.3, 5e-324, 1.7e308]])
    assert_array_equal(found.mean[0], [nan, inf, -inf])
    series = pyramid.load(parts("pyramid"), SCHEMA, stat=1, layer=0)
    assert series.count[:, 0].tolist() == [2, 2]
    assert_array_equal(series.maximum[:, 0], np.array([inf, np.e], np.float32))
