"""The hook: what stands inside a watched optimizer.

Guarantees. The optimizer stays the object it was: same class, same slots, same checkpoints; the hook is two instance
attributes, and `detach` deletes them (decision 0201). Without a treatment the update that is written is the tensor
that the optimizer proposed, so weights and slots are bit-identical to those of the bare optimizer. No host call, no
collective beyond the sum of a few scalars.

How. Every Keras optimizer writes a model variable exactly once in `update_step`, through its own `assign`,
`assign_add` or `assign_sub`. The hook catches that one write, which is exactly u = eta * r, without the rounding of a
difference, measures, scales if a treatment says so, and writes.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import keras
import tensorflow as tf

from lossguard.guard import guarded
from lossguard.keras import measure, sparse
from lossguard.keras.ring import Layout, Ring
from lossguard.keras.treatments.base import Proposal, Treatment
from lossguard.keras.treatments.clippy import Clippy
from lossguard.wire import stats

_WRITES: Final = ("assign", "assign_add", "assign_sub")
_log = logging.getLogger("lossguard")


@dataclass(slots=True)
class _Pending:
    """One layer between the optimizer's proposal and its write."""

    index: int
    gradient: Any
    weight: Any
    write: str | None
    value: Any
    factor: Any = 1.0


class Hook:
    """Watches, and treats, the updates of one optimizer instance.

    Args:
        optimizer: any Keras optimizer that updates variables itself (not a wrapper around another).
        treatments: applied in order; their factors multiply.
        scalars: called once per step in the replica context, with the learning rate; names to scalar tensors.
        rows: length of the ring.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        treatments: Sequence[Treatment],
        scalars: Callable[[Any], dict[str, Any]],
        rows: int,
    ) -> None:
        self.optimizer = optimizer
        self.treatments = tuple(treatments)
        self.rows = rows
        self.ring: Ring | None = None
        self._scalars = scalars
        self._clippy = next((one for one in treatments if isinstance(one, Clippy)), Clippy())
        self._bare_update = optimizer._backend_update_step
        self._bare_distributed = optimizer._distributed_tf_update_step
        self._scalar_names: tuple[str, ...] = ()
        optimizer._backend_update_step = self._update_step
        optimizer._distributed_tf_update_step = self._distributed

    def detach(self) -> None:
        """Give the bare optimizer back. Functions that were compiled with the hook keep it."""
        for name in ("_backend_update_step", "_distributed_tf_update_step"):
            self.optimizer.__dict__.pop(name, None)

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of the optimizer's variables, in its order; a path that stands twice is numbered."""
        seen: dict[str, int] = {}
        names = []
        for variable in self.optimizer._trainable_variables:
            seen[variable.path] = count = seen.get(variable.path, 0) + 1
            names.append(variable.path if count == 1 else f"{variable.path}#{count}")
        return tuple(names)

    @property
    def step(self) -> int:
        """Updates so far. Copies one integer from the device."""
        return int(keras.ops.convert_to_numpy(self.optimizer.iterations))

    # --- inside the train step

    def _update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        """In the place of `_backend_update_step`, in the replica context: what is summed over replicas is summed here.

        The extra values travel in the learning rate's place, the one argument that Keras hands through unread.
        """
        scalars = self._scalars(learning_rate)
        if self.ring is None:
            self._scalar_names = tuple(scalars)
        row = [tf.cast(scalars.get(name, float("nan")), tf.float32) for name in self._scalar_names]
        position = tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.int64)
        packed = (learning_rate, tf.stack(row) if row else tf.zeros([0]), position)
        self._bare_update(grads, trainable_variables, packed)

    def _distributed(self, distribution: Any, grads_and_vars: Any, packed: Any) -> None:
        """In the place of `_distributed_tf_update_step`: propose, measure and write, each on every replica."""
        learning_rate, scalars, position = packed
        update = distribution.extended.update
        # A replica is known by the order of the calls: its id is a symbolic tensor under the default strategy.
        replicas: dict[int, list[_Pending]] = {}
        count = _Counter()

        def propose(variable: Any, gradient: Any, learning_rate: Any) -> None:
            replicas.setdefault(count.next(), []).append(self._propose(variable, gradient, learning_rate))

        for gradient, variable in grads_and_vars:
            count.reset()
            update(variable, propose, args=(gradient, learning_rate), group=False)

        ring = self._ring(distribution)

        def decide(ring_copy: Any, learning_rate: Any, scalars: Any, position: Any) -> None:
            pending = replicas[count.next()]
            self._decide(pending, learning_rate)
            self._record(ring_copy, pending, scalars, position)

        count.reset()
        update(ring.variable, decide, args=(learning_rate, scalars, position), group=False)

        for place, (_, variable) in enumerate(grads_and_vars):
            count.reset()
            update(variable, lambda copy, place=place: self._write(copy, replicas[count.next()][place]), group=False)

    def _ring(self, distribution: Any) -> Ring:
        if self.ring is None:
            with tf.init_scope(), distribution.scope():
                self.ring = Ring(Layout(self._scalar_names, self.layers, stats.STAT_NAMES), self.rows)
        return self.ring

    def _propose(self, variable: Any, gradient: Any, learning_rate: Any) -> _Pending:
        index = self.optimizer._get_variable_index(variable)
        weight = tf.convert_to_tensor(variable)
        with self._caught(variable) as writes:
            self.optimizer.update_step(gradient, variable, learning_rate)
        if len(writes) == 1:
            write, value = writes[0]
            return _Pending(index, gradient, weight, write, value)
        # A custom optimizer that writes the variable itself: what it did is the difference, and is corrected after.
        return _Pending(index, gradient, weight, None, weight - tf.convert_to_tensor(variable))

    @contextmanager
    def _caught(self, variable: Any) -> Iterator[list[tuple[str, Any]]]:
        optimizer, writes = self.optimizer, []
        bare = {name: getattr(optimizer, name) for name in _WRITES}

        def catch(name: str) -> Callable[[Any, Any], None]:
            def call(target: Any, value: Any) -> None:
                if target is variable:
                    writes.append((name, value))
                else:
                    bare[name](target, value)

            return call

        for name in _WRITES:
            setattr(optimizer, name, catch(name))
        try:
            yield writes
        finally:
            for name in _WRITES:
                optimizer.__dict__.pop(name, None)
        if len(writes) > 1:
            for name, value in writes:
                bare[name](variable, value)

    def _decide(self, pending: list[_Pending], learning_rate: Any) -> None:
        names = self.layers
        for one in pending:
            treatments = [treatment for treatment in self.treatments if treatment.applies_to(names[one.index])]
            if treatments:
                proposal = _dense(one, learning_rate)
                for treatment in treatments:
                    one.factor = one.factor * treatment.factor(proposal)

    @guarded("Hook.record", None)
    def _record(self, ring_copy: Any, pending: list[_Pending], scalars: Any, position: Any) -> None:
        rows: dict[int, Any] = {one.index: self._row(one) for one in pending}
        without = self._rows_without_gradient(rows)
        by_layer = [rows[i] if i in rows else without[i] for i in range(len(self.layers))]
        row = tf.concat([scalars, *by_layer], 0)
        Ring.write(ring_copy, self.rows, position, row)

    def _row(self, one: _Pending) -> Any:
        proposal = _dense(one, None)
        size = tf.cast(tf.size(one.weight), tf.float32)
        factor = one.factor if len(getattr(one.factor, "shape", ())) == 0 else tf.reduce_min(one.factor)
        found = measure.layer_stats(
            proposal.weight,
            proposal.gradient,
            proposal.update,
            tf.cast(factor, tf.float32),
            size,
            lambda_rel=self._clippy.lambda_rel,
            lambda_abs=self._clippy.lambda_abs,
        )
        found[stats.WEIGHT_NORM] = measure.norm(tf.cast(one.weight, tf.float32))
        return tf.stack([found[name] for name in stats.STAT_NAMES])

    def _rows_without_gradient(self, rows: dict[int, Any]) -> dict[int, Any]:
        """A layer that the loss does not reach: its gradient is zero."""
        still = {stats.CLIPPING_FACTOR: 1.0, stats.GRADIENT_ZERO_FRACTION: 1.0}
        without = {}
        for index, variable in enumerate(self.optimizer._trainable_variables):
            if index not in rows:
                norm = measure.norm(tf.cast(tf.convert_to_tensor(variable.value), tf.float32))
                found = {stats.WEIGHT_NORM: norm, **still}
                without[index] = tf.stack([tf.cast(found.get(name, 0.0), tf.float32) for name in stats.STAT_NAMES])
        return without

    def _write(self, variable: Any, one: _Pending) -> None:
        optimizer = self.optimizer
        treated = not isinstance(one.factor, float)
        if one.write is None:
            if treated:
                correction = tf.cast(1.0 - one.factor, variable.dtype) * one.value
                optimizer.assign_add(variable, tf.where(one.factor == 1.0, tf.zeros_like(correction), correction))
            return
        value = one.value
        if treated and one.write == "assign":
            factor = tf.cast(one.factor, variable.dtype)
            value = tf.where(factor == 1.0, value, one.weight - factor * (one.weight - value))
        elif treated and isinstance(value, tf.IndexedSlices):
            value = tf.IndexedSlices(value.values * tf.cast(one.factor, value.dtype), value.indices, value.dense_shape)
        elif treated:
            value = value * tf.cast(one.factor, value.dtype)
        getattr(optimizer, one.write)(variable, value)


