"""The stats of one layer at one step, as tensors, from w, g and u.

Pure functions of backend tensors: no state, no host call, static shapes, only reductions and elementwise operations.
NaN and Inf in the inputs show in the results. The names are those of `lossguard.wire.stats`.
"""

from typing import Any, Final

from keras import ops

from lossguard.wire import stats

LAMBDA_REL: Final = 0.5
LAMBDA_ABS: Final = 1e-2


def clippy_ratio(weight: Any, update: Any, lambda_rel: float, lambda_abs: float) -> Any:
    """max |u| / (lambda_rel |w| + lambda_abs), with 0/0 = 0; Clippy's sigma is min(1, 1/ratio)."""
    size = ops.abs(update)
    allowed = lambda_rel * ops.abs(weight) + lambda_abs
    if lambda_abs == 0:
        return ops.max(ops.where(ops.equal(size, 0.0), 0.0, size / allowed))
    return ops.max(size / allowed)


def layer_stats(
    weight: Any,
    gradient: Any,
    update: Any,
    factor: Any,
    size: float,
    *,
    lambda_rel: float = LAMBDA_REL,
    lambda_abs: float = LAMBDA_ABS,
) -> dict[str, Any]:
    """All stats of one layer but `weight_norm`, which a sparse layer takes over its whole table.

    Args:
        weight, gradient, update: float32 tensors of one shape; of a sparse layer the touched rows, each once.
        factor: sigma as applied, a scalar.
        size: entries of the whole layer.
        lambda_rel, lambda_abs: thresholds of `clippy_ratio`.
    """
    magnitude = ops.abs(weight)
    moved = ops.abs(update)
    relative = ops.where(ops.equal(magnitude, 0.0), 0.0, moved / ops.where(ops.equal(magnitude, 0.0), 1.0, magnitude))
    nonzero = ops.sum(ops.cast(ops.not_equal(gradient, 0.0), "float32"))
    return {
        stats.GRADIENT_NORM: norm(gradient),
        stats.UPDATE_NORM: norm(update),
        stats.RELATIVE_UPDATE_MAX: ops.max(relative),
        stats.CLIPPY_RATIO: clippy_ratio(weight, update, lambda_rel, lambda_abs),
        stats.CLIPPING_FACTOR: factor,
        stats.GRADIENT_ZERO_FRACTION: 1.0 - nonzero / size,
        stats.NONFINITE_COUNT: ops.sum(ops.cast(ops.logical_not(ops.isfinite(gradient)), "float32")),
        stats.GRADIENT_MAX: ops.max(ops.abs(gradient)),
    }


def norm(values: Any) -> Any:
    """The Euclidean norm over all entries."""
    return ops.sqrt(ops.sum(ops.square(values)))
