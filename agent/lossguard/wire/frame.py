"""Frames: all scalars and stats of consecutive steps, as arrays.

A `Frames` block is what detectors, traces and chunks share. Its arrays are step-major; NaN and the infinities in them
are data. A value that was not measured at a step (a scalar logged now and then, a stat on a slower cadence) is NaN
with its presence bit off, which is how "absent" and "NaN" stay two things.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats64 = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Steps = NDArray[np.int64]
Bits = NDArray[np.bool_]
_ARRAYS = ("steps", "times", "scalars", "stats", "scalars_present", "stats_present")


@dataclass(frozen=True, slots=True)
class Schema:
    """The names of a frame's columns, fixed within a chunk.

    Attributes:
        scalars: scalar names, for example `loss/click` [S].
        layers: layer paths, for example `shared/dense_1/kernel` [L].
        stats: stat names [K].
    """

    scalars: tuple[str, ...]
    layers: tuple[str, ...] = ()
    stats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kind in ("scalars", "layers", "stats"):
            names = getattr(self, kind)
            if len(set(names)) != len(names):
                twice = sorted({name for name in names if names.count(name) > 1})
                raise ValueError(f"{kind}: each name may stand once, {', '.join(twice)} stands more often")


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """A block of frames of one attempt, in step order.

    Attributes:
        schema: the column names.
        steps: int64 [T], strictly increasing; step s is the s-th optimizer update, counted from 1.
        times: float64 [T], Unix seconds at which the step ended, as far as the trainer knows; NaN where unknown.
        scalars: float64 [T, S].
        stats: float32 [T, L, K].
        scalars_present: bool [T, S].
        stats_present: bool [T, K]; a stat is measured for all layers of a step or for none.
    """

    schema: Schema
    steps: Steps
    times: Floats64
    scalars: Floats64
    stats: Floats32
    scalars_present: Bits
    stats_present: Bits

    def __post_init__(self) -> None:
        t, s = len(self.steps), len(self.schema.scalars)
        n_layers, k = len(self.schema.layers), len(self.schema.stats)
        shapes = (t,), (t,), (t, s), (t, n_layers, k), (t, s), (t, k)
        some: list[NDArray[Any]] = [self.steps, self.times, self.scalars]
        arrays = [*some, self.stats, self.scalars_present, self.stats_present]
        for place, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
            if array.shape != shape:
                raise ValueError(f"{_ARRAYS[place]}: expected shape {shape}, got {array.shape}")
        if t > 1 and not bool((self.steps[1:] > self.steps[:-1]).all()):
            raise ValueError("steps: must increase from frame to frame")

    def __len__(self) -> int:
        return len(self.steps)

    @classmethod
    def of(
        cls,
        schema: Schema,
        steps: Sequence[int] | Steps,
        scalars: Sequence[Sequence[float]] | Floats64,
        stats: Floats32 | None = None,
        *,
        times: Floats64 | None = None,
        scalars_present: Bits | None = None,
        stats_present: Bits | None = None,
    ) -> Self:
        """Build a block from plain sequences; what is not given is complete (presence) or unknown (times)."""
        t = len(steps)
        shape = (t, len(schema.layers), len(schema.stats))
        return cls(
            schema=schema,
            steps=np.asarray(steps, np.int64),
            times=np.full(t, np.nan) if times is None else np.asarray(times, np.float64),
            scalars=np.asarray(scalars, np.float64).reshape(t, len(schema.scalars)),
            stats=np.full(shape, np.nan, np.float32) if stats is None else np.asarray(stats, np.float32),
            scalars_present=np.ones((t, len(schema.scalars)), np.bool_) if scalars_present is None else scalars_present,
            stats_present=np.ones((t, len(schema.stats)), np.bool_) if stats_present is None else stats_present,
        )

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(
            schema=self.schema,
            steps=self.steps[rows],
            times=self.times[rows],
            scalars=self.scalars[rows],
            stats=self.stats[rows],
            scalars_present=self.scalars_present[rows],
            stats_present=self.stats_present[rows],
        )
