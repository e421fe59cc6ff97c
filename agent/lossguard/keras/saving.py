"""A model that is saved is heard of, so that the frames of its steps are on disk about when it is.

A trainer that saves because it is about to be killed would otherwise leave a checkpoint whose last steps nobody has
seen: the next attempt goes on from it, and a gate cannot judge what comes of it, for ever.

Keras saves a model part by part, and asks each optimizer for its variables; that question is what is heard. Ways that
do not ask it (`tf.train.Checkpoint`, Orbax) say so by `Watch.checkpoint`.
"""

from collections.abc import Callable
from typing import Any

_NAME = "save_own_variables"


def hear_of_saves(optimizer: Any, told: Callable[[], None]) -> None:
    """Let `told` run, on the thread that saves, before the optimizer gives its variables."""
    bare = optimizer.save_own_variables

    def save_own_variables(store: Any) -> None:
        told()
        bare(store)

    optimizer.__dict__[_NAME] = save_own_variables


def hear_no_more(optimizer: Any) -> None:
    """Give the optimizer's own method back."""
    optimizer.__dict__.pop(_NAME, None)
