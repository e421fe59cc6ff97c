"""What an optimizer divides its gradients by, and how sharp the loss may then be.

Guarantees. For the optimizers named in `KNOWN`, and only those; another one is refused by name. The matrix is diagonal
and read from the slots as they are. Nothing is written.

An update without momentum is w -= eta D g with a diagonal D. On a quadratic it grows where eta times the top eigenvalue
of D^1/2 H D^1/2 exceeds a limit: 2 without momentum, more with it (Cohen et al., arXiv 2103.00065 and 2207.14484).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import keras
from keras import ops


@dataclass(frozen=True, slots=True)
class Preconditioner:
    """Of one optimizer.

    Attributes:
        limit: what eta times the top eigenvalue must stay below.
        diagonal: from a variable to D, a float32 tensor of its shape; None is the identity.
    """

    limit: float
    diagonal: Callable[[Any], Any] | None


def preconditioner(optimizer: keras.optimizers.Optimizer) -> Preconditioner:
    """The preconditioner of a Keras optimizer.

    Raises:
        ValueError: it is none of `KNOWN`, or a subclass that updates in a way of its own.
    """
    for kind, make in _MAKERS.items():
        if isinstance(optimizer, kind) and type(optimizer).update_step is kind.update_step:
            return make(optimizer)
    raise ValueError(
        f"sharpness: the preconditioner of {type(optimizer).__name__} is not known; known are {', '.join(KNOWN)}"
    )


def _sgd(optimizer: Any) -> Preconditioner:
    beta = float(optimizer.momentum)
    nesterov = 1.0 + 2.0 * beta if optimizer.nesterov else 1.0
    return Preconditioner(2.0 * (1.0 + beta) / nesterov, None)


def _adagrad(optimizer: Any) -> Preconditioner:
    return Preconditioner(2.0, lambda variable: _rsqrt(_slot(optimizer, "_accumulators", variable) + optimizer.epsilon))


def _rmsprop(optimizer: Any) -> Preconditioner:
    def diagonal(variable: Any) -> Any:
        squares = _slot(optimizer, "_velocities", variable)
        if optimizer.centered:
            squares = squares - ops.square(_slot(optimizer, "_average_gradients", variable))
        return _rsqrt(squares + optimizer.epsilon)

    return Preconditioner(2.0 * (1.0 + float(optimizer.momentum)), diagonal)


def _adam(optimizer: Any) -> Preconditioner:
    def diagonal(variable: Any) -> Any:
        slot = "_velocity_hats" if optimizer.amsgrad else "_velocities"
        squares = _slot(optimizer, slot, variable)
        steps = ops.maximum(ops.cast(optimizer.iterations, "float32"), 1.0)
        correction = ops.sqrt(1.0 - ops.power(ops.cast(optimizer.beta_2, "float32"), steps))
        return correction / (ops.sqrt(squares) + optimizer.epsilon)

    # The moving average of the gradients counts each for 1 - beta of a heavy ball's.
    beta = float(optimizer.beta_1)
    return Preconditioner(2.0 * (1.0 + beta) / (1.0 - beta), diagonal)


def _slot(optimizer: Any, name: str, variable: Any) -> Any:
    slot = getattr(optimizer, name)[optimizer._get_variable_index(variable)]
    return ops.cast(ops.convert_to_tensor(slot), "float32")


def _rsqrt(values: Any) -> Any:
    return 1.0 / ops.sqrt(values)


_MAKERS: Final[dict[type[Any], Callable[[Any], Preconditioner]]] = {
    keras.optimizers.SGD: _sgd,
    keras.optimizers.Adagrad: _adagrad,
    keras.optimizers.RMSprop: _rmsprop,
    keras.optimizers.Adam: _adam,
}
KNOWN: Final = ("SGD", "Adagrad", "RMSprop", "Adam", "AdamW")
