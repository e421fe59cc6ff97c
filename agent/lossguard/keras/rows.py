"""From the proposed updates of one step to its row of the ring, on one replica.

Guarantees. Static shapes; one conditional per step, not one per layer. What was not measured is NaN in the row and
marked by the row's `full` column, so that it comes out as absent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from keras import ops

from lossguard.keras import cadence, measure
from lossguard.keras.backends import backend
from lossguard.keras.treatments.base import Proposal
from lossguard.wire import stats


@dataclass(slots=True)
class Pending:
    """One layer between the optimizer's proposal and its write.

    Attributes:
        index: of the variable in the optimizer.
        gradient, weight: as they reached the update.
        write: by which method the optimizer wants to write `value`; None if it has already written, and `value` is what
            it subtracted.
        value: see `write`.
        factor: sigma; the number 1.0 if no treatment applies.
        dense: see `whole_gradient`.
        seen: see `proposal`.
        plain: whether XLA will surely not compile the step.
    """

    index: int
    gradient: Any
    weight: Any
    write: str | None
    value: Any
    factor: Any = 1.0
    dense: Any = None
    seen: Proposal | None = None
    plain: bool = False

    @property
    def treated(self) -> bool:
        """Whether a treatment has a say."""
        return not isinstance(self.factor, float)

    def least(self, one: Any) -> Any:
        """The smallest factor, float32; `one` itself if no treatment applies."""
        return ops.min(ops.cast(self.factor, "float32")) if self.treated else one

    def proposal(self, learning_rate: Any) -> Proposal:
        """The proposal as dense float32 tensors, which the whole step may read."""
        if self.seen is None:
            self.seen = self.full(learning_rate)
        return self.seen

    def left(self, learning_rate: Any) -> Proposal:
        """The proposal with what the treatments so far leave of its update."""
        seen = self.proposal(learning_rate)
        return replace(seen, update=seen.update * self.factor) if self.treated else seen

    def whole_gradient(self) -> Any:
        """The gradient as a dense float32 tensor, which the whole step may read."""
        if self.dense is None:
            self.dense = ops.cast(backend.dense(self.gradient, self.weight, self.plain), "float32")
        return self.dense

    def full(self, learning_rate: Any) -> Proposal:
        """The proposal; if no treatment has asked for it, made where this is called, such as in a branch."""
        if self.seen is not None:
            return self.seen
        weight = self.weight
        value = weight - self.value if self.write == "assign" else self.value
        weight, value = (ops.cast(tensor, "float32") for tensor in (weight, backend.dense(value, weight, self.plain)))
        return Proposal(weight, self.whole_gradient(), -value if self.write == "assign_add" else value, learning_rate)


@dataclass(frozen=True, slots=True)
class RowMaker:
    """Makes the rows of one optimizer.

    Attributes:
        weights: its watched variables by their index, in order.
        every: the cadence: every how many steps all stats are measured.
        lambda_rel, lambda_abs: thresholds of `clippy_ratio`.
    """

    weights: Mapping[int, Any]
    every: int
    lambda_rel: float
    lambda_abs: float

    def row(
        self, before: Any, pending: list[Pending], scalars: Any, position: Any, learning_rate: Any, stretch: Any
    ) -> Any:
        """[state | scalars | layers x stats] of this step.

        Args:
            before: the state's columns of the last step's row.
            pending: the layers that have a gradient.
            scalars: [S].
            position: updates before this one.
            learning_rate: eta.
            stretch: of the cadence.
        """
        by_index = {one.index: one for one in pending}
        pairs = [(weight, by_index.get(index)) for index, weight in self.weights.items()]
        # A branch is given values and reads no variable, which may lie on another device.
        layers = [(backend.read(weight) if layer is None else layer.weight, layer) for weight, layer in pairs]
        zero, one = ops.zeros((), "float32"), ops.ones((), "float32")
        norms = measure.norms([zero if layer is None else layer.whole_gradient() for _, layer in layers])
        factors = ops.stack([one if layer is None else layer.least(one) for _, layer in layers])
        cheap = {stats.GRADIENT_NORM: norms, stats.CLIPPING_FACTOR: factors}
        if self.every == 1:
            state = cadence.State(one, zero, ops.zeros_like(norms))
            table = _table(cheap | self._full(layers, norms, learning_rate))
        else:
            state = cadence.advance(cadence.State.of(before), norms, position, self.every, stretch)
            table = backend.branch(
                state.full > 0.0,
                lambda: _table(cheap | self._full(layers, norms, learning_rate)),
                lambda: _table(dict.fromkeys(stats.STAT_NAMES, ops.full_like(norms, float("nan"))) | cheap),
            )
        return ops.concatenate([state.columns(step_of(position)), scalars, ops.reshape(table, [-1])], 0)

    def _full(self, layers: list[tuple[Any, Pending | None]], norms: Any, learning_rate: Any) -> dict[str, Any]:
        """All columns but the factor's; a layer that the loss does not reach has a gradient of zero."""
        zero = ops.zeros((), "float32")
        seen = [None if layer is None else layer.full(learning_rate) for _, layer in layers]
        extremes = [
            {stats.GRADIENT_ZERO_FRACTION: zero + 1.0}
            if one is None
            else measure.extremes(one.weight, one.gradient, one.update, self.lambda_rel, self.lambda_abs)
            for one in seen
        ]
        columns = {name: ops.stack([one.get(name, zero) for one in extremes]) for name in measure.EXTREMES}
        columns[stats.WEIGHT_NORM] = measure.norms([ops.cast(weight, "float32") for weight, _ in layers])
        gradients = [zero if one is None else one.gradient for one in seen]
        updates = [zero if one is None else one.update for one in seen]
        plain = ops.stack([norms, measure.norms(updates)])
        lost = ops.logical_and(plain < measure.SAFE_NORM, columns[stats.GRADIENT_MAX] > 0.0)
        doubtful = ops.any(ops.logical_or(ops.logical_not(ops.isfinite(plain)), lost))

        def exact() -> Any:
            return measure.exact(gradients, updates, plain)

        found = backend.branch(doubtful, exact, lambda: ops.concatenate([plain, ops.zeros_like(plain[:1])], 0))
        for row, name in enumerate(measure.EXACT):
            columns[name] = found[row]
        return columns


def step_of(position: Any) -> Any:
    """The number of the step that has so many updates before it, float32: what tells its row from an older one's."""
    return ops.cast(position + 1, "float32")


def _table(columns: Mapping[str, Any]) -> Any:
    """[L, K] in the order of `STAT_NAMES`."""
    return ops.stack([columns[name] for name in stats.STAT_NAMES], 1)
