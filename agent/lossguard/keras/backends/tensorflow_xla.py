"""TensorFlow, where XLA compiles the step: measured and updated as on JAX, for the same compiler.

Guarantees. The branch that measures computes the updates a second time for itself, from what the step begins with, so
that XLA fuses it with what is measured of them, and the update with its write: no update needs any memory, and nothing
that is written in place is copied (decision 0218).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import keras
import tensorflow as tf

from lossguard.keras.backends.interface import Hooked

PRODUCT: Final = 512
MANY: Final = 1 << 15
"""Fewer numbers are added up as they are: each product is a kernel of its own."""


def total(values: Any) -> Any:
    """The sum of a vector, on CPU: products with ones take a seventh of the time of XLA's own sum (decision 0219)."""
    enough = MANY
    while values.shape[0] >= enough:
        even = values.shape[0] // PRODUCT * PRODUCT
        rows = tf.reshape(values[:even], [-1, PRODUCT])
        values = tf.concat([tf.linalg.matvec(rows, tf.ones([PRODUCT])), values[even:]], 0)
        # A long sum of equal numbers errs.
        enough = 2 * PRODUCT
    return tf.reduce_sum(values)


def knows(optimizer: Any) -> bool:
    """Whether an optimizer's update may be computed twice, and is the bare one's to the last bit for all that.

    Some of Keras's read a slot before they write it and use what they read behind that, which on TensorFlow is the new
    value; and where XLA fuses the average of the weights with their update, it rounds by what else there is.
    """
    return type(optimizer) in _KNOWN and not optimizer.use_ema


def run(
    hook: Hooked, ring: Any, grads_and_vars: Sequence[Any], learning_rate: Any, scalars: Any, position: Any
) -> None:
    """Decide, then group by group measure from what the step begins with, and update as the bare optimizer does."""
    gradients, variables = zip(*grads_and_vars, strict=True)
    row = hook.begin_row(ring, ring.variable, gradients, variables, position, learning_rate)
    # The compiler cannot know.
    never = position < 0
    if row is not None and row.always:
        # A branch nevertheless, which the compiler keeps apart from the update.
        row.full = tf.logical_not(never)

    def aside(group: Sequence[Any]) -> list[Any]:
        with _Aside(hook.optimizer) as scope:
            pending = []
            for gradient, variable in group:
                scope.divert()
                pending.append(hook.propose(variable, gradient, learning_rate))
            for one in pending:
                # It may be one of the optimizer's variables, such as a momentum, and is another one out there.
                one.value = one.value if isinstance(one.value, tf.IndexedSlices) else tf.convert_to_tensor(one.value)
        return pending

    for places in hook.groups(variables):
        group = [grads_and_vars[place] for place in places]
        touched = [variable for _, variable in group]
        free = hook.measure(row, touched, functools.partial(aside, group))
        if free is not None:
            row.full = _after(free, never, row.full)
            group = [(_after(free, never, gradient), variable) for gradient, variable in group]
        pending = [hook.propose(variable, gradient, learning_rate) for gradient, variable in group]
        hook.decide(row, pending, learning_rate, scalars)
        for variable, one in zip(touched, pending, strict=True):
            hook.write(variable, one)
    hook.end_row(row, ring, ring.variable, scalars, position)


_KNOWN: Final = frozenset(
    (
        keras.optimizers.SGD,
        keras.optimizers.RMSprop,
        keras.optimizers.Adagrad,
        keras.optimizers.Adadelta,
        keras.optimizers.Adam,
        keras.optimizers.AdamW,
        keras.optimizers.Adamax,
        keras.optimizers.Lion,
    )
)


class _Aside(keras.StatelessScope):
    """What an optimizer writes to its variables in it is forgotten behind it."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        self._optimizer = optimizer

    def divert(self) -> None:
        """Take the optimizer's writes until the hook has proposed once, which gives the bare methods back."""
        for name, change in _CHANGES.items():
            setattr(self._optimizer, name, functools.partial(self._write, change))

    def __exit__(self, *error: Any) -> None:
        for name in _CHANGES:
            self._optimizer.__dict__.pop(name, None)
        super().__exit__(*error)

    def _write(self, change: Callable[[Any, Any], Any], target: Any, value: Any) -> None:
        now = tf.convert_to_tensor(target.value)
        self.add_update((target, change(now, tf.cast(value, now.dtype))))


def _changed(sparsely: Callable[..., Any], densely: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def change(now: Any, value: Any) -> Any:
        if isinstance(value, tf.IndexedSlices):
            return sparsely(now, value.indices[:, None], value.values)
        return densely(now, value)

    return change


_CHANGES: Final = {
    "assign": _changed(tf.tensor_scatter_nd_update, lambda now, value: value),
    "assign_add": _changed(tf.tensor_scatter_nd_add, lambda now, value: now + value),
    "assign_sub": _changed(tf.tensor_scatter_nd_sub, lambda now, value: now - value),
}


def _after(free: Any, never: Any, value: Any) -> Any:
    """The value, which is not there before `free` is: only what is computed from one another has an order."""
    if isinstance(value, tf.IndexedSlices):
        return tf.IndexedSlices(_after(free, never, value.values), value.indices, value.dense_shape)
    return tf.where(never, tf.cast(tf.reshape(free, [-1])[0], value.dtype), value)
