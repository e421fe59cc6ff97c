"""From the gradients and the proposed updates of one step to its row of the ring, on one replica.

Guarantees. Static shapes. Whether a step is measured in full is decided once, from the norms of all gradients, before
any layer is updated; what follows may come group by group of layers, so that no more than one group's updates need be
there at a time (decision 0218). What was not measured is NaN in the row and marked by the row's `full` column, so that
it comes out as absent.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from keras import ops

from lossguard.keras import cadence, measure
from lossguard.keras.backends import backend
from lossguard.keras.treatments.base import Proposal
from lossguard.wire import stats

_MEASURED: Final = (
    *(name for name in stats.STAT_NAMES if name not in measure.CHEAP),
    stats.GRADIENT_NORM,
)
_COLUMNS: Final = (*_MEASURED, stats.CLIPPING_FACTOR)
_ORDER: Final = np.array([_COLUMNS.index(name) for name in stats.STAT_NAMES], np.int32)


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
        seen: see `proposal`.
        plain: whether XLA will surely not compile the step.
    """

    index: int
    gradient: Any
    weight: Any
    write: str | None
    value: Any
    factor: Any = 1.0
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

    def full(self, learning_rate: Any) -> Proposal:
        """The proposal; if no treatment has asked for it, made where this is called, such as in a branch."""
        if self.seen is not None:
            return self.seen
        weight = self.weight
        value = weight - self.value if self.write == "assign" else self.value
        gradient, value = (dense(tensor, weight, self.plain) for tensor in (self.gradient, value))
        update = -value if self.write == "assign_add" else value
        return Proposal(ops.cast(weight, "float32"), gradient, update, learning_rate)


def dense(tensor: Any, weight: Any, plain: bool) -> Any:
    """A gradient or update as a dense float32 tensor."""
    return ops.cast(backend.dense(tensor, weight, plain), "float32")


