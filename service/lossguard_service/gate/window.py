"""A window: the scalars of some steps of the lineage side by side, whatever blocks of frames they came in.

Guarantees. Pure. What was not measured stays apart from what is NaN. Of two frames of one step the first counts, as in
the detectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lossguard.wire.frame import Bits, Floats64, Frames, Steps
from lossguard.wire.stats import GRADIENT_NORM, NONFINITE_COUNT, UPDATE_NORM, WEIGHT_NORM


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The scalars of the last steps of the lineage.

    Attributes:
        steps: int64 [T].
        values: float64 [T] for each scalar; where a scalar was not measured, its bit is off.
        present: bool [T] for each scalar.
        nonfinite_layers: layers whose last measured weights or gradients hold a NaN or an infinity.
        nonfinite_updates: layers whose last measured update, which the optimizer computes from its slots, does.
        updates_measured: True if any layer's update was measured.
    """

    steps: Steps
    values: Mapping[str, Floats64]
    present: Mapping[str, Bits]
    nonfinite_layers: tuple[str, ...] = ()
    nonfinite_updates: tuple[str, ...] = ()
    updates_measured: bool = False

    def between(self, first: int, last: int) -> "Window":
        """The part of the window in steps `first` to `last`."""
        return self.only((self.steps >= first) & (self.steps <= last))

    def only(self, rows: NDArray[np.bool_]) -> "Window":
        """The part of the window in the steps that a mask [T] is true of."""
        return replace(
            self,
            steps=self.steps[rows],
            values={name: values[rows] for name, values in self.values.items()},
            present={name: bits[rows] for name, bits in self.present.items()},
        )

    def measured(self, name: str) -> Floats64:
        """The values of a scalar where it was measured, in step order; empty if it never was."""
        values = self.values.get(name)
        return np.empty(0) if values is None else values[self.present[name]]

    def together(self, *names: str) -> list[Floats64]:
        """The values of several scalars at the steps at which all were measured and are finite."""
        if any(name not in self.values for name in names):
            return [np.empty(0) for _ in names]
        rows: NDArray[np.bool_] = np.ones(len(self.steps), np.bool_)
        for name in names:
            rows &= self.present[name] & np.isfinite(self.values[name])
        return [self.values[name][rows] for name in names]


def window_of(blocks: Sequence[Frames], first: int, last: int) -> Window:
    """The scalars of steps `first` to `last` out of blocks of frames, which may overlap and differ in their columns.

    The first block wins where two hold the same step, as it does in the detectors.
    """
    steps: list[Steps] = []
    parts: list[tuple[Frames, NDArray[np.bool_]]] = []
    broken: dict[str, bool] = {}
    updates: dict[str, bool] = {}
    for block in blocks:
        wanted = (block.steps >= first) & (block.steps <= last)
        if not wanted.any():
            continue
        broken.update(_broken_layers(block, wanted, (WEIGHT_NORM, GRADIENT_NORM, NONFINITE_COUNT)))
        updates.update(_broken_layers(block, wanted, (UPDATE_NORM,)))
        for before in steps:
            wanted = wanted & ~np.isin(block.steps, before)
        steps.append(block.steps[wanted])
        parts.append((block, wanted))
    found = np.concatenate([np.empty(0, np.int64), *steps])
    order = np.argsort(found, kind="stable")
    values: dict[str, Floats64] = {}
    present: dict[str, Bits] = {}
    for name in dict.fromkeys(name for block, _ in parts for name in block.schema.scalars):
        columns = [_column(block, wanted, name) for block, wanted in parts]
        bits = np.concatenate([is_present for _, is_present in columns])[order]
        if bits.any():
            present[name] = bits
            values[name] = np.where(bits, np.concatenate([numbers for numbers, _ in columns])[order], np.nan)
    return Window(
        steps=found[order],
        values=values,
        present=present,
        nonfinite_layers=tuple(layer for layer, is_broken in broken.items() if is_broken),
        nonfinite_updates=tuple(layer for layer, is_broken in updates.items() if is_broken),
        updates_measured=bool(updates),
    )


def _column(block: Frames, rows: NDArray[np.bool_], name: str) -> tuple[Floats64, Bits]:
    """A scalar of some rows of a block, and where it was measured."""
    if name not in block.schema.scalars:
        count = int(rows.sum())
        return np.full(count, np.nan), np.zeros(count, np.bool_)
    place = block.schema.scalars.index(name)
    return block.scalars[rows, place], block.scalars_present[rows, place]


def _broken_layers(block: Frames, wanted: NDArray[np.bool_], stats: Sequence[str]) -> dict[str, bool]:
    """Each layer of the block, and whether the last measured of these stats are not finite; empty if none was measured.

    Only the last ones: a gradient that overflowed once and was skipped by a loss scaler leaves sound weights, and
    whether it did is the detectors' question. NaN weights stay NaN, so they are in the last measurement too.
    """
    broken = np.zeros(len(block.schema.layers), np.bool_)
    measured = False
    for k, name in enumerate(block.schema.stats):
        if name not in stats or not len(rows := np.flatnonzero(wanted & block.stats_present[:, k])):
            continue
        measured, last = True, block.stats[int(rows[-1]), :, k]
        broken |= ~(last == 0) if name == NONFINITE_COUNT else ~np.isfinite(last)
    return dict(zip(block.schema.layers, broken.tolist(), strict=True)) if measured else {}
