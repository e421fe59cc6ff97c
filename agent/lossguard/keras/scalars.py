"""The scalars of each step: caught where the model computes its loss, measured where the optimizer updates.

`compute_loss` is where labels, outputs and the total that is minimised meet, in `fit`, in a custom `train_step` that
calls it, and in multi-output models. Only references are kept there; the arithmetic happens in the optimizer's step,
outside the gradient tape.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from lossguard.guard import guarded
from lossguard.keras import tasks as tasks_module
from lossguard.keras.backends import backend
from lossguard.keras.ring import HIGH, ID_SPLIT, IDS, LOW
from lossguard.keras.tasks import Task
from lossguard.keras.window import BUCKETS, Window, auc, binary_counts, logits_of, regression_counts, rmse

_NOTHING: dict[str, Any] = {}
SKIPPED = "skipped_steps"
_LISTENER = "lossguard_listener"


class StepScalars:
    """The scalars of one model's steps.

    Attributes:
        tasks: whose scalars are measured.

    Raises:
        ValueError: `batch_id` is no function.
    """

    def __init__(self, tasks: tuple[Task, ...], batch_id: Callable[[Any], Any] | None = None) -> None:
        if batch_id is not None and not callable(batch_id):
            raise ValueError(f"batch_id: must be a function of the step's inputs, got {batch_id!r}")
        self.tasks = tasks
        self._batch_id = batch_id
        self._skipped: Any = None
        self._scaler: Any = None
        self._window: Window | None = None
        self._replaced: Any = None
        # Mirrored replicas are traced in threads of their own.
        self._seen = threading.local()

    def attach(self, model: keras.Model) -> bool:
        """Listen to the model's `compute_loss`; True if it was not listened to before.

        That of another watch, which has ended, makes room; one that the user put into the instance is called.
        """
        other = _listener_of(model)
        if other is self:
            return False
        if other is not None:
            other.detach(model)
        self._replaced = model.__dict__.get("compute_loss")
        bare, observe = model.compute_loss, backend.uncompiled(self.observe)
        takes_training = model._compute_loss_has_training_arg

        def compute_loss(
            x: Any = None,
            y: Any = None,
            y_pred: Any = None,
            sample_weight: Any = None,
            training: bool = True,
            **extra: Any,
        ) -> Any:
            if takes_training:
                extra["training"] = training
            total = bare(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, **extra)
            if training:
                observe(total, y, y_pred, sample_weight, inputs=x)
            return total

        compute_loss.__dict__[_LISTENER] = self
        model.compute_loss = compute_loss
        return True

    def detach(self, model: keras.Model) -> None:
        """Stop listening."""
        if _listener_of(model) is not self:
            return
        del model.__dict__["compute_loss"]
        if self._replaced is not None:
            model.compute_loss = self._replaced

    def keep_window(self, steps: int, scope: Any) -> None:
        """Also measure AUC and RMSE over a window (`lossguard.keras.window`), from the next trace on.

        Args:
            steps: length of the window.
            scope: the distribution strategy's.
        """
        if self._window is None and any(task.kind is not None for task in self.tasks):
            with scope:
                self._window = Window(len(self.tasks), steps)

    def count_skips(self, optimizer: Any) -> None:
        """Count the steps that a LossScaleOptimizer leaves out: its inner optimizer never hears of them.

        The count so far is the scalar `skipped_steps` of every step that was not left out.
        """
        if self._skipped is None:
            self._skipped = backend.variable(0.0, "lossguard_skipped")
        if optimizer is not self._scaler:
            self.forget_skips()
            backend.count_skips(optimizer, self._skipped)
            self._scaler = optimizer

    def forget_skips(self) -> None:
        """Give the bare LossScaleOptimizer back."""
        if self._scaler is not None:
            backend.forget_skips(self._scaler)
            self._scaler = None

    @property
    def skipped(self) -> float | None:
        """Steps left out so far; None where nothing leaves any out. Copies one number from the device."""
        return None if self._skipped is None else float(ops.convert_to_numpy(backend.read(self._skipped)))

    @property
    def kinds(self) -> dict[str, str]:
        """The tasks that are of a kind, by name."""
        return {task.name: task.kind for task in self.tasks if task.kind is not None}

    @property
    def variables(self) -> tuple[Any, ...]:
        """What the step writes."""
        window = () if self._window is None else (self._window.state,)
        return window if self._skipped is None else (*window, self._skipped)

    @property
    def most(self) -> int:
        """How many scalars a step may have; 16 more than are known of, for `observe`'s task losses."""
        return 3 + 2 * len(IDS) + sum(1 + len(task.scalars) for task in self.tasks) + 16

    def observe(
        self,
        total: Any,
        labels: Any = None,
        outputs: Any = None,
        sample_weights: Any = None,
        task_losses: Mapping[str, Any] | None = None,
        inputs: Any = None,
    ) -> None:
        """Remember this step's tensors until its update."""
        step = (total, labels, outputs, sample_weights, dict(task_losses or {}), inputs)
        self._seen.step = backend.still(step)

    def of_step(self, learning_rate: Any) -> dict[str, Any]:
        """The scalars of the step being updated, in replica context; without a loss, the learning rate alone."""
        step = getattr(self._seen, "step", None)
        self._seen.step = None
        found = _NOTHING if step is None or not backend.reachable(step[0]) else self._measure(step)
        skipped = {} if self._skipped is None else {SKIPPED: backend.read(self._skipped)}
        return {**found, "learning_rate": learning_rate, **skipped}

    @guarded("StepScalars.measure", _NOTHING)
    def _measure(self, step: tuple[Any, Any, Any, Any, dict[str, Any], Any]) -> dict[str, Any]:
        loss, labels, outputs, sample_weights, task_losses, inputs = step
        total = backend.replica_total()
        found = {"loss": total([ops.cast(loss, "float32")])[0]}
        for name, value in task_losses.items():
            found[f"loss/{name}"] = total([ops.cast(value, "float32")])[0]
        if self._batch_id is not None and inputs is not None:
            # Over replicas each writes its own row, and the first one's is read.
            found |= self._identity(self._batch_id, inputs)
        if labels is not None and outputs is not None:
            labels, sample_weights = (tasks_module.like(outputs, one, self.tasks) for one in (labels, sample_weights))
            found |= tasks_module.measure(self.tasks, labels, outputs, sample_weights, total)
            if self._window is not None:
                found |= self._of_window(self._window, labels, outputs, sample_weights, total)
        return found

    @staticmethod
    @guarded("batch_id", _NOTHING)
    def _identity(batch_id: Callable[[Any], Any], inputs: Any) -> dict[str, Any]:
        # A guard of its own: a function of the user's that fails must not take the losses along.
        return split_id(batch_id(inputs))

    def _of_window(
        self, window: Window, labels: Any, outputs: Any, sample_weights: Any, total: Callable[[list[Any]], list[Any]]
    ) -> dict[str, Any]:
        counts = []
        for task in self.tasks:
            parts = [task.part_of(one) for one in (labels, outputs, sample_weights)]
            if task.kind is None or parts[0] is None or parts[1] is None:
                counts.append(ops.zeros([2, BUCKETS]))
                continue
            y, p, w = tasks_module.flat(*parts)
            if task.kind == "regression":
                counts.append(regression_counts(y, p, w))
            else:
                counts.append(binary_counts(y, p if task.from_logits else logits_of(p), w))
        state = window.advance(total(counts))
        found = {}
        for place, task in enumerate(self.tasks):
            if task.kind == "binary":
                found[f"auc/{task.name}"] = auc(state[place])
            elif task.kind == "regression":
                found[f"window_rmse/{task.name}"] = rmse(state[place])
        return found


