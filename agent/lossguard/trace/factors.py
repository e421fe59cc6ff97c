"""What each method's clipping factor would have been, at any threshold, from the stats that were measured. Pure.

The table of clipping factors of arXiv 2302.09178, section 4.3.1; its figures 4 and 7 are such factors of all methods
along one run. Norms and the learning rate are enough, whatever the run was treated with, since the update's norm is
measured before any factor. Clippy's comes from `clippy_ratio`, and so at the thresholds that this was measured with.
"""

from typing import Final, Literal

import numpy as np

from lossguard.wire.frame import Floats64, Frames
from lossguard.wire.stats import CLIPPY_RATIO, GRADIENT_NORM, UPDATE_NORM, WEIGHT_NORM

Method = Literal["clippy", "gc", "agc", "lamb"]
THRESHOLDS: Final[dict[Method, float]] = {"clippy": 1.0, "gc": 1e-1, "agc": 1e-3, "lamb": 1e-3}
"""The paper's: lambda of figure 4 for GC and AGC, mu for LAMB."""
LEARNING_RATE: Final = "learning_rate"


def sigma(method: Method, norm: Floats64, size: Floats64 | float = 1.0, threshold: float | None = None) -> Floats64:
    """The factor; NaN where something is NaN.

    Args:
        method: whose.
        norm: what is large when the factor is small: Clippy's ratio, ‖g‖ for GC and AGC, ‖u‖ for LAMB.
        size: what it is compared with: ‖w‖ for AGC, eta ‖w‖ for LAMB, 1 for the others.
        threshold: None for that of `THRESHOLDS`.
    """
    scale = THRESHOLDS[method] if threshold is None else threshold
    size = np.broadcast_to(np.asarray(size, "float64"), np.shape(norm))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        value = np.where(norm == 0, np.where(np.isnan(size), np.nan, 1.0), scale * size / norm)
        if method != "lamb":
            return np.minimum(1.0, value)
        # As LAMB's public implementations have it: the trust ratio is 1 where either norm is 0.
        none = ((size == 0) & ~np.isnan(norm)) | ((norm == 0) & ~np.isnan(size))
        return np.where(none, scale, value)


def would_be(frames: Frames, method: Method, threshold: float | None = None, *, epsilon: float = 0.0) -> Floats64:
    """[T, L] the factor that a method would have used for each layer at each step; NaN where it was not measured.

    Args:
        frames: of one attempt.
        method: `clippy`, `gc` (gradient clipping), `agc` (adaptive, by layer) or `lamb`.
        threshold: lambda, for LAMB mu; None for the paper's. Clippy has those of the run.
        epsilon: floor of ‖w‖ for AGC: 0 in the paper, 1e-3 in NFNets and in `AdaptiveGradientClipping`.

    Raises:
        ValueError: there is no such method, or the run lacks what it is made from; the message says what.

    Example:
        >>> from lossguard.wire.frame import Schema
        >>> schema = Schema(("loss",), ("dense/kernel",), ("gradient_norm", "weight_norm"))
        >>> frames = Frames.of(schema, [1, 2], [[0.7], [0.6]], np.array([[[0.4, 2.0]], [[8.0, 2.0]]], "float32"))
        >>> would_be(frames, "agc", 1.0).tolist()
        [[1.0], [0.25]]
    """
    if method not in THRESHOLDS:
        raise ValueError(f"method: must be one of {', '.join(THRESHOLDS)}, got {method!r}")
    if method == "clippy":
        if threshold is not None:
            raise ValueError("threshold: clippy's are those that clippy_ratio was measured with")
        return sigma(method, _stat(frames, CLIPPY_RATIO))
    if method == "gc":
        return sigma(method, _stat(frames, GRADIENT_NORM), 1.0, threshold)
    weight = _stat(frames, WEIGHT_NORM)
    if method == "agc":
        return sigma(method, _stat(frames, GRADIENT_NORM), np.maximum(weight, epsilon), threshold)
    return sigma(method, _stat(frames, UPDATE_NORM), weight * _rate(frames), threshold)


def _stat(frames: Frames, name: str) -> Floats64:
    if name not in frames.schema.stats:
        raise ValueError(f"the run has no stat {name}; there are: {', '.join(frames.schema.stats)}")
    place = frames.schema.stats.index(name)
    values = frames.stats[:, :, place].astype("float64")
    return np.where(frames.stats_present[:, place, None], values, np.nan)


def _rate(frames: Frames) -> Floats64:
    if LEARNING_RATE not in frames.schema.scalars:
        raise ValueError(f"the run has no scalar {LEARNING_RATE}, by which the update is divided")
    place = frames.schema.scalars.index(LEARNING_RATE)
    return np.where(frames.scalars_present[:, place], frames.scalars[:, place], np.nan)[:, None]
