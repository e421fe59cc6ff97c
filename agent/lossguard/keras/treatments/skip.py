"""Skipping what is not finite: no factor can, since 0 * Inf is NaN and the slots would keep the damage."""

from dataclasses import dataclass
from typing import Any

from lossguard.keras.treatments.base import Proposal


@dataclass(frozen=True, slots=True)
class SkipNonFinite:
    """Leaves out a step in which any gradient of any layer has a NaN or Inf: weights and slots stay as they were.

    The step counts (`iterations` goes on, schedules too) and its frame shows the gradients as they came, with an update
    of 0. Keras's own weight decay, which comes before, is applied.
    """

    skips_nonfinite = True

    def applies_to(self, layer: str) -> bool:
        """Every layer."""
        return True

    def factor(self, proposal: Proposal) -> Any:
        """1: what is left in is left alone."""
        return 1.0

    def describe(self) -> dict[str, Any]:
        """Name and settings, JSON-like."""
        return {"name": "SkipNonFinite"}
