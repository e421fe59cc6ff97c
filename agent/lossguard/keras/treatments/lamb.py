"""LAMB's trust ratio in the form of the paper's table (arXiv 2302.09178, section 4.3.1), around any optimizer."""

from dataclasses import dataclass
from typing import Any

from keras import ops

from lossguard.keras import measure
from lossguard.keras.treatments.base import ByLayer, Proposal


@dataclass(frozen=True, slots=True)
class LAMB(ByLayer):
    """sigma = mu * ‖w‖ / ‖r‖; mu alone where either norm is 0. May exceed 1.

    Attributes:
        mu: what the learning rate is multiplied by, since the ratio normalises the update; the paper tries 1e-1 to 1e-3
            and takes 1e-3.
    """

    mu: float = 1e-3

    def __post_init__(self) -> None:
        ByLayer.__post_init__(self)
        self._keep_positive("mu")

    def factor(self, proposal: Proposal) -> Any:
        """sigma, from ‖r‖ = ‖u‖ / eta."""
        weight, update = measure.norm(proposal.weight), measure.norm(proposal.update)
        none = ops.logical_or(ops.equal(weight, 0.0), ops.equal(update, 0.0))
        rate = ops.cast(proposal.learning_rate, "float32")
        return self.mu * ops.where(none, 1.0, rate * weight / ops.where(none, 1.0, update))
