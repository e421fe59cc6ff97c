"""Products with the preconditioned Hessian D^1/2 H D^1/2 of a loss, as compiled TensorFlow functions.

Guarantees. Weights, slots, the user's metrics and the random state stay as they are. A product is two passes backwards
(reverse over reverse, about the cost of two gradients); H is never formed. A gradient of an embedding is taken as the
sparse thing that it is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

Vectors = list[Any]
"""One float32 tensor for each variable, of its shape."""


class Curvature:
    """The operator at the weights as they are when it is asked.

    Args:
        loss: the scalar loss, from nothing: of the held batch.
        variables: Keras variables, the coordinates.
        diagonal: from a variable to its part of D; None is the identity.
    """

    def __init__(
        self, loss: Callable[[], Any], variables: Sequence[Any], diagonal: Callable[[Any], Any] | None
    ) -> None:
        self._loss = loss
        self._variables = list(variables)
        self._diagonal = diagonal
        self.turn = tf.function(self._turn, autograph=False)
        self.gradient_norm = tf.function(self._gradient_norm, autograph=False)

    def _turn(self, vectors: Vectors, shift: Any) -> tuple[Vectors, Any]:
        """One power step: the unit vectors (A + shift) v / |(A + shift) v| and the quotient v A v, for |v| = 1."""
        product = self._product(vectors)
        quotient = _dot(vectors, product)
        moved = [one + shift * old for one, old in zip(product, vectors, strict=True)]
        length = tf.sqrt(_dot(moved, moved))
        # A Hessian of zero moves nothing.
        return [tf.where(length == 0.0, old, one / length) for one, old in zip(moved, vectors, strict=True)], quotient

    def _product(self, vectors: Vectors) -> Vectors:
        roots = [1.0 if self._diagonal is None else tf.sqrt(self._diagonal(one)) for one in self._variables]
        directions = [root * vector for root, vector in zip(roots, vectors, strict=True)]
        values = [variable.value for variable in self._variables]
        with tf.GradientTape() as outer:
            along = tf.zeros([])
            for gradient, direction in zip(self._gradients(values), directions, strict=True):
                if isinstance(gradient, tf.IndexedSlices):
                    along += tf.reduce_sum(gradient.values * tf.gather(direction, gradient.indices))
                elif gradient is not None:
                    along += tf.reduce_sum(gradient * direction)
        curved = outer.gradient(along, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [root * tf.convert_to_tensor(one) for root, one in zip(roots, curved, strict=True)]

    def _gradients(self, values: list[Any]) -> list[Any]:
        with tf.GradientTape() as tape:
            loss = tf.cast(self._loss(), tf.float32)
        gradients: list[Any] = tape.gradient(loss, values)
        return gradients

    def _gradient_norm(self) -> Any:
        gradients = self._gradients([variable.value for variable in self._variables])
        return tf.linalg.global_norm([one for one in gradients if one is not None])


def _dot(one: Vectors, other: Vectors) -> Any:
    return tf.add_n([tf.reduce_sum(a * b) for a, b in zip(one, other, strict=True)])
