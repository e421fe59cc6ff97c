"""Counting the steps that loss scaling leaves out, for the backends whose variables are written in place."""

from typing import Any


def count_skips(optimizer: Any, skipped: Any) -> None:
    """Add one to `skipped` whenever the `LossScaleOptimizer` leaves a step out."""
    bare = optimizer._stateful_handle_non_finite_grads

    def leave_out() -> None:
        bare()
        skipped.assign_add(1.0)

    optimizer._stateful_handle_non_finite_grads = leave_out
