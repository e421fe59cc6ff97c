"""Where XLA compiles the step: what is measured is computed aside, apart from the update that is written.

Guarantees. The branch that measures computes the updates a second time for itself, from what the step begins with, so
that XLA fuses it with what is measured of them, and the update with its write: no update needs any memory, and nothing
that is written in place is copied (decision 0218). For JAX, and for TensorFlow where XLA compiles the step.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from keras import ops

from lossguard.keras.backends.interface import Hooked

Call = tuple[Any, Any, Any]
"""Gradient, variable and learning rate of one layer's update."""


def update_aside(
    hook: Hooked,
    ring: Any,
    made: Sequence[Call],
    scalars: Any,
    position: Any,
    learning_rate: Any,
    propose: Callable[[Sequence[Call]], list[Any]],
    aside: Callable[[Sequence[Call]], list[Any]],
    *,
    leave_out: bool = False,
) -> None:
    """Decide, then group by group measure from what the step begins with, and update as the bare optimizer does.

    Args:
        hook, ring, scalars, position, learning_rate: of the step.
        made: what the optimizer is asked to do.
        propose: what it proposes for some of these.
        aside: the same, without a trace in the optimizer's variables.
        leave_out: whether nothing is written.
    """
    gradients, variables = [one[0] for one in made], [one[1] for one in made]
    row = hook.begin_row(ring, ring.variable, gradients, variables, position, learning_rate)
    # The compiler cannot know.
    never = position < 0
    if row is not None and row.always:
        # A branch nevertheless, which the compiler keeps apart from the update.
        row.full = ops.logical_not(never)
    for places in hook.groups(variables):
        group = [made[place] for place in places]
        touched = [variable for _, variable, _ in group]
        free = hook.measure(row, touched, partial(aside, group))
        if free is not None:
            row.full = after(free, never, row.full)
            group = [(after(free, never, gradient), *rest) for gradient, *rest in group]
        pending = propose(group)
        hook.decide(row, pending, learning_rate, scalars)
        if not leave_out:
            for variable, one in zip(touched, pending, strict=True):
                hook.write(variable, one)
    hook.end_row(row, ring, ring.variable, scalars, position)


def after(free: Any, never: Any, value: Any) -> Any:
    """The value, dense or sparse, which is not there before `free` is.

    XLA copies a weight that may be written while it is still being read, and only what is computed from one another has
    an order: an `optimization_barrier` is gone when it looks.
    """
    if hasattr(value, "indices"):
        return type(value)(after(free, never, value.values), value.indices, value.dense_shape)
    return ops.where(never, ops.cast(ops.reshape(free, [-1])[0], value.dtype), value)
