"""A cap on what one step may promise: no step sets out to lower the loss by more than there is.

To first order a step promises to lower the loss by the sum of p = <g, u> over the layers. The loss cannot fall by more
than its distance to its floor, so a larger promise is one that the linear model cannot keep: the step is too long for
what it knows. Then, and only then,

    1. each layer's update is cut as Clippy cuts it (arXiv 2302.09178, with the paper's thresholds), and
    2. if what is left still promises more than loss - floor, all of it is cut by one factor, to exactly that.

The promise says when, Clippy by how much, and the second cut is the Polyak step with the user's learning rate as its
upper bound: SPS_max (Loizou et al., arXiv 2002.10542), here under any optimizer's preconditioner, as in MoMo (Schaipp
et al., arXiv 2305.07583). On a convex loss whose least value is the floor no step passes the minimum along u. When it
acts does not depend on the scale of loss, weights or gradients, and is no threshold that anybody chooses.

While every step promises less than the loss all factors are exactly 1: weights are those of the untreated training, bit
for bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras import ops

from lossguard.keras import measure
from lossguard.keras.treatments.base import ByLayer, Proposal, at_most_one, is_number


@dataclass(frozen=True, slots=True)
class PolyakCap(ByLayer):
    """Clippy, in those steps alone that promise more than loss - loss_floor, and never more than that in the end.

    Attributes:
        loss_floor: a value that the total loss cannot fall below, in the loss's unit; 0 for sums of cross-entropies and
            squared errors. A higher one that is true caps more tightly. A step whose loss is not above the floor is
            left alone: there the floor is wrong, or nothing is left to learn.
    """

    loss_floor: float = 0.0

    def __post_init__(self) -> None:
        ByLayer.__post_init__(self)
        if not is_number(self.loss_floor) or not math.isfinite(self.loss_floor):
            raise ValueError(f"loss_floor: must be a finite number, got {self.loss_floor!r}")
        object.__setattr__(self, "loss_floor", float(self.loss_floor))

    def step_factors(self, proposals: Sequence[Proposal], loss: Any) -> Sequence[Any]:
        """One sigma per layer; all 1 for a step that promises no more than it can keep."""
        promises = ops.stack([ops.sum(one.gradient * one.update) for one in proposals])
        promises = ops.maximum(promises, 0.0)
        room = ops.cast(loss, "float32") - self.loss_floor
        whole = ops.less_equal(ops.sum(promises), room) | ops.less_equal(room, 0.0)
        cut = ops.stack([_clippy(one) for one in proposals])
        # A layer that is stopped promises nothing, also where it had promised infinitely much.
        left = ops.sum(ops.where(ops.equal(cut, 0.0), 0.0, promises * cut))
        factors = ops.where(whole, 1.0, cut * at_most_one(room, left))
        return [factors[place] for place in range(len(proposals))]


def _clippy(proposal: Proposal) -> Any:
    ratio = measure.clippy_ratio(proposal.weight, proposal.update, measure.LAMBDA_REL, measure.LAMBDA_ABS)
    return ops.divide(1.0, ops.maximum(ratio, 1.0))
