"""The loss of a batch that is held, as the probe of sharpness looks at it.

Guarantees. It is the loss that `fit` minimises, in inference mode: no dropout, no statistic or metric moves, and the
watch of a training step does not hear of it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops, tree


def compiled_loss(model: keras.Model, batch: tuple[Any, ...]) -> Callable[[], Any]:
    """The loss that a compiled model minimises, of one batch, without dropout and in inference mode.

    Args:
        model: compiled.
        batch: (x, y) or (x, y, sample_weight), arrays or tensors, nested as `fit` takes them.
    """
    x, y, sample_weight = (*tree.map_structure(ops.convert_to_tensor, batch), None)[:3]
    extra = {"training": False} if model._compute_loss_has_training_arg else {}

    def loss() -> Any:
        # The class's: that of the instance tells the watch of a training step.
        compute = type(model).compute_loss
        with _unheard(model):
            return compute(model, x=x, y=y, y_pred=model(x, training=False), sample_weight=sample_weight, **extra)

    return loss


@contextmanager
def _unheard(model: keras.Model) -> Iterator[None]:
    """Keep a loss out of the metrics that Keras shows: computing one adds it to the averages of the epoch."""
    trackers = list(getattr(model._compile_loss, "metrics", ()))
    bare = [tracker.update_state for tracker in trackers]
    for tracker in trackers:
        tracker.update_state = lambda *values, **options: None
    try:
        yield
    finally:
        for tracker, update_state in zip(trackers, bare, strict=True):
            tracker.update_state = update_state
