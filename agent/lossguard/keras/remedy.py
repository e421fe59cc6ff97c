"""What a rollback changes, built into the compiled step from the beginning and without effect until then.

Guarantees. Before `change` both factors are exactly 1, so updates are bit-identical to those without them. Changing
something assigns one variable: nothing is compiled again, in loops of one's own neither.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

from keras import ops

from lossguard.keras.backends import backend
from lossguard.keras.treatments.base import Proposal, Treatment
from lossguard.keras.treatments.clippy import Clippy

Change = Literal["clippy", "half_learning_rate"]
CHANGES: Final[tuple[Change, ...]] = ("clippy", "half_learning_rate")


class SleepingClippy:
    """Clippy that treats nothing until it is woken."""

    def __init__(self) -> None:
        self.clippy: Final = Clippy()
        self._awake = backend.variable(False, "lossguard_clippy_awake")
        self.awake = False

    def wake(self) -> None:
        """Treat from the next update on."""
        self._awake.assign(True)
        self.awake = True

    @property
    def variables(self) -> tuple[Any, ...]:
        """What the step reads."""
        return (self._awake,)

    def applies_to(self, layer: str) -> bool:
        """Whether the layer of this path is treated."""
        return self.clippy.applies_to(layer)

    def factor(self, proposal: Proposal) -> Any:
        """Clippy's factor, or 1."""
        return ops.where(backend.read(self._awake), self.clippy.factor(proposal), 1.0)

    def describe(self) -> dict[str, Any]:
        """Name and settings, JSON-like."""
        return {**self.clippy.describe(), "awake": self.awake}


class Rate:
    """A factor on all updates u = eta * r, which is one on the learning rate, whatever schedule sets that."""

    def __init__(self) -> None:
        self._rate = backend.variable(1.0, "lossguard_rate")
        self.rate = 1.0

    def halve(self) -> None:
        """Half as much as before, from the next update on."""
        self.rate /= 2
        self._rate.assign(self.rate)

    @property
    def variables(self) -> tuple[Any, ...]:
        """What the step reads."""
        return (self._rate,)

    def applies_to(self, layer: str) -> bool:
        """Every layer."""
        return True

    def factor(self, proposal: Proposal) -> Any:
        """The rate."""
        return backend.read(self._rate)

    def describe(self) -> dict[str, Any]:
        """Name and settings, JSON-like."""
        return {"name": "Rate", "rate": self.rate}


class Remedy:
    """Both changes, and which one comes next.

    Args:
        first: what to change at the first rollback; at every later one the rate is halved.
        treatments: the user's; with Clippy among them the rate is halved at once.
    """

    def __init__(self, first: Change, treatments: Sequence[Treatment]) -> None:
        self._rate = Rate()
        has_clippy = any(isinstance(one, Clippy) for one in treatments)
        self._clippy = SleepingClippy() if first == "clippy" and not has_clippy else None

    @property
    def treatments(self) -> tuple[Treatment, ...]:
        """To be applied behind the user's."""
        return (self._rate,) if self._clippy is None else (self._clippy, self._rate)

    def change(self) -> str:
        """Change the next thing; the answer says what, in words."""
        if self._clippy is not None and not self._clippy.awake:
            self._clippy.wake()
            return "Clippy is on"
        self._rate.halve()
        return f"the learning rate is multiplied by {self._rate.rate:g}"
