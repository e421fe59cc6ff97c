"""Clippy (arXiv 2302.09178, Algorithm 1), around any optimizer.

One factor per layer, sigma = min(1, min over coordinates of (lambda_rel |w| + lambda_abs) / |u|), so that no coordinate
of the update exceeds its own weight's allowance. The thresholds default to the paper's (0.5, 1e-2); those of the
published reference implementation (0.1, 1e-7) freeze layers whose weights start at zero.

Clippy is no protection from non-finite gradients: an infinite update gives sigma = 0 and 0 * Inf = NaN. Combine it with
`SkipNonFinite`.
"""

from dataclasses import dataclass
from typing import Any

from keras import ops

from lossguard.keras import measure
from lossguard.keras.treatments.base import ByLayer, Proposal


@dataclass(frozen=True, slots=True)
class Clippy(ByLayer):
    """Clippy.

    Attributes:
        lambda_rel: allowance relative to |w|.
        lambda_abs: allowance on top, the same for every weight; what lets zero weights move.
    """

    lambda_rel: float = measure.LAMBDA_REL
    lambda_abs: float = measure.LAMBDA_ABS

    def __post_init__(self) -> None:
        # No zero-argument super(): a dataclass with slots is a second class, which it would not find.
        ByLayer.__post_init__(self)
        self._keep_positive("lambda_rel", zero=True)
        self._keep_positive("lambda_abs", zero=True)
        if self.lambda_rel == 0 and self.lambda_abs == 0:
            raise ValueError("lambda_rel, lambda_abs: at least one must be above 0, or no weight may ever move")

    def factor(self, proposal: Proposal) -> Any:
        """sigma of equation 7; 1 where nothing moves."""
        ratio = measure.clippy_ratio(proposal.weight, proposal.update, self.lambda_rel, self.lambda_abs)
        return ops.divide(1.0, ops.maximum(ratio, 1.0))
