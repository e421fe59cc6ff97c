"""From the proposed updates of one step to its row of the ring, on one replica.

Guarantees. Static shapes; one conditional per step, not one per layer. What was not measured is NaN in the row and
marked by the row's `full` column, so that it comes out as absent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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
    """

    index: int
    gradient: Any
    weight: Any
    write: str | None
    value: Any
    factor: Any = 1.0
    dense: Any = None
    seen: Proposal | None = None

    @property
    def treated(self) -> bool:
        """Whether a treatment has a say."""
        return not isinstance(self.factor, float)

    def proposal(self, learning_rate: Any) -> Proposal:
        """The proposal as dense float32 tensors, which the whole step may read."""
        if self.seen is None:
            self.seen = self.full(learning_rate)
        return self.seen

    def whole_gradient(self) -> Any:
        """The gradient as a dense float32 tensor, which the whole step may read."""
        if self.dense is None:
            self.dense = ops.cast(backend.dense(self.gradient, self.weight), "float32")
        return self.dense

    def full(self, learning_rate: Any) -> Proposal:
        """The proposal; if no treatment has asked for it, made where this is called, such as in a branch."""
        if self.seen is not None:
            return self.seen
        weight = self.weight
        value = weight - self.value if self.write == "assign" else self.value
        weight, value = (ops.cast(tensor, "float32") for tensor in (weight, backend.dense(value, weight)))
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
        cheap = [self._cheap(by_index.get(index)) for index in self.weights]
        norms = ops.stack([one[stats.GRADIENT_NORM] for one in cheap])
        if self.every == 1:
            state = cadence.State(ops.convert_to_tensor(1.0), ops.convert_to_tensor(0.0), ops.zeros_like(norms))
            table = self._full(by_index, cheap, norms, learning_rate)
        else:
            state = cadence.advance(cadence.State.of(before), norms, position, self.every, stretch)
            table = backend.branch(
                state.full > 0.0,
                lambda: self._full(by_index, cheap, norms, learning_rate),
                lambda: _table([{**dict.fromkeys(measure.REST, float("nan")), **one} for one in cheap]),
            )
        return ops.concatenate([state.columns(), scalars, ops.reshape(table, [-1])], 0)

    def _cheap(self, one: Pending | None) -> dict[str, Any]:
        if one is None:
            return {stats.GRADIENT_NORM: 0.0, stats.CLIPPING_FACTOR: 1.0}
        return measure.cheap(one.whole_gradient(), ops.min(ops.cast(one.factor, "float32")))

    def _full(self, by_index: dict[int, Pending], cheap: list[dict[str, Any]], norms: Any, learning_rate: Any) -> Any:
        rows, robust = [], []
        for place, (index, weight) in enumerate(self.weights.items()):
            one = by_index.get(index)
            # A layer that the loss does not reach has a gradient of zero.
            found = {**dict.fromkeys(measure.REST, 0.0), stats.GRADIENT_ZERO_FRACTION: 1.0, **cheap[place]}
            if one is not None:
                seen = one.full(learning_rate)
                size = float(_entries(one.weight))
                rest = measure.rest(seen.weight, seen.gradient, seen.update, size, self.lambda_rel, self.lambda_abs)
                found.update(rest)
                robust.append((seen, found))
            whole = backend.read(weight) if one is None else one.weight
            found[stats.WEIGHT_NORM] = measure.norm(ops.cast(whole, "float32"))
            rows.append(found)
        updates = _column(rows, stats.UPDATE_NORM)
        largest = ops.stack([ops.cast(found[stats.GRADIENT_MAX], "float32") for found in rows])
        doubtful = [ops.logical_not(ops.isfinite(value)) | (value < measure.SAFE_NORM) for value in (norms, updates)]
        needed = ops.any((doubtful[0] | doubtful[1]) & (largest > 0.0))

        def scaled() -> Any:
            for seen, found in robust:
                found[stats.GRADIENT_NORM] = measure.scaled_norm(seen.gradient)
                found[stats.UPDATE_NORM] = measure.scaled_norm(seen.update)
            return ops.stack([_column(rows, stats.GRADIENT_NORM), _column(rows, stats.UPDATE_NORM)])

        both = backend.branch(needed, scaled, lambda: ops.stack([norms, updates]))
        for index, found in enumerate(rows):
            found[stats.GRADIENT_NORM], found[stats.UPDATE_NORM] = both[0, index], both[1, index]
        return _table(rows)


def _column(rows: list[dict[str, Any]], name: str) -> Any:
    return ops.stack([ops.cast(row[name], "float32") for row in rows])


def _table(rows: list[dict[str, Any]]) -> Any:
    """[L, K] in the order of `STAT_NAMES`."""
    return ops.stack([ops.stack([ops.cast(row[name], "float32") for name in stats.STAT_NAMES]) for row in rows])


def _entries(tensor: Any) -> int:
    entries = 1
    for extent in tensor.shape:
        entries *= int(extent)
    return entries
