"""The scalars of one block by what they are to the detectors: the places found once per schema, the columns once.

What was not measured is NaN here, whatever the block holds in its place.
"""

import math
from functools import lru_cache
from itertools import accumulate

import numpy as np

from lossguard.detect import voices
from lossguard.wire.frame import Bits, Floats64, Frames


class Series:
    """One scalar that is taken wherever it is finite.

    Attributes:
        values: of each frame [T].
        whole: whether all are finite.
    """

    def __init__(self, column: Floats64) -> None:
        self.values: list[float] = column.tolist()
        self.whole = math.isfinite(sum(self.values)) or all(map(math.isfinite, self.values))

    def finite(self, start: int, stop: int) -> list[float]:
        """The finite ones of some frames."""
        part = self.values[start:stop]
        return part if self.whole else [value for value in part if math.isfinite(value)]

    def counts(self, start: int, stop: int) -> list[int] | range:
        """How many of these are finite before the first, second, ... of them and in all."""
        if self.whole:
            return range(stop - start + 1)
        return list(accumulate(map(math.isfinite, self.values[start:stop]), initial=0))


class Scalars:
    """The scalars of one block.

    Attributes:
        rows: the losses, in the order of the state's names [T, V].
        whole: whether all losses of a frame are finite; None where they are in every frame [T].
        here: which of them were measured; None where all are finite [T, V].
        main: the first loss, which is the total where there is one [T].
        judges: the tasks' metrics by scalar name, a regression's on the scale of an AUC.
        labels: label means by task.
        rates: the learning rate; None where there is none.
        rate: the learning rate of every frame, if that is one and the same; NaN otherwise.
        spreads: the predictions' deviations by task.
        deviations: the labels' deviations by task.
    """

    def __init__(self, frames: Frames, names: tuple[str, ...]) -> None:
        scalars, present = frames.schema.scalars, frames.scalars_present
        known = (
            frames.scalars if np.count_nonzero(present) == present.size else np.where(present, frames.scalars, np.nan)
        )
        found = voices.roles(scalars)
        columns, places, of = _places(scalars, names)
        self.rows = known.take(places, axis=1)
        if len(of) < len(names):
            rows, self.rows = self.rows, np.full((len(frames), len(names)), np.nan)
            self.rows[:, of] = rows
        whole = np.isfinite(self.rows)
        self.whole: Bits | None = None
        self.here: Bits | None = None
        if np.count_nonzero(whole) < whole.size:
            self.whole = np.asarray(whole.all(axis=1))
            self.here = np.zeros(whole.shape, np.bool_)
            self.here[:, of] = present[:, places]
        self.main: Floats64 = self.rows[:, 0] if names else np.full(len(frames), np.nan)
        self.judges: dict[str, Series] = {}
        for name in found.judges:
            column = known[:, columns[name]]
            if not name.startswith(voices.AUC):
                deviation = known[:, columns[voices.DEVIATION + name[len(voices.RMSE) :]]]
                column = voices.error_skill(column, deviation)
            self.judges[name] = Series(column)
        self.labels: dict[str, Series] = {task: Series(known[:, columns[name]]) for task, name in found.labels.items()}
        self.spreads: dict[str, list[float]] = {
            task: known[:, columns[name]].tolist() for task, name in found.spreads.items()
        }
        self.deviations: dict[str, Floats64] = {
            task: known[:, columns[name]]
            for task in found.spreads
            if (name := voices.DEVIATION + task) in columns
        }  # fmt: skip
        self.rates = known[:, columns["learning_rate"]] if "learning_rate" in columns else None
        self.rate = math.nan
        if self.rates is not None and np.count_nonzero(self.rates == self.rates[0]) == len(frames):
            self.rate = float(self.rates[0])


@lru_cache(maxsize=256)
def _places(scalars: tuple[str, ...], names: tuple[str, ...]) -> tuple[dict[str, int], list[int], list[int]]:
    """Each scalar's column; the columns of the voices that a schema has, and which voices these are."""
    columns = {name: i for i, name in enumerate(scalars)}
    return (
        columns,
        [columns[name] for name in names if name in columns],
        [v for v, name in enumerate(names) if name in columns],
    )
