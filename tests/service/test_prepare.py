"""A run's summary says what its last frames say, whatever of them was measured."""

import numpy as np
import pytest

from lossguard.wire.frame import Bits, Frames, Schema
from lossguard.wire.numbers import to_json_number
from lossguard_service.ingest.prepare import TOP_LAYERS, digest

SCHEMA = Schema(
    scalars=("loss", "learning_rate"), layers=tuple(f"layer_{n}" for n in range(9)), stats=("clippy_ratio", "any")
)


def block(seed: int, scalars_here: Bits, stats_here: Bits) -> Frames:
    """Six frames, some of whose values are the same, NaN or infinite."""
    random = np.random.default_rng(seed)
    values = random.choice([0.5, 1.0, 2.0, np.nan, np.inf, 4.0], size=(6, 9, 2)).astype(np.float32)
    scalars = random.choice([0.1, np.nan, -np.inf], size=(6, 2))
    return Frames.of(
        SCHEMA, np.arange(1, 7), scalars, values, scalars_present=scalars_here, stats_present=stats_here
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_a_summary_names_the_last_value_of_each_scalar_and_the_layers_that_were_clipped_most(seed: int) -> None:
    random = np.random.default_rng(seed)
    scalars_here, stats_here = (random.random((6, 2)) < share for share in (0.6, 1.0 if seed % 2 else 0.5))
    frames = block(seed, scalars_here, stats_here)
    found = digest(frames)
    expected = {}
    for s, name in enumerate(SCHEMA.scalars):
        for t in range(6):
            if scalars_here[t, s]:
                expected[name] = to_json_number(frames.scalars[t, s])
    assert found["scalars"] == expected
    worst = []
    for n, layer in enumerate(SCHEMA.layers):
        seen = [float(frames.stats[t, n, 0]) for t in range(6) if stats_here[t, 0]]
        known = [value for value in seen if value == value]
        if seen:
            # A layer of which nothing is a number is the worst: it stands first, by its place among its like.
            worst.append((-max(known) if known else -np.inf, n, layer, max(known) if known else np.nan))
    top = [[layer, to_json_number(value)] for _, _, layer, value in sorted(worst)[:TOP_LAYERS]]
    assert found["top_layers"] == top
    assert found["clippy_ratio_max"] == (top[0][1] if top else None)
