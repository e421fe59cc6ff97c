"""The stats of one layer at one step, as tensors, from w, g and u.

Pure functions of tensors: no state, no host call, static shapes, only reductions and elementwise operations.
NaN and Inf in the inputs show in the results. The names are those of `lossguard.wire.stats`.

Two sets: `cheap` is measured at every step, `rest` on the cadence (`lossguard.keras.cadence`).
"""

from typing import Any, Final

from keras import ops

from lossguard.keras.backends import backend
from lossguard.wire import stats

LAMBDA_REL: Final = 0.5
LAMBDA_ABS: Final = 1e-2

CHEAP: Final = (stats.GRADIENT_NORM, stats.CLIPPING_FACTOR)
REST: Final = tuple(name for name in stats.STAT_NAMES if name not in CHEAP)

SAFE_NORM: Final = 1e-16
"""A norm below this may have lost squares to underflow."""


def norm(values: Any, axes: tuple[int, ...] | None = None) -> Any:
    """The Euclidean norm, over all entries or along axes that are kept."""
    if axes is None:
        return backend.norm(values)
    return ops.sqrt(ops.sum(ops.square(values), axis=axes, keepdims=True))


def scaled_norm(values: Any) -> Any:
    """The Euclidean norm where squares leave the range of float32; slower, for the rare step that needs it.

    With fixed scales: XLA merges a division by max |values| into the update's own and rounds the update differently.
    """
    plain = norm(values)
    small, large = norm(values * 1e24) * 1e-24, norm(values * 1e-24) * 1e24
    return ops.where(ops.less(plain, SAFE_NORM), small, ops.where(ops.isfinite(plain), plain, large))


def clippy_ratio(weight: Any, update: Any, lambda_rel: float, lambda_abs: float) -> Any:
    """max |u| / (lambda_rel |w| + lambda_abs), with 0/0 = 0; Clippy's sigma is min(1, 1/ratio)."""
    size = ops.abs(update)
    allowed = lambda_rel * ops.abs(weight) + lambda_abs
    if lambda_abs == 0:
        return ops.max(ops.where(ops.equal(size, 0.0), 0.0, size / allowed))
    return ops.max(size / allowed)


def cheap(gradient: Any, factor: Any) -> dict[str, Any]:
    """What every step has of a layer; its gradient norm is finite only if the gradient is."""
    return {stats.GRADIENT_NORM: norm(gradient), stats.CLIPPING_FACTOR: factor}


def rest(weight: Any, gradient: Any, update: Any, size: float, lambda_rel: float, lambda_abs: float) -> dict[str, Any]:
    """The other stats of a layer but `weight_norm`.

    Args:
        weight, gradient, update: float32 tensors of one shape.
        size: entries of the whole layer.
        lambda_rel, lambda_abs: thresholds of `clippy_ratio`.
    """
    magnitude, moved = ops.abs(weight), ops.abs(update)
    zero = ops.equal(magnitude, 0.0)
    nonzero = ops.sum(ops.cast(ops.not_equal(gradient, 0.0), "float32"))
    return {
        stats.UPDATE_NORM: norm(update),
        stats.RELATIVE_UPDATE_MAX: ops.max(ops.where(zero, 0.0, moved / ops.where(zero, 1.0, magnitude))),
        stats.CLIPPY_RATIO: clippy_ratio(weight, update, lambda_rel, lambda_abs),
        stats.GRADIENT_ZERO_FRACTION: (size - nonzero) / size,
        stats.NONFINITE_COUNT: ops.sum(ops.cast(ops.logical_not(ops.isfinite(gradient)), "float32")),
        stats.GRADIENT_MAX: ops.max(ops.abs(gradient)),
    }
