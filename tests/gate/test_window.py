"""The window over blocks that overlap, differ in their columns and have holes, against a dictionary of its values."""

import random

import numpy as np

from lossguard.wire.frame import Frames, Schema
from lossguard_service.gate.window import window_of

NAMES = ("loss", "loss/click", "batch_auc/click", "rmse/play")


def random_block(dice: random.Random) -> Frames:
    steps = sorted(dice.sample(range(1, 30), dice.randint(0, 8)))
    names = tuple(dice.sample(NAMES, dice.randint(1, 4)))
    values = np.random.default_rng(dice.randint(0, 999)).normal(size=(len(steps), len(names)))
    present = np.random.default_rng(dice.randint(0, 999)).random(values.shape) < 0.8
    values[values > 1.5] = np.nan
    frames = Frames.of(Schema(names, ("layer",), ("weight_norm",)), steps, values, np.ones((len(steps), 1, 1)))
    return Frames(
        frames.schema, frames.steps, frames.times, frames.scalars, frames.stats, present, frames.stats_present
    )


def test_a_window_holds_every_value_of_the_first_block_that_has_its_step() -> None:
    dice = random.Random(3)
    seen = 0
    for _ in range(300):
        blocks = [random_block(dice) for _ in range(dice.randint(0, 4))]
        first, last = dice.randint(1, 15), dice.randint(12, 30)
        rows: dict[int, dict[str, float]] = {}
        for block in blocks:
            for i, step in enumerate(block.steps.tolist()):
                if first <= step <= last and step not in rows:
                    rows[step] = {
                        name: float(block.scalars[i, j])
                        for j, name in enumerate(block.schema.scalars)
                        if block.scalars_present[i, j]
                    }
        window = window_of(blocks, first, last)
        assert window.steps.tolist() == sorted(rows)
        assert set(window.values) == set(window.present) == {name for values in rows.values() for name in values}
        for name, values in window.values.items():
            assert window.present[name].tolist() == [name in rows[step] for step in sorted(rows)]
            expected = [rows[step].get(name, np.nan) for step in sorted(rows)]
            np.testing.assert_array_equal(values, expected)
            seen += len(expected)
    assert seen > 3000