class Row:
    """The row of one step, in the making: `decide`, then `measure` and `note` every layer, then `whole`.

    Args:
        weights: the watched variables of the optimizer by their index, in order.
        every: the cadence: every how many steps all stats are measured.
        lambda_rel, lambda_abs: thresholds of `clippy_ratio`.
        learning_rate: eta.

    Attributes:
        always: whether every step is measured in full, so that there is nothing to decide.
        full: whether this step is measured in full, on the device; None if it is without a branch.
        lost: whether a part of it could not be made, so that it must not be written.
    """

    def __init__(
        self, weights: Mapping[int, Any], every: int, lambda_rel: float, lambda_abs: float, learning_rate: Any
    ) -> None:
        self.always = every == 1
        self.lost = False
        self.full: Any = None
        self._weights = weights
        self._every = every
        self._limits = lambda_rel, lambda_abs
        self._learning_rate = learning_rate
        self._places = {index: place for place, index in enumerate(weights)}
        self._state: cadence.State | None = None
        self._norms: Any = None
        self._order: list[int] = []
        self._tables: list[Any] = []
        self._noted: dict[int, Pending] = {}

    def decide(
        self, before: Any, gradients: Mapping[int, tuple[Any, Any]], position: Any, stretch: Any, plain: bool
    ) -> None:
        """From the norms of all gradients, whether this step is measured in full.

        Args:
            before: the state's columns of the last step's row.
            gradients: by the layers' indices, each beside its variable.
            position: updates before this one.
            stretch: of the cadence.
            plain: whether XLA will surely not compile the step.
        """
        zero = ops.zeros((), "float32")
        # Made dense for the norm alone, and once more where all is measured: held until then it would be as much
        # memory as the layer has.
        found = [gradients.get(index) for index in self._weights]
        self._norms = measure.norms([zero if one is None else dense(*one, plain) for one in found])
        self._state = cadence.advance(cadence.State.of(before), self._norms, position, self._every, stretch)
        self.full = backend.settled(self._state.full > 0.0)

    def measure(self, layers: Sequence[int], proposed: Callable[[], Sequence[Pending]]) -> Any:
        """Measure some of the layers.

        Args:
            layers: their indices; those that are not watched are left out.
            proposed: gives what the optimizer proposes for them, in that order; called where it is needed, such as in a
                branch.

        Returns:
            What is there when nobody reads these layers any more; None if none of them is watched.
        """
        watched = [index for index in layers if index in self._places]
        if not watched:
            return None

        def found() -> list[Pending]:
            by_index = {one.index: one for one in proposed()}
            return [by_index[index] for index in watched]

        return self._add(watched, found)

    def note(self, pending: Sequence[Pending]) -> None:
        """Note what the treatments have decided of some of the layers."""
        self._noted |= {one.index: one for one in pending}

    def whole(self, scalars: Any, position: Any) -> Any:
        """[state | scalars | layers x stats], once every layer that has a gradient was measured and noted."""
        unreached = [index for index in self._weights if index not in self._order]
        if unreached:
            # A branch is given values and reads no variable, which may lie on another device.
            values = [backend.read(self._weights[index]) for index in unreached]
            self._add(unreached, lambda: values)
        one, zero = ops.ones((), "float32"), ops.zeros((), "float32")
        factors = [self._noted[index].least(one) if index in self._noted else one for index in self._weights]
        table = self._tables[0] if len(self._tables) == 1 else ops.concatenate(self._tables, 0)
        if self._order != list(self._weights):
            table = ops.take(table, np.array([self._order.index(index) for index in self._weights], np.int32), 0)
        if self._state is None:
            state = cadence.State(one, zero, ops.zeros_like(table[:, 0]))
        else:
            state = self._state
            norms = ops.where(state.full > 0.0, table[:, -1], self._norms)
            table = ops.concatenate([table[:, :-1], norms[:, None]], 1)
        table = ops.take(ops.concatenate([table, ops.stack(factors)[:, None]], 1), _ORDER, 1)
        return ops.concatenate([state.columns(step_of(position)), scalars, ops.reshape(table, [-1])], 0)

    def _add(self, layers: list[int], found: Callable[[], Sequence[Any]]) -> Any:
        if self.full is None:
            made = self._table(layers, found)
        else:
            nothing = np.full((len(layers), len(_MEASURED)), np.nan, np.float32)
            made = backend.branch(self.full, lambda: self._table(layers, found), lambda: ops.convert_to_tensor(nothing))
        self._order += layers
        self._tables.append(made)
        return made

    def _table(self, layers: list[int], found: Callable[[], Sequence[Any]]) -> Any:
        """[L, K] in the order of `_MEASURED`.

        Args:
            layers: their indices.
            found: what the optimizer proposes for each, or the weight alone of one that the loss does not reach: its
                gradient is zero.
        """
        zero = ops.zeros((), "float32")
        rate = self._learning_rate
        values = found()
        seen = [one.full(rate) if isinstance(one, Pending) else None for one in values]
        extremes = [
            {stats.GRADIENT_ZERO_FRACTION: zero + 1.0}
            if one is None
            else measure.extremes(one.weight, one.gradient, one.update, *self._limits)
            for one in seen
        ]
        columns = {name: ops.stack([one.get(name, zero) for one in extremes]) for name in measure.EXTREMES}
        columns[stats.WEIGHT_NORM] = measure.norms(
            [ops.cast(value, "float32") if one is None else one.weight for one, value in zip(seen, values, strict=True)]
        )
        gradients, updates = _sides(seen, zero)
        places = np.array([self._places[index] for index in layers], np.int32)
        norms = measure.norms(gradients) if self._norms is None else ops.take(self._norms, places, 0)
        plain = ops.stack([norms, measure.norms(updates)])
        lost = ops.logical_and(plain < measure.SAFE_NORM, columns[stats.GRADIENT_MAX] > 0.0)
        doubtful = ops.any(ops.logical_or(ops.logical_not(ops.isfinite(plain)), lost))

        def exact() -> Any:
            # Found again where it is needed: handed to this branch, all updates would have to be there at once.
            again = [one.full(rate) if isinstance(one, Pending) else None for one in found()]
            return measure.exact(*_sides(again, ops.zeros((), "float32")), plain)

        sure = backend.branch(doubtful, exact, lambda: ops.concatenate([plain, ops.zeros_like(plain[:1])], 0))
        for row, name in enumerate(measure.EXACT):
            columns[name] = sure[row]
        return ops.stack([columns[name] for name in _MEASURED], 1)


def step_of(position: Any) -> Any:
    """The number of the step that has so many updates before it, float32: what tells its row from an older one's."""
    return ops.cast(position + 1, "float32")


def _sides(seen: Sequence[Proposal | None], zero: Any) -> tuple[list[Any], list[Any]]:
    """Gradients and updates."""
    gradients = [zero if one is None else one.gradient for one in seen]
    return gradients, [zero if one is None else one.update for one in seen]
