"""TensorFlow, where XLA compiles the step: what is measured is computed aside, as on JAX, for the same compiler.

Guarantees. Those of `lossguard.keras.backends.aside`. What fails aside leaves the optimizer's writes alone.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import keras
import tensorflow as tf

from lossguard.keras.backends.aside import Call, update_aside
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
    """Update with what is measured computed aside."""

    def propose(group: Sequence[Call]) -> list[Any]:
        return [hook.propose(variable, gradient, rate) for gradient, variable, rate in group]

    def aside(group: Sequence[Call]) -> list[Any]:
        pending = []
        with _Aside(hook.optimizer) as scope:
            for call in group:
                scope.divert()
                pending += propose([call])
            for one in pending:
                # It may be one of the optimizer's variables, such as a momentum, and is another one out there.
                one.value = one.value if isinstance(one.value, tf.IndexedSlices) else tf.convert_to_tensor(one.value)
        return pending

    made = [(gradient, variable, learning_rate) for gradient, variable in grads_and_vars]
    update_aside(hook, ring, made, scalars, position, learning_rate, propose, aside)


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
