"""A model that is saved is heard of, so that the frames of its steps are on disk about when it is.

A trainer that saves because it is about to be killed would otherwise leave a checkpoint whose last steps nobody has
seen: the next attempt goes on from it, and a gate cannot judge what comes of it, for ever.

Keras saves a model part by part, and asks each optimizer for its variables; `tf.train.Checkpoint` asks what
hangs on it. These two questions are what is heard. Orbax asks nobody: it is given arrays. Where a program has it, its
checkpointers' `save` is what is heard, on the thread that calls it and before anything is written, also in background.
"""

import functools
import sys
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


_ORBAX: Final = ("Checkpointer", "AsyncCheckpointer")
"""Every other one's `save`, and that of a `CheckpointManager` once it has decided to save, calls one of these."""
_ears: list[Callable[[], None]] = []
_changed: dict[type[Any], tuple[Callable[..., Any], Callable[..., Any]]] = {}
"""Orbax's own method, and what stands in its place."""


def hear_of_orbax(told: Callable[[], None]) -> None:
    """Let `told` run, on the thread that saves, before Orbax saves anything; without Orbax in the process do nothing.

    Nothing is imported: called again, it finds an Orbax that was imported since.
    """
    orbax = sys.modules.get("orbax.checkpoint")
    if orbax is None:
        return
    if told not in _ears:
        _ears.append(told)
    for kind in [getattr(orbax, name, None) for name in _ORBAX]:
        if kind is not None and kind not in _changed and "save" in vars(kind):
            _changed[kind] = kind.save, _overheard(kind.save)
            kind.save = _changed[kind][1]


def hear_no_more_of_orbax(told: Callable[[], None]) -> None:
    """Let `told` rest; behind the last one Orbax has its own methods again."""
    if told in _ears:
        _ears.remove(told)
    for kind, (bare, ours) in [] if _ears else list(_changed.items()):
        # One that somebody else has wrapped since stays, and tells nobody.
        if vars(kind).get("save") is ours:
            kind.save = bare
            del _changed[kind]


def _overheard(bare: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(bare)
    def save(*arguments: Any, **named: Any) -> Any:
        for told in tuple(_ears):
            told()
        return bare(*arguments, **named)

    return save
