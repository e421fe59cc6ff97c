"""From the proposed updates of one step to its row of the ring, on one replica.

Guarantees. Static shapes; one conditional per step, not one per layer. What was not measured is NaN in the row and
marked by the row's `full` column, so that it comes out as absent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from lossguard.keras import cadence, measure
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
        seen: the proposal as dense float32 tensors.
    """

    index: int
    gradient: Any
    weight: Any
    write: str | None
    value: Any
    factor: Any = 1.0
    seen: Proposal | None = None

    @property
    def treated(self) -> bool:
        """Whether a treatment has a say."""
        return not isinstance(self.factor, float)

    def proposal(self, learning_rate: Any) -> Proposal:
        """The proposal as dense float32 tensors."""
        if self.seen is None:
            self.seen = self._dense(learning_rate)
        return self.seen

    def _dense(self, learning_rate: Any) -> Proposal:
        weight = self.weight
        value = weight - self.value if self.write == "assign" else self.value
        value, gradient = (_whole(tensor, weight) for tensor in (value, self.gradient))
        weight, gradient, value = (tf.cast(tensor, tf.float32) for tensor in (weight, gradient, value))
        return Proposal(weight, gradient, -value if self.write == "assign_add" else value, learning_rate)


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

    def row(self, before: Any, pending: list[Pending], scalars: Any, position: Any, learning_rate: Any) -> Any:
        """[state | scalars | layers x stats] of this step.

        Args:
            before: the state's columns of the last step's row.
            pending: the layers that have a gradient.
            scalars: [S].
            position: updates before this one.
            learning_rate: eta.
        """
        by_index = {one.index: one for one in pending}
        cheap = [self._cheap(by_index.get(index), learning_rate) for index in self.weights]
        norms = tf.stack([one[stats.GRADIENT_NORM] for one in cheap])
        if self.every == 1:
            state = cadence.State(tf.constant(1.0), tf.constant(0.0), tf.zeros_like(norms))
            table = self._full(by_index, cheap, norms, learning_rate)
        else:
            state = cadence.advance(cadence.State.of(before), norms, position, self.every)
            table = tf.cond(
                state.full > 0.0,
                lambda: self._full(by_index, cheap, norms, learning_rate),
                lambda: _table([{**dict.fromkeys(measure.REST, float("nan")), **one} for one in cheap]),
            )
        return tf.concat([state.columns(), scalars, tf.reshape(table, [-1])], 0)

    def _cheap(self, one: Pending | None, learning_rate: Any) -> dict[str, Any]:
        if one is None:
            return {stats.GRADIENT_NORM: 0.0, stats.UPDATE_NORM: 0.0, stats.CLIPPING_FACTOR: 1.0}
        proposal = one.proposal(learning_rate)
        factor = tf.reduce_min(tf.cast(one.factor, tf.float32))
        return measure.cheap(proposal.gradient, proposal.update, factor)

    def _full(self, by_index: dict[int, Pending], cheap: list[dict[str, Any]], norms: Any, learning_rate: Any) -> Any:
        rows, robust = [], []
        for place, (index, weight) in enumerate(self.weights.items()):
            one = by_index.get(index)
            # A layer that the loss does not reach has a gradient of zero.
            found = {**dict.fromkeys(measure.REST, 0.0), stats.GRADIENT_ZERO_FRACTION: 1.0, **cheap[place]}
            if one is not None:
                seen = one.proposal(learning_rate)
                size = float(_entries(one.weight))
                rest = measure.rest(seen.weight, seen.gradient, seen.update, size, self.lambda_rel, self.lambda_abs)
                found.update(rest)
                robust.append((seen, found))
            whole = tf.convert_to_tensor(weight.value) if one is None else one.weight
            found[stats.WEIGHT_NORM] = measure.norm(tf.cast(whole, tf.float32))
            rows.append(found)
        updates = tf.stack([one[stats.UPDATE_NORM] for one in cheap])
        largest = tf.stack([tf.cast(found[stats.GRADIENT_MAX], tf.float32) for found in rows])
        doubtful = [~tf.math.is_finite(value) | (value < measure.SAFE_NORM) for value in (norms, updates)]
        needed = tf.reduce_any((doubtful[0] | doubtful[1]) & (largest > 0.0))

        def scaled() -> Any:
            for seen, found in robust:
                found[stats.GRADIENT_NORM] = measure.scaled_norm(seen.gradient)
                found[stats.UPDATE_NORM] = measure.scaled_norm(seen.update)
            return tf.stack([_column(rows, stats.GRADIENT_NORM), _column(rows, stats.UPDATE_NORM)])

        both = tf.cond(needed, scaled, lambda: tf.stack([norms, updates]))
        for index, found in enumerate(rows):
            found[stats.GRADIENT_NORM], found[stats.UPDATE_NORM] = both[0, index], both[1, index]
        return _table(rows)


def _whole(tensor: Any, weight: Any) -> Any:
    """A sparse gradient or update as the dense one it stands for, rows that stand twice added up.

    Keras itself computes over the whole table at each step, so this is of the same order; merging rows by sorting cost
    a fifth of the step of a ranker with 28 columns. The table's static length, and not `dense_shape`, which would make
    XLA compile every step anew: Keras's division may append rows whose number depends on the data.
    """
    if isinstance(tensor, tf.IndexedSlices):
        return tf.math.unsorted_segment_sum(tensor.values, tensor.indices, weight.shape[0])
    return tensor


def _column(rows: list[dict[str, Any]], name: str) -> Any:
    return tf.stack([tf.cast(row[name], tf.float32) for row in rows])


def _table(rows: list[dict[str, Any]]) -> Any:
    """[L, K] in the order of `STAT_NAMES`."""
    return tf.stack([tf.stack([tf.cast(row[name], tf.float32) for name in stats.STAT_NAMES]) for row in rows])


def _entries(tensor: Any) -> int:
    entries = 1
    for extent in tensor.shape:
        entries *= int(extent)
    return entries
