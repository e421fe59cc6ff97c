"""What every treatment is: a factor sigma for the update of one layer, from that layer or from the whole step.

The update that reaches the weight is sigma * u, with u = eta * r as the inner optimizer proposes it from the original
gradient, which its slots accumulate unclipped (arXiv 2302.09178, section 4.3.1, table of clipping factors). A factor
of exactly 1 leaves the update bit-identical.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, Protocol, TypeAlias, runtime_checkable

from keras import ops

EMBEDDINGS = ("embedding",)
"""The paper treats no embedding tables (section 5.1.3); this pattern finds Keras's."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a treatment sees of one layer at one step; float32 tensors of the layer's shape.

    Attributes:
        weight: w, before the update.
        gradient: g, as it reaches the update.
        update: u = eta * r; the inner optimizer would subtract it.
        learning_rate: eta, a scalar.
    """

    weight: Any
    gradient: Any
    update: Any
    learning_rate: Any


class LayerTreatment(Protocol):
    """One way to scale updates, layer by layer.

    One with a true attribute `skips_nonfinite` also has steps with non-finite gradients left out (`SkipNonFinite`).
    """

    def applies_to(self, layer: str) -> bool:
        """Whether the layer of this path is treated; others get a factor of 1."""

    def factor(self, proposal: Proposal) -> Any:
        """sigma, a scalar tensor, or one that broadcasts against the update."""

    def describe(self) -> dict[str, Any]:
        """Name and settings, JSON-like, for the run's config."""


@runtime_checkable
class StepTreatment(Protocol):
    """One way to scale updates that looks at the step as a whole, and at its loss."""

    def applies_to(self, layer: str) -> bool:
        """Whether the layer of this path is treated; others get a factor of 1 and are not looked at."""

    def step_factors(self, proposals: Sequence[Proposal], loss: Any) -> Sequence[Any]:
        """sigma of each layer.

        Args:
            proposals: of the treated layers, one or more; `update` is what the treatments before this one left.
            loss: the total that is minimised, a scalar.
        """

    def describe(self) -> dict[str, Any]:
        """Name and settings, JSON-like, for the run's config."""


Treatment: TypeAlias = LayerTreatment | StepTreatment


@dataclass(frozen=True, slots=True, kw_only=True)
class ByLayer:
    """The part all treatments share: which layers they leave alone.

    Attributes:
        exclude: regular expressions; a layer whose path matches any of them (`re.search`) is not treated.
    """

    exclude: Sequence[str] = EMBEDDINGS

    def __post_init__(self) -> None:
        object.__setattr__(self, "exclude", checked_patterns("exclude", self.exclude))

    def _keep_positive(self, name: str, *, zero: bool = False) -> None:
        """Keep a setting as a float, see `positive`: one of NumPy's would give tensors its own precision."""
        object.__setattr__(self, name, positive(name, getattr(self, name), zero=zero))

    def applies_to(self, layer: str) -> bool:
        """Whether the layer of this path is treated."""
        return not any(re.search(pattern, layer) for pattern in self.exclude)

    def describe(self) -> dict[str, Any]:
        """Name and settings, JSON-like."""
        return {"name": type(self).__name__, **asdict(self), "exclude": list(self.exclude)}


def checked_patterns(name: str, patterns: Sequence[str]) -> tuple[str, ...]:
    """The patterns as a tuple.

    Raises:
        ValueError: they are not regular expressions; the message names the argument.
    """
    if isinstance(patterns, str):
        raise ValueError(f"{name}: must be a sequence of patterns, got the one string {patterns!r}")
    if not isinstance(patterns, Iterable):
        raise ValueError(f"{name}: must be a sequence of patterns, got {patterns!r}; () is none")
    checked = tuple(patterns)
    for pattern in checked:
        if not isinstance(pattern, str):
            raise ValueError(f"{name}: {pattern!r} is not a regular expression: it must be text")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{name}: {pattern!r} is not a regular expression: {error}") from None
    return checked


def is_number(value: Any) -> bool:
    """Whether it is a real number, one of NumPy's too; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def positive(name: str, value: Any, *, zero: bool = False) -> float:
    """A finite positive number (or zero, if allowed), NumPy's too, as a float.

    Raises:
        ValueError: it is none; the message names the argument.
    """
    if not (is_number(value) and 0 <= value < float("inf")) or (value == 0 and not zero):
        raise ValueError(f"{name}: must be a finite number {'of at least' if zero else 'above'} 0, got {value!r}")
    return float(value)


def at_most_one(allowed: Any, size: Any) -> Any:
    """min(1, allowed / size), 1 for size 0; exactly 1 up to size = allowed; NaN for NaN."""
    within = ops.less_equal(size, allowed)
    return ops.where(within, 1.0, allowed / ops.where(within, 1.0, size))
