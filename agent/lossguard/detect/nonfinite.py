"""NaN and Inf: judged where they stand, outside every window, the silent ones included.

A non-finite loss is loud. A non-finite gradient or weight can be silent: ReLU turns NaN into 0, the loss looks normal
and the AUC is 0.5 for ever (B3); only the layers' stats show it, in the same step. Absent values are no events.

An incident ends when everything has been finite for 50 frames, and, where layers are watched, the weights are finite
and still move as they did: accumulators that swallowed an Inf freeze the model with every number finite.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lossguard.detect.columns import Column
from lossguard.detect.voices import task_of
from lossguard.wire.frame import Bits, Floats32, Floats64, Frames
from lossguard.wire.stats import GRADIENT_NORM, NONFINITE_COUNT, UPDATE_NORM, WEIGHT_NORM

CLEAN_FRAMES = 50
"""Frames without a NaN after which the weights are taken to be sound: any NaN weight shows in the next step."""
MOVING_SHARE = 0.2
"""Each layer's update over weight must be a fifth of what it was: poisoned accumulators leave a fiftieth (B3)."""
MOTION_RATE = 0.05
"""The mean since the incident forgets after about 20 frames."""
WATCHED = (GRADIENT_NORM, WEIGHT_NORM, UPDATE_NORM)
"""The stats that must be finite."""


@dataclass(slots=True)
class Nonfinite:
    """The watch's memory.

    Attributes:
        number: of the open incident.
        clean: frames since the last NaN or Inf, while an incident is open.
        now: the mean log of each layer's update over weight since the incident; empty where no layer is watched [L].
    """

    number: int | None = None
    clean: int = 0
    now: Floats64 = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True, slots=True)
class Finding:
    """An incident that begins or ends here."""

    ended: bool
    subject: str = ""
    layer: str | None = None
    tasks: tuple[str, ...] = ()


def init() -> Nonfinite:
    """No memory yet."""
    return Nonfinite()


def watching(watch: Nonfinite) -> bool:
    """Whether an incident is open."""
    return watch.number is not None


def scan(rows: Floats64, here: Bits | None, columns: Mapping[str, Column]) -> Bits | None:
    """The frames of a block that hold a NaN or Inf, in a loss or in a layer [T]; None where none can.

    Args:
        rows: the losses [T, V].
        here: which of them were measured; None where all are finite [T, V].
        columns: the block's stats.
    """
    bad: Bits | None = None if here is None else np.asarray((here & ~np.isfinite(rows)).any(axis=1))
    for name, column in columns.items():
        if (name == NONFINITE_COUNT and column.low == 0 == column.high) or (name in WATCHED and column.is_finite):
            continue
        if name == NONFINITE_COUNT or name in WATCHED:
            found = np.asarray(_bad(name, column.values).any(axis=1))
            if column.here is not None:
                found &= column.here
            bad = found if bad is None else bad | found
    return bad


def _bad(name: str, values: Floats32) -> Bits:
    """Where a stat says that a layer holds NaN or Inf."""
    return values != 0 if name == NONFINITE_COUNT else ~np.isfinite(values)


def _first_layer(frames: Frames, t: int) -> str | None:
    """The first layer that holds NaN or Inf in a frame."""
    bad = np.zeros(len(frames.schema.layers), np.bool_)
    for k, name in enumerate(frames.schema.stats):
        if (name == NONFINITE_COUNT or name in WATCHED) and frames.stats_present[t, k]:
            bad |= _bad(name, frames.stats[t, :, k])
    return frames.schema.layers[int(np.argmax(bad))] if bad.any() else None


def judge(watch: Nonfinite, frames: Frames, t: int, broken: bool, usual: Floats64, motion: Floats64) -> Finding | None:
    """Take one frame.

    Args:
        watch: the memory, changed in place.
        frames: the block.
        t: the frame's place in it.
        broken: whether it holds a NaN or Inf, as `scan` says.
        usual: the log of each layer's update over weight by its baseline; empty where no layer is watched [L].
        motion: the same at this frame [L].
    """
    if not broken:
        if watch.number is None:
            return None
        watch.clean += 1
        if len(watch.now) != len(motion):
            watch.now = motion
        else:
            moved = np.where(np.isfinite(watch.now), watch.now + MOTION_RATE * (motion - watch.now), motion)
            watch.now = np.where(np.isfinite(motion), moved, watch.now)
        moves = len(watch.now) != len(usual) or not (watch.now < usual + math.log(MOVING_SHARE)).any()
        return Finding(ended=True) if watch.clean >= CLEAN_FRAMES and moves else None
    watch.clean, watch.now = 0, np.empty(0)
    if watch.number is not None:
        return None
    layer, names = _first_layer(frames, t), _bad_losses(frames, t)
    tasks = tuple(task for name in names if (task := task_of(name)))
    return Finding(ended=False, subject=", ".join(names) or "a layer", layer=layer, tasks=tasks)


def _bad_losses(frames: Frames, t: int) -> list[str]:
    return [
        name
        for i, name in enumerate(frames.schema.scalars)
        if (name == "loss" or name.startswith("loss/"))
        and frames.scalars_present[t, i]
        and not math.isfinite(frames.scalars[t, i])
    ]
