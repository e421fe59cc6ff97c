"""The ring: one device variable [N, W] with a row per step, written inside the step and read between executions.

Row of step s: (s - 1) mod N. A row holds its step and the cadence's state, the scalars, then layers x stats. It is
written in place and without communication between replicas (decision 0202). Only new rows are copied out, by a gather
on the device.

Not every step writes its row. Where a data set's length is not known, Keras asks it for one batch too many at the end
of each epoch, and TensorFlow, without XLA, may have counted that update before it finds that there is no batch (Keras
3.15, `steps_per_execution=1`). Such a step is known by what stands in its row: another step, or 0. In its frame all is
absent, and the numbers of frames stay those of `optimizer.iterations`, by which exports are named.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lossguard.keras.backends import backend
from lossguard.keras.measure import CHEAP
from lossguard.wire.frame import Floats64, Frames, Schema
from lossguard.wire.stats import WEIGHT_NORM_AFTER

IDS: Final = ("batch_id", "batch_file")
HIGH, LOW, ID_SPLIT = "/high", "/low", 1 << 22
"""A number of `IDS` takes two columns, see `lossguard.keras.scalars.split_id`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a row means.

    Attributes:
        scalars: names.
        layers: paths.
        stats: names.
    """

    scalars: tuple[str, ...]
    layers: tuple[str, ...]
    stats: tuple[str, ...]

    @property
    def state(self) -> int:
        """Columns of the step and of the cadence's state, which begin a row."""
        return 3 + len(self.layers)

    @property
    def width(self) -> int:
        """Floats per row."""
        return self.state + len(self.scalars) + len(self.layers) * len(self.stats)


class Ring:
    """The device side of one optimizer's rows. Create it inside the strategy's scope, outside of any graph.

    Args:
        layout: what a row means.
        rows: how many there are.
        variable: the device variable, if it was made before, perhaps wider than a row; else it is made.
    """

    def __init__(self, layout: Layout, rows: int, variable: Any = None) -> None:
        self.layout = layout
        self.rows = rows if variable is None else int(variable.shape[0])
        self.variable = backend.ring(rows, layout.width) if variable is None else variable

    def write(self, copy: Any, position: Any, row: Any) -> None:
        """Write the row of the update that has `position` before it; `copy` is this replica's ring."""
        backend.write_row(copy, position, row)

    def state(self, copy: Any, position: Any) -> Any:
        """The state's columns of a row."""
        return backend.read_row(copy, position, self.layout.state)

    def snapshot(self, first: int, last: int) -> Any:
        """The rows of steps first..last as a tensor on the device, [last - first + 1, W]."""
        steps = np.arange(first, last + 1)
        return backend.take_rows(self.variable, ((steps - 1) % self.rows).astype(np.int32))


def numbered(names: Iterable[str]) -> tuple[str, ...]:
    """The names; one that stands again gets its number.

    >>> numbered(["dense/kernel", "dense/bias", "dense/kernel"])
    ('dense/kernel', 'dense/bias', 'dense/kernel#2')
    """
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = count = seen.get(name, 0) + 1
        found.append(name if count == 1 else f"{name}#{count}")
    return tuple(found)


Floats32 = np.ndarray[Any, np.dtype[np.float32]]


def frames_of(layout: Layout, first: int, rows: Floats32, times: Floats64, after: Floats32 | None = None) -> Frames:
    """Frames of consecutive steps from a fetched snapshot.

    Args:
        layout: what the rows mean.
        first: the step of the first row.
        rows: float32 [T, W].
        times: float64 [T], Unix seconds at which they ended.
        after: float32 [L], the weights' norms after the last of these steps; None if they were not taken.
    """
    count, start = len(rows), layout.state
    split = start + len(layout.scalars)
    written = (rows[:, 0] == np.arange(first, first + count).astype(np.float32))[:, None]
    rows = np.where(written, rows, np.float32(np.nan))
    scalars = rows[:, start:split].astype(np.float64)
    present = np.broadcast_to(written, scalars.shape).copy()
    for column, name in enumerate(layout.scalars):
        kind, _, task = name.partition("/")
        mean = f"label_mean/{task}"
        if kind == "batch_auc" and mean in layout.scalars:
            rate = scalars[:, layout.scalars.index(mean)]
            # With one class only there is no pair to rank: not measured, which is not the same as NaN.
            present[:, column] &= (rate != 0) & (rate != 1)
            scalars[~present[:, column], column] = np.nan
        elif kind in ("auc", "window_rmse"):
            # NaN is here what a window without a pair or an example gives, and nothing else.
            present[:, column] &= ~np.isnan(scalars[:, column])
    names = layout.scalars
    for whole in IDS:
        if whole + HIGH in names:
            high, low = names.index(whole + HIGH), names.index(whole + LOW)
            scalars[:, high] = scalars[:, high] * ID_SPLIT + scalars[:, low]
            scalars, present = np.delete(scalars, low, 1), np.delete(present, low, 1)
            names = tuple(whole if name == whole + HIGH else name for name in names if name != whole + LOW)
    # Always with a column for the norms after: where columns come and go, chunks and stored segments end.
    within = len(layout.stats)
    stats = np.full((count, len(layout.layers), within + 1), np.nan, np.float32)
    stats[:, :, :within] = rows[:, split : layout.width].reshape(count, len(layout.layers), within)
    measured = np.zeros((count, within + 1), np.bool_)
    measured[:, :within] = written & ((rows[:, 1:2] > 0) | np.isin(layout.stats, CHEAP))
    if after is not None:
        stats[-1, :, within], measured[-1, within] = after, True
    return Frames(
        schema=Schema(names, layout.layers, (*layout.stats, WEIGHT_NORM_AFTER)),
        steps=np.arange(first, first + count, dtype=np.int64),
        times=times,
        scalars=scalars,
        stats=stats,
        scalars_present=present,
        stats_present=measured,
    )
