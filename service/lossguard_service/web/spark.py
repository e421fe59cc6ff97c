"""Sparklines: a loss curve as the points of an SVG polyline, pure.

The scale is logarithmic where the loss spans more than a factor of 30, or a divergence would flatten all else into
one line. A bucket with NaN or Inf in it is a mark, never a gap that could be overlooked.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from lossguard_service.store.buckets import Buckets

WIDTH: Final = 120
HEIGHT: Final = 28
_PAD: Final = 3


@dataclass(frozen=True, slots=True)
class Spark:
    """What the template draws.

    Attributes:
        line: `points` of a polyline; empty if nothing finite is there.
        marks: x of every bucket with a non-finite value.
        end: the last point; None if there is none.
        text: what a screen reader says.
        mark: x of a step worth a line; None if there is none, or it is not among the steps.
    """

    line: str
    marks: tuple[float, ...]
    end: tuple[float, float] | None
    text: str
    mark: float | None = None


EMPTY: Final = Spark("", (), None, "no loss yet")


def spark(loss: Buckets, name: str = "loss", mark: int | None = None) -> Spark:
    """The sparkline of a loss, or of what `name` says, with a line at the step `mark`."""
    here = loss.count[:, 0] > 0 if len(loss) else np.zeros(0, np.bool_)
    if not here.any():
        return EMPTY if name == "loss" else Spark("", (), None, f"no {name} yet")
    steps, value = loss.last[here].astype(np.float64), loss.maximum[here, 0]
    low, high = float(steps[0]), float(steps[-1])
    scale = (WIDTH - 2 * _PAD) / max(1.0, high - low)
    x = _PAD + (steps - low) * scale
    line_at = None if mark is None or not low <= mark <= high else round(_PAD + (mark - low) * scale, 1)
    marks = tuple(round(float(at), 1) for at in x[loss.nonfinite[here, 0] > 0])
    finite = np.isfinite(value)
    if not finite.any():
        return Spark("", marks, None, f"{name}: only NaN or Inf", line_at)
    bottom, top = float(value[finite].min()), float(value[finite].max())
    text = f"{name} from step {int(low):,} to {int(high):,}, between {bottom:.3g} and {top:.3g}"
    if marks:
        text += ", with NaN or Inf"
    scaled = value
    if bottom > 0 and top / bottom > 30:
        scaled = np.log10(np.where(finite, value, bottom))
        bottom, top = math.log10(bottom), math.log10(top)
    reach = top - bottom if top > bottom else 1.0
    y = HEIGHT - _PAD - (scaled - bottom) / reach * (HEIGHT - 2 * _PAD)
    points = [(round(float(a), 1), round(float(b), 1)) for a, b, ok in zip(x, y, finite, strict=True) if ok]
    return Spark(" ".join(f"{a},{b}" for a, b in points), marks, points[-1], text, line_at)
