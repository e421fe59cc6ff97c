"""`dedupe_sparse`: equal rows of a sparse gradient are added up before the optimizer sees them.

Keras 3 applies the rows of an embedding's gradient as they come: a row that a batch looks up twice is updated twice,
and Adagrad adds the sum of the squares to its accumulator, not the square of the sum. Merged, training is what it would
be with the dense gradient, clipping and accumulation included. So it changes bare Keras's numbers, and costs what a
dense gradient of the table costs; over replicas the dense gradient is what travels.
"""

from typing import Any

from lossguard.keras.backends import backend

_NAME = "_backend_apply_gradients"


def merge_rows(optimizer: Any) -> None:
    """Let an optimizer see dense gradients only, until `leave_rows`."""
    bare = optimizer._backend_apply_gradients

    def merged(grads: Any, trainable_variables: Any) -> None:
        whole = [backend.dense(grad, variable) for grad, variable in zip(grads, trainable_variables, strict=True)]
        bare(whole, trainable_variables)

    setattr(optimizer, _NAME, merged)


def leave_rows(optimizer: Any) -> None:
    """Give the bare optimizer back."""
    optimizer.__dict__.pop(_NAME, None)
