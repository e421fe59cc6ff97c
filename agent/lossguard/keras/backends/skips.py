"""Counting the steps that loss scaling leaves out, for the backends whose variables are written in place."""

from typing import Any

_NAME = "_stateful_handle_non_finite_grads"


def count_skips(optimizer: Any, skipped: Any) -> None:
    """Add one to `skipped` whenever the `LossScaleOptimizer` leaves a step out."""
    bare = optimizer._stateful_handle_non_finite_grads

    def leave_out() -> None:
        bare()
        skipped.assign_add(1.0)

    setattr(optimizer, _NAME, leave_out)


def forget_skips(optimizer: Any) -> None:
    """No more."""
    optimizer.__dict__.pop(_NAME, None)
