"""What the frames of the export's step and the next one say of the layers' norms.

Guarantees. Pure. Only what was measured in these two frames: a layer that is measured every k steps has no entry at the
steps between. What an update can have moved is its length by the triangle inequality, with the decay that Keras takes
off before it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeGuard

from lossguard.wire.frame import Frames
from lossguard.wire.stats import CLIPPING_FACTOR, UPDATE_NORM, WEIGHT_NORM, WEIGHT_NORM_AFTER
from lossguard_service.gate.facts import Weights

_ROOM: Final = 1.001
"""The update's length is itself a sum of rounded numbers."""


def weights_of(frames: Sequence[Frames], step: int, config: Mapping[str, Any]) -> Weights | None:
    """The norms at `step` and the next one; None if neither frame is there.

    Args:
        frames: of the lineage, in step order.
        step: the export's.
        config: of the run; `use_ema` anywhere in it or `averaged_weights` say that weights are averaged.
    """
    here, there = (_columns(frames, one) for one in (step, step + 1))
    if here is None and there is None:
        return None
    decay = sum(value for key, value in _leaves(config) if key == "weight_decay" and _is_positive(value))
    before = {
        layer: (stats[WEIGHT_NORM], _moved(stats, decay))
        for layer, stats in (here or {}).items()
        if _is_positive(stats.get(WEIGHT_NORM)) and math.isfinite(_moved(stats, decay))
    }
    # Where the trainer saved or ended it told the very norms.
    before |= {
        layer: (stats[WEIGHT_NORM_AFTER], 0.0)
        for layer, stats in (here or {}).items()
        if _is_positive(stats.get(WEIGHT_NORM_AFTER))
    }
    after = {
        layer: stats[WEIGHT_NORM] for layer, stats in (there or {}).items() if _is_positive(stats.get(WEIGHT_NORM))
    }
    averaged = any(key in ("use_ema", "averaged_weights") and value is True for key, value in _leaves(config))
    parameters = config.get("parameters")
    return Weights(before, after, averaged, float(parameters) if _is_positive(parameters) else None)


def _moved(stats: Mapping[str, float], decay: float) -> float:
    """The farthest that the update can have moved the weights; a factor below 1 may not be that of every part."""
    factor = max(1.0, stats.get(CLIPPING_FACTOR, 1.0))
    return _ROOM * (stats.get(UPDATE_NORM, math.nan) * factor + decay * stats.get(WEIGHT_NORM, math.nan))


def _columns(frames: Sequence[Frames], step: int) -> dict[str, dict[str, float]] | None:
    """By layer, the stats that were measured at a step; the first block wins, as it does in the detectors."""
    for block in frames:
        rows = (block.steps == step).nonzero()[0]
        if len(rows):
            row = int(rows[0])
            measured = [k for k in range(len(block.schema.stats)) if block.stats_present[row, k]]
            return {
                layer: {block.schema.stats[k]: float(block.stats[row, n, k]) for k in measured}
                for n, layer in enumerate(block.schema.layers)
            }
    return None


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, key)
    else:
        yield key, value


def _is_positive(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
