"""Products with the preconditioned Hessian D^1/2 H D^1/2 of a loss, in PyTorch.

Guarantees. Those of `lossguard.keras.curvature`: a product is two passes backwards (reverse over reverse), a gradient
with its graph kept and the gradient of that along a direction. Nothing reaches the `.grad` of a weight. An embedding's
gradient is dense, as Keras has it on PyTorch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

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

    def turn(self, vectors: Vectors, shift: Any) -> tuple[Vectors, Any]:
        """One power step: the unit vectors (A + shift) v / |(A + shift) v| and the quotient v A v, for |v| = 1."""
        product = self.product(vectors)
        with torch.no_grad():
            quotient = _dot(vectors, product)
            moved = [one + float(shift) * old for one, old in zip(product, vectors, strict=True)]
            length = torch.sqrt(_dot(moved, moved))
            # A Hessian of zero moves nothing.
            turned = [torch.where(length == 0.0, old, one / length) for one, old in zip(moved, vectors, strict=True)]
        return turned, quotient

    def product(self, vectors: Vectors) -> Vectors:
        """D^1/2 H D^1/2 v."""
        with torch.no_grad():
            roots = [1.0 if self._diagonal is None else torch.sqrt(self._diagonal(one)) for one in self._variables]
            directions = [root * vector for root, vector in zip(roots, vectors, strict=True)]
        # Within a user's `no_grad`, too.
        with torch.enable_grad():
            gradients = self._gradients(create_graph=True)
            along = [
                torch.sum(one * way)
                for one, way in zip(gradients, directions, strict=True)
                # One that depends on no weight, as of a linear loss, has no curvature.
                if one is not None and one.requires_grad
            ]
            curved = self._derivatives(sum(along)) if along else [None] * len(directions)
        return [
            torch.zeros_like(way) if one is None else root * one.detach()
            for root, one, way in zip(roots, curved, directions, strict=True)
        ]

    def gradient_norm(self) -> Any:
        """The norm of the loss's gradient."""
        with torch.enable_grad():
            gradients = [one for one in self._gradients(create_graph=False) if one is not None]
        return torch.sqrt(_dot(gradients, gradients)) if gradients else torch.zeros(())

    def _gradients(self, *, create_graph: bool) -> list[Any]:
        return self._derivatives(self._loss().to(torch.float32), create_graph=create_graph)

    def _derivatives(self, of: Any, *, create_graph: bool = False) -> list[Any]:
        """Of a scalar by each variable; None where it does not depend on one."""
        values = [variable.value for variable in self._variables]
        asked = [place for place, value in enumerate(values) if value.requires_grad]
        found: list[Any] = [None] * len(values)
        if asked and of.requires_grad:
            weights = [values[place] for place in asked]
            made = torch.autograd.grad(of, weights, create_graph=create_graph, allow_unused=True)
            for place, one in zip(asked, made, strict=True):
                found[place] = one
        return found


def _dot(one: Vectors, other: Vectors) -> Any:
    return torch.sum(torch.stack([torch.sum(a * b) for a, b in zip(one, other, strict=True)]))
