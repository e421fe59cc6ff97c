"""Gradient clipping and adaptive gradient clipping, in the form of the paper's table (arXiv 2302.09178, section 4.3.1).

Both scale the update and leave the optimizer's slots the original gradient. That is not what Keras's `clipnorm` does,
which clips what the slots see, and under `tf.distribute` each replica's share of it.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

from keras import ops

from lossguard.keras import measure
from lossguard.keras.treatments.base import ByLayer, Proposal, at_most_one

_UNIT_AXES: Final = {2: (0,), 3: (0,), 4: (0, 1, 2)}


@dataclass(frozen=True, slots=True)
class GradientClipping(ByLayer):
    """sigma = min(1, threshold / ‖g‖), per layer.

    Attributes:
        threshold: the paper's figure 4 uses 0.1.
    """

    threshold: float = 0.1

    def __post_init__(self) -> None:
        ByLayer.__post_init__(self)
        self._keep_positive("threshold")

    def factor(self, proposal: Proposal) -> Any:
        """sigma; 1 for a zero gradient."""
        return at_most_one(self.threshold, measure.norm(proposal.gradient))


@dataclass(frozen=True, slots=True)
class AdaptiveGradientClipping(ByLayer):
    """sigma = min(1, threshold * max(‖w‖, epsilon) / ‖g‖), per layer or per unit.

    Attributes:
        threshold: the paper's figure 4 uses 1e-3, NFNets 1e-2.
        epsilon: floor of the weight norm (NFNets: 1e-3). With 0, the paper's formula, a layer of zeros never moves.
        norms: "layer" as in the paper's formula, or "unit" as in NFNets' code: one norm per output unit of a kernel,
            over the first axis of two or three and the first three of four; any other shape, vectors too, has one.
    """

    threshold: float = 1e-3
    epsilon: float = 1e-3
    norms: Literal["layer", "unit"] = "layer"

    def __post_init__(self) -> None:
        ByLayer.__post_init__(self)
        self._keep_positive("threshold")
        self._keep_positive("epsilon", zero=True)
        if self.norms not in ("layer", "unit"):
            raise ValueError(f'norms: must be "layer" or "unit", got {self.norms!r}')

    def factor(self, proposal: Proposal) -> Any:
        """sigma; 1 for a zero gradient."""
        axes = _UNIT_AXES.get(len(proposal.weight.shape)) if self.norms == "unit" else None
        weight, gradient = measure.norm(proposal.weight, axes), measure.norm(proposal.gradient, axes)
        return at_most_one(self.threshold * ops.maximum(weight, self.epsilon), gradient)
