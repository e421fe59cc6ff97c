"""The hook: what stands inside a watched optimizer.

Guarantees. The optimizer stays the object it was: same class, same slots, same checkpoints; the hook is two instance
attributes, and `detach` deletes them (decision 0201). Without a treatment the update that is written is the tensor
that the optimizer proposed, so weights and slots are bit-identical to those of the bare optimizer. No host call, no
collective beyond the sum of a few scalars.

How. Every Keras optimizer writes a model variable exactly once in `update_step`, through its own `assign`,
`assign_add` or `assign_sub`. The hook catches that one write, which is exactly u = eta * r, without the rounding of a
difference, measures, scales if a treatment says so, and writes.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import keras
import tensorflow as tf

from lossguard.guard import guarded
from lossguard.keras.ring import Layout, Ring
from lossguard.keras.rows import Pending, RowMaker
from lossguard.keras.treatments.base import Treatment
from lossguard.keras.treatments.clippy import Clippy
from lossguard.wire import stats

_WRITES: Final = ("assign", "assign_add", "assign_sub")


class Hook:
    """Watches, and treats, the updates of one optimizer instance.

    Args:
        optimizer: any Keras optimizer that updates variables itself (not a wrapper around another).
        treatments: applied in order; their factors multiply.
        scalars: called once per step in the replica context, with the learning rate; names to scalar tensors.
        rows: length of the ring.
        full_every: every how many steps all stats are measured.
        unwatched: patterns of layers that are not measured (but treated).
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        treatments: Sequence[Treatment],
        scalars: Callable[[Any], dict[str, Any]],
        rows: int,
        full_every: int,
        unwatched: Sequence[str] = (),
    ) -> None:
        self.optimizer = optimizer
        self.treatments = tuple(treatments)
        self.rows = rows
        self.full_every = full_every
        self.unwatched = tuple(unwatched)
        self._skips = any(getattr(one, "skips_nonfinite", False) for one in treatments)
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
    def _watched(self) -> tuple[int, ...]:
        return tuple(
            index
            for index, layer in enumerate(self.layers)
            if not any(re.search(pattern, layer) for pattern in self.unwatched)
        )

    @property
    def step(self) -> int:
        """Updates so far. Copies one integer from the device."""
        return int(keras.ops.convert_to_numpy(self.optimizer.iterations))

    # --- inside the train step

    @tf.autograph.experimental.do_not_convert
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

    @tf.autograph.experimental.do_not_convert
    def _distributed(self, distribution: Any, grads_and_vars: Any, packed: Any) -> None:
        """In the place of `_distributed_tf_update_step`, in the cross-replica context."""
        ring = self._ring(distribution)
        if not self._skips:
            self._run(distribution, ring, grads_and_vars, packed, leave_out=False)
            return
        # The gradients are summed over the replicas by now: each has the same.
        local = [distribution.experimental_local_results(gradient)[0] for gradient, _ in grads_and_vars]
        values = [one.values if isinstance(one, tf.IndexedSlices) else one for one in local]
        finite = tf.reduce_all(tf.stack([tf.reduce_all(tf.math.is_finite(one)) for one in values]))
        tf.cond(
            finite,
            lambda: self._run(distribution, ring, grads_and_vars, packed, leave_out=False),
            lambda: self._run(distribution, ring, grads_and_vars, packed, leave_out=True),
        )

    def _run(self, distribution: Any, ring: Ring, grads_and_vars: Any, packed: Any, *, leave_out: bool) -> None:
        """Propose, measure and write, each on every replica."""
        learning_rate, scalars, position = packed
        update = distribution.extended.update
        # A replica is known by the order of the calls: its id is a symbolic tensor under the default strategy.
        replicas: dict[int, list[Pending]] = {}
        measured: dict[int, Any] = {}
        count = _Counter()

        def propose(variable: Any, gradient: Any, learning_rate: Any) -> None:
            one = self._nothing(variable, gradient) if leave_out else self._propose(variable, gradient, learning_rate)
            replicas.setdefault(count.next(), []).append(one)

        for gradient, variable in grads_and_vars:
            count.reset()
            update(variable, propose, args=(gradient, learning_rate), group=False)

        def decide(copy: Any, learning_rate: Any, scalars: Any, position: Any) -> None:
            replica = count.next()
            self._decide(replicas[replica], learning_rate)
            measured[replica] = self._record(ring, copy, replicas[replica], scalars, position, learning_rate)

        count.reset()
        update(ring.variable, decide, args=(learning_rate, scalars, position), group=False)
        if leave_out:
            return

        def write(variable: Any, place: int) -> None:
            replica = count.next()
            # Only when nobody reads the old weight any more is the update in place; else TensorFlow copies the weight.
            after = [measured[replica]] if measured[replica] is not None else []
            with tf.control_dependencies(after):
                self._write(variable, replicas[replica][place])

        for place, (_, variable) in enumerate(grads_and_vars):
            count.reset()
            update(variable, write, kwargs={"place": place}, group=False)

    def _ring(self, distribution: Any) -> Ring:
        if self.ring is None:
            with tf.init_scope(), distribution.scope():
                layers = tuple(self.layers[index] for index in self._watched)
                if not layers:
                    raise ValueError(f"unwatched: these patterns leave no layer of {self.optimizer.name} to watch")
                self.ring = Ring(Layout(self._scalar_names, layers, stats.STAT_NAMES), self.rows)
        return self.ring

    def _propose(self, variable: Any, gradient: Any, learning_rate: Any) -> Pending:
        index = self.optimizer._get_variable_index(variable)
        weight = tf.convert_to_tensor(variable)
        with self._caught(variable) as writes:
            self.optimizer.update_step(gradient, variable, learning_rate)
        if len(writes) == 1:
            write, value = writes[0]
            return Pending(index, gradient, weight, write, value)
        # A custom optimizer that writes the variable itself: what it did is the difference, and is corrected after.
        return Pending(index, gradient, weight, None, weight - tf.convert_to_tensor(variable))

    def _nothing(self, variable: Any, gradient: Any) -> Pending:
        weight = tf.convert_to_tensor(variable)
        index = self.optimizer._get_variable_index(variable)
        return Pending(index, gradient, weight, "assign_sub", tf.zeros_like(weight))

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

    def _decide(self, pending: list[Pending], learning_rate: Any) -> None:
        names = self.layers
        for one in pending:
            for treatment in self.treatments:
                if treatment.applies_to(names[one.index]):
                    one.factor = one.factor * treatment.factor(one.proposal(learning_rate))

    @guarded("Hook.record", None)
    def _record(
        self, ring: Ring, copy: Any, pending: list[Pending], scalars: Any, position: Any, learning_rate: Any
    ) -> Any:
        weights = {index: self.optimizer._trainable_variables[index] for index in self._watched}
        maker = RowMaker(weights, self.full_every, self._clippy.lambda_rel, self._clippy.lambda_abs)
        row = maker.row(ring.state(copy, position - 1), pending, scalars, position, learning_rate)
        ring.write(copy, position, row)
        return row

    def _write(self, variable: Any, one: Pending) -> None:
        optimizer = self.optimizer
        if one.write is None:
            if one.treated:
                correction = tf.cast(1.0 - one.factor, variable.dtype) * one.value
                optimizer.assign_add(variable, tf.where(one.factor == 1.0, tf.zeros_like(correction), correction))
            return
        value = one.value
        if one.treated and one.write == "assign":
            factor = tf.cast(one.factor, variable.dtype)
            value = tf.where(factor == 1.0, value, one.weight - factor * (one.weight - value))
        elif one.treated and isinstance(value, tf.IndexedSlices):
            value = tf.IndexedSlices(value.values * tf.cast(one.factor, value.dtype), value.indices, value.dense_shape)
        elif one.treated:
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


def leaves(optimizer: keras.optimizers.Optimizer) -> tuple[keras.optimizers.Optimizer, ...]:
    """The optimizers inside `optimizer` that update variables themselves."""
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        return leaves(inner)
    several = getattr(optimizer, "optimizers", None)
    if several:
        return tuple(leaf for one in several for leaf in leaves(one))
    return (optimizer,)
