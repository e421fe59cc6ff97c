"""A model that is saved is heard of, so that the frames of its steps are on disk about when it is.

A trainer that saves because it is about to be killed would otherwise leave a checkpoint whose last steps nobody has
seen: the next attempt goes on from it, and a gate cannot judge what comes of it, for ever.

Keras saves a model part by part, and asks each optimizer for its variables; `tf.train.Checkpoint` asks what
hangs on it. These two questions are what is heard. Orbax asks neither: there `Watch.checkpoint` says it.
"""

from collections.abc import Callable
from typing import Any, Final

_QUESTIONS: Final = ("save_own_variables", "_trackable_children")
"""The second is TensorFlow's own affair (a test tells when it changes), and asked when a checkpoint is read as well."""


def hear_of_saves(optimizer: Any, told: Callable[[], None]) -> None:
    """Let `told` run, on the thread that saves, before the optimizer gives its variables."""
    for name in _QUESTIONS:
        if (bare := getattr(optimizer, name, None)) is not None:
            optimizer.__dict__[name] = _heard(bare, told)


def hear_no_more(optimizer: Any) -> None:
    """Give the optimizer's own methods back."""
    for name in _QUESTIONS:
        optimizer.__dict__.pop(name, None)


def _heard(bare: Callable[..., Any], told: Callable[[], None]) -> Callable[..., Any]:
    def ask(*arguments: Any, **named: Any) -> Any:
        told()
        return bare(*arguments, **named)

    return ask
