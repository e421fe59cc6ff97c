"""Products with the preconditioned Hessian D^1/2 H D^1/2 of a loss, as compiled JAX functions.

Guarantees. Those of `lossguard.keras.curvature`, by other means: the weights of the model are arguments of a function,
and a product is a derivative forwards of the gradient (forward over reverse). An embedding's gradient is dense on JAX.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
from jax import numpy as jnp

Vectors = list[Any]
"""One float32 array for each variable, of its shape."""


class Curvature:
    """The operator at the weights as they are when it is asked.

    Args:
        loss: the scalar loss, from nothing: of the held batch.
        variables: Keras variables, the coordinates.
        diagonal: from a variable to its part of D; None is the identity.
        read: what else is read, such as weights that are no coordinates, and the optimizer's slots.
    """

    def __init__(
        self,
        loss: Callable[[], Any],
        variables: Sequence[Any],
        diagonal: Callable[[Any], Any] | None,
        read: Sequence[Any],
    ) -> None:
        self._loss = loss
        self._variables = list(variables)
        self._diagonal = diagonal
        known = {id(one) for one in variables}
        self._read = [one for one in read if id(one) not in known]
        self._turned = jax.jit(self._turn)
        self._measured = jax.jit(lambda values, read: _norm(jax.grad(self._at)(values, read)))

    def turn(self, vectors: Vectors, shift: Any) -> tuple[Vectors, Any]:
        """One power step: the unit vectors (A + shift) v / |(A + shift) v| and the quotient v A v, for |v| = 1."""
        made: tuple[Vectors, Any] = self._turned(*self._now(), vectors, shift)
        return made

    def gradient_norm(self) -> Any:
        """The norm of the loss's gradient."""
        return self._measured(*self._now())

    def _now(self) -> tuple[Vectors, Vectors]:
        return [one.value for one in self._variables], [one.value for one in self._read]

    def _given(self, values: Vectors, read: Vectors) -> keras.StatelessScope:
        given = [*zip(self._variables, values, strict=True), *zip(self._read, read, strict=True)]
        return keras.StatelessScope(state_mapping=given)

    def _at(self, values: Vectors, read: Vectors) -> Any:
        with self._given(values, read):
            return jnp.asarray(self._loss(), "float32")

    def _turn(self, values: Vectors, read: Vectors, vectors: Vectors, shift: Any) -> tuple[Vectors, Any]:
        with self._given(values, read):
            scale = [1.0 if self._diagonal is None else jnp.sqrt(self._diagonal(one)) for one in self._variables]
        directions = [root * vector for root, vector in zip(scale, vectors, strict=True)]
        _, curved = jax.jvp(lambda some: jax.grad(self._at)(some, read), (values,), (directions,))
        product = [root * one for root, one in zip(scale, curved, strict=True)]
        moved = [one + shift * old for one, old in zip(product, vectors, strict=True)]
        length = _norm(moved)
        # A Hessian of zero moves nothing.
        turned = [jnp.where(length == 0.0, old, one / length) for one, old in zip(moved, vectors, strict=True)]
        return turned, _dot(vectors, product)


def _dot(one: Vectors, other: Vectors) -> Any:
    return jnp.sum(jnp.stack([jnp.vdot(a, b) for a, b in zip(one, other, strict=True)]))


def _norm(vectors: Vectors) -> Any:
    return jnp.sqrt(_dot(vectors, vectors))