def _listener_of(model: keras.Model) -> StepScalars | None:
    """Whose `compute_loss` the model has."""
    listener: StepScalars | None = getattr(model.__dict__.get("compute_loss"), _LISTENER, None)
    return listener


def split_id(value: Any) -> dict[str, Any]:
    """Whole numbers as two float32 scalars each: one alone is exact only up to 2**24.

    Args:
        value: a number that names the batch, or a pair: of its file, and of its place there. Of one beyond 2**44, such
            as a hash of 64 bits, the low 44 bits.

    Raises:
        ValueError: it is text, which would fail within the step only, or several numbers.
    """
    if isinstance(value, (tuple, list)) and len(value) == len(IDS):
        parts = dict(zip(IDS, reversed(value), strict=True))
    else:
        parts = {IDS[0]: value}
    found = {}
    for name, one in parts.items():
        whole = _whole(one)
        found[name + HIGH] = ops.cast(whole // ID_SPLIT, "float32")
        found[name + LOW] = ops.cast(whole % ID_SPLIT, "float32")
    return found


def _whole(value: Any) -> Any:
    value = ops.convert_to_tensor(value)
    kind, shape = keras.backend.standardize_dtype(value.dtype), tuple(value.shape)
    if "int" not in kind and "float" not in kind:
        raise ValueError(f"batch_id: must give a whole number, got {kind}; give the name of a file a number")
    if any(length not in (1, None) for length in shape):
        raise ValueError(
            f"batch_id: must give one whole number for the batch, or a file's and an offset's, got the shape {shape}"
        )
    whole = ops.cast(ops.reshape(value, ()), backend.WHOLE)
    if backend.WHOLE != "int64":
        return whole
    most = ID_SPLIT * ID_SPLIT
    return ops.where(ops.logical_and(whole < most, whole > -most), whole, whole % most)
