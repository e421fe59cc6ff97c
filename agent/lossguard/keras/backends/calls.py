"""The calls of `update_step` that an optimizer would make, for the backends where a step is a loop over them."""

from collections.abc import Callable
from typing import Any


def calls(optimizer: Any, bare: Callable[..., Any], *arguments: Any) -> list[tuple[Any, Any, Any]]:
    """Let `bare`, the optimizer's `_backend_update_step`, run without updating a variable of the model.

    What it does besides, it does: Nadam keeps a product of its momenta there.

    Returns:
        (gradient, variable, learning rate) of each call.
    """
    made: list[tuple[Any, Any, Any]] = []
    optimizer.update_step = lambda *call: made.append(call)
    try:
        bare(*arguments)
    finally:
        del optimizer.__dict__["update_step"]
    return made
