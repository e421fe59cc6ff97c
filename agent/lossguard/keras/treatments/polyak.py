"""A cap on what one step may promise: no step sets out to lower the loss by more than there is.

To first order a step promises to lower the loss by the sum of p = <g, u> over the layers. The loss cannot fall by more
than its distance to its floor, so a larger promise is one that the linear model cannot keep. Then, and only then, the
layers that promise most are cut, all to the same promise c:

    sigma = min(1, c / p),  with c such that the sum of min(p, c) is loss - floor.

Of all ways to bring the sum down to that, this one leaves the smallest largest promise, and leaves whole whatever
promises less. For one layer it is the Polyak step with the user's learning rate as its upper bound: SPS_max (Loizou et
al., arXiv 2002.10542), here under any optimizer's preconditioner, as in MoMo (Schaipp et al., arXiv 2305.07583). On a
convex loss whose least value is the floor it never passes the minimum along u. It has no threshold, and does not depend
on the scale of loss, weights or gradients.

While every step promises less than the loss all factors are exactly 1: weights are those of the untreated training, bit
for bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from lossguard.keras.treatments.base import ByLayer, Proposal, at_most_one


@dataclass(frozen=True, slots=True)
class PolyakCap(ByLayer):
    """sigma = min(1, c / <g, u>), with c such that what all treated layers promise is at most loss - loss_floor.

    Attributes:
        loss_floor: a value that the total loss cannot fall below, in the loss's unit; 0 for sums of cross-entropies and
            squared errors. A higher one that is true caps more tightly. A step whose loss is not above the floor is
            left alone: there the floor is wrong, or nothing is left to learn.
    """

    loss_floor: float = 0.0

    def __post_init__(self) -> None:
        ByLayer.__post_init__(self)
        known = isinstance(self.loss_floor, (int, float)) and not isinstance(self.loss_floor, bool)
        if not known or not math.isfinite(self.loss_floor):
            raise ValueError(f"loss_floor: must be a finite number, got {self.loss_floor!r}")

    def step_factors(self, proposals: Sequence[Proposal], loss: Any) -> Sequence[Any]:
        """One sigma per layer; 1 for a layer that promises no descent."""
        promises = ops.stack([ops.sum(one.gradient * one.update) for one in proposals])
        promises = ops.maximum(promises, 0.0)
        room = ops.cast(loss, "float32") - self.loss_floor
        whole = ops.less_equal(ops.sum(promises), room) | ops.less_equal(room, 0.0)
        factors = ops.where(whole, 1.0, at_most_one(common_promise(promises, room), promises))
        return [factors[place] for place in range(len(proposals))]


def common_promise(promises: Any, room: Any) -> Any:
    """The c with which the sum of min(p, c) is `room`.

    Args:
        promises: p >= 0, [L]; their sum is above `room`.
        room: above 0, scalar.

    Returns:
        Scalar. With k layers whole and the others cut to c, the sum is at least that of min(p, c), and equal for the
        right k: so c is the largest of the levels that the k give.
    """
    rising = ops.sort(promises)
    count = int(promises.shape[0])
    below = ops.concatenate([ops.zeros([1]), ops.cumsum(rising)[:-1]])
    cut = ops.convert_to_tensor(np.arange(count, 0, -1, dtype=np.float32))
    return ops.max((room - below) / cut)