class _Counter:
    """Numbers the calls that `extended.update` makes, one per replica."""

    def __init__(self) -> None:
        self._value = -1

    def next(self) -> int:
        self._value += 1
        return self._value

    def reset(self) -> None:
        self._value = -1


def _dense(one: _Pending, learning_rate: Any) -> Proposal:
    """The proposal as float32 tensors of one shape; of a sparse update the touched rows, each once."""
    sign = -1.0 if one.write == "assign_add" else 1.0
    value = one.weight - one.value if one.write == "assign" else one.value
    gradient, weight = one.gradient, one.weight
    if isinstance(value, tf.IndexedSlices):
        # Keras's division may append rows whose number depends on the data, which XLA then pads: added up over the
        # table they are right in both modes. Keras itself computes over the whole table here. The table's static
        # length, and not `dense_shape`, which would make XLA compile every step anew.
        value = tf.math.unsorted_segment_sum(value.values, value.indices, one.weight.shape[0])
        if isinstance(gradient, tf.IndexedSlices):
            rows = sparse.merged(gradient)
            gradient, weight, value = rows.values, tf.gather(weight, rows.indices), rows.of(value)
    if isinstance(gradient, tf.IndexedSlices):
        gradient = tf.convert_to_tensor(gradient)
    weight, gradient, value = (tf.cast(tensor, tf.float32) for tensor in (weight, gradient, value))
    return Proposal(weight, gradient, value * sign if sign < 0 else value, learning_rate)


def leaves(optimizer: keras.optimizers.Optimizer) -> tuple[keras.optimizers.Optimizer, ...]:
    """The optimizers inside `optimizer` that update variables themselves."""
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        return leaves(inner)
    several = getattr(optimizer, "optimizers", None)
    if several:
        return tuple(leaf for one in several for leaf in leaves(one))
    return (optimizer,)
