"""The stats of one layer at one step, as tensors, from w, g and u.

Pure functions of tensors: no state, no host call, static shapes, only reductions and elementwise operations.
NaN and Inf in the inputs show in the results. The names are those of `lossguard.wire.stats`.

The names in `CHEAP` are measured at every step, the others on the cadence (`lossguard.keras.cadence`).
"""

import math
from collections.abc import Sequence
from typing import Any, Final

from keras import ops

from lossguard.keras.backends import backend
from lossguard.wire import stats

LAMBDA_REL: Final = 0.5
LAMBDA_ABS: Final = 1e-2

CHEAP: Final = (stats.GRADIENT_NORM, stats.CLIPPING_FACTOR)
EXTREMES: Final = (stats.RELATIVE_UPDATE_MAX, stats.CLIPPY_RATIO, stats.GRADIENT_ZERO_FRACTION, stats.GRADIENT_MAX)
EXACT: Final = (stats.GRADIENT_NORM, stats.UPDATE_NORM, stats.NONFINITE_COUNT)
SAFE_NORM: Final = 1e-16
"""A norm below this may have lost squares to underflow."""


def norms(tensors: Sequence[Any]) -> Any:
    """[L] the Euclidean norm of each."""
    return backend.norms(tensors)


def norm(values: Any, axes: tuple[int, ...] | None = None) -> Any:
    """The Euclidean norm, over all entries or along axes that are kept."""
    if axes is None:
        return backend.norms([values])[0]
    return ops.sqrt(ops.sum(ops.square(values), axis=axes, keepdims=True))


def scaled_norms(tensors: Sequence[Any], plain: Any) -> Any:
    """[L] the Euclidean norms where squares leave the range of float32; slower, for the rare step that needs it.

    With fixed scales: XLA merges a division by max |values| into the update's own and rounds the update differently.

    Args:
        tensors: whose.
        plain: [L] as `norms` has them.
    """
    up, down = ops.convert_to_tensor(1e24, "float32"), ops.convert_to_tensor(1e-24, "float32")
    small, large = norms([one * up for one in tensors]) * 1e-24, norms([one * down for one in tensors]) * 1e24
    return ops.where(ops.less(plain, SAFE_NORM), small, ops.where(ops.isfinite(plain), plain, large))


def clippy_ratio(weight: Any, update: Any, lambda_rel: float, lambda_abs: float) -> Any:
    """max |u| / (lambda_rel |w| + lambda_abs), with 0/0 = 0; Clippy's sigma is min(1, 1/ratio)."""
    size = ops.abs(update)
    allowed = lambda_rel * ops.abs(weight) + lambda_abs
    if lambda_abs == 0:
        return ops.max(ops.where(ops.equal(size, 0.0), 0.0, size / allowed))
    return ops.max(size / allowed)


def exact(gradients: Sequence[Any], updates: Sequence[Any], plain: Any) -> Any:
    """[3, L], in the order of `EXACT`: what the rows say where a norm is in doubt.

    A finite norm has nothing below it that is not finite, so only here such entries are counted. What can be computed
    for all layers at once is: a model of many layers is traced for longer than anything else of ours takes.

    Args:
        gradients, updates: of L layers, float32.
        plain: [2, L] their norms as `norms` has them.
    """
    scaled = ops.reshape(scaled_norms([*gradients, *updates], ops.reshape(plain, [-1])), plain.shape)
    nonfinite = [ops.sum(ops.cast(ops.logical_not(ops.isfinite(one)), "float32")) for one in gradients]
    return ops.concatenate([scaled, ops.stack(nonfinite)[None]], 0)


def extremes(weight: Any, gradient: Any, update: Any, lambda_rel: float, lambda_abs: float) -> dict[str, Any]:
    """The stats of a layer that take a look at every entry, by the names of `EXTREMES`.

    Args:
        weight, gradient, update: float32 tensors of one shape.
        lambda_rel, lambda_abs: thresholds of `clippy_ratio`.
    """
    size = float(math.prod(weight.shape))
    nonzero = ops.sum(ops.cast(ops.not_equal(gradient, 0.0), "float32"))
    return {
        # Without a `where` that spreads a number: on CPU that took longer than all the rest of these.
        stats.RELATIVE_UPDATE_MAX: ops.max(ops.abs(ops.divide_no_nan(update, weight))),
        stats.CLIPPY_RATIO: clippy_ratio(weight, update, lambda_rel, lambda_abs),
        stats.GRADIENT_ZERO_FRACTION: (size - nonzero) / size,
        stats.GRADIENT_MAX: ops.max(ops.abs(gradient)),
    }
