"""Tasks of a compiled model, and their scalars, computed inside the train step.

Guarantees. Every scalar is that of the whole batch (of all replicas) and of this step alone. With sample weights, an
example counts with its weight everywhere, so that labels which are masked out do not exist; those that Keras's own mask
hides (`mask_zero=True`) neither. Predictions of a binary
task are probabilities, whatever the model puts out. The total `loss` is not recomputed: it is the one minimised.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import keras
from keras import ops

from lossguard.keras.backends import backend
from lossguard.keras.places import laid_out, part_of
from lossguard.keras.ranking import won_pairs

Kind = Literal["binary", "regression"]
KINDS: Final = ("binary", "regression")

_BINARY: Final = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
_REGRESSION: Final = (
    keras.losses.MeanSquaredError,
    keras.losses.MeanAbsoluteError,
    keras.losses.MeanAbsolutePercentageError,
    keras.losses.MeanSquaredLogarithmicError,
    keras.losses.Huber,
    keras.losses.LogCosh,
    keras.losses.Poisson,
)


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One objective of a model.

    Attributes:
        name: as in the scalars' names.
        key: where it stands in labels and outputs: a dictionary key, a position, or None for the only output.
        kind: None if it is neither: then only its loss is recorded.
        from_logits: whether a binary task's output is a logit.
        loss: the compiled loss; None if unknown.
        place: where it stands where labels and outputs are sequences.
    """

    name: str
    key: str | int | None
    kind: Kind | None
    from_logits: bool
    loss: Callable[..., Any] | None
    place: int = 0

    def part_of(self, structure: Any) -> Any:
        """Its part of labels, outputs or sample weights; None if it is not there."""
        return part_of(structure, self.key, self.place, self.name)

    @property
    def scalars(self) -> tuple[str, ...]:
        """The names of its scalars, in the order of `measure`."""
        names = (f"loss/{self.name}",) if self.loss is not None else ()
        if self.kind is None:
            return names
        last = ("batch_auc",) if self.kind == "binary" else ("label_std", "rmse")
        return (*names, *(f"{what}/{self.name}" for what in ("label_mean", "prediction_mean", "prediction_std", *last)))


class _FunctionLoss(keras.losses.Loss):
    """A plain loss function, averaged as Keras averages it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        # Not the function's own name: a lambda's is no scope of TensorFlow's.
        super().__init__(name="function")
        self.function = function

    def call(self, y_true: Any, y_pred: Any) -> Any:
        if len(y_true.shape) + 1 == len(y_pred.shape) and y_pred.shape[-1] == 1:
            y_true = ops.expand_dims(y_true, -1)
        elif len(y_pred.shape) + 1 == len(y_true.shape) and y_true.shape[-1] == 1:
            y_true = ops.squeeze(y_true, -1)
        return self.function(y_true, y_pred)


def checked_kinds(tasks: Mapping[str, str] | None) -> dict[str, Kind] | None:
    """The user's `tasks` argument, checked.

    Raises:
        ValueError: a name or kind is none; the message names the argument.
    """
    if tasks is None:
        return None
    if not isinstance(tasks, Mapping):
        raise ValueError(f'tasks: must map task names to "binary" or "regression", got {type(tasks).__name__}')
    for name, kind in tasks.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"tasks: {name!r} is not a task name")
        if kind not in KINDS:
            raise ValueError(f'tasks: {name!r} must be "binary" or "regression", got {kind!r}')
    return dict(tasks)  # type: ignore[arg-type]


def checked_logits(logits: Collection[str], kinds: Mapping[str, Kind] | None = None) -> tuple[str, ...]:
    """The user's `logits` argument, checked.

    Raises:
        ValueError: it is one string, no names, or names none of the tasks that are said.
    """
    if isinstance(logits, str):
        raise ValueError(f"logits: must be a sequence of task names, got the one string {logits!r}")
    if not isinstance(logits, Collection) or not all(isinstance(name, str) for name in logits):
        raise ValueError(f"logits: must be a sequence of task names, got {logits!r}")
    if unknown := [name for name in logits if kinds is not None and name not in kinds]:
        raise ValueError(f"logits: {unknown[0]!r} is none of the tasks {', '.join(kinds or ())}")
    return tuple(logits)


def said_tasks(kinds: Mapping[str, Kind], logits: Collection[str]) -> tuple[Task, ...]:
    """Tasks of a loop of one's own, by the user's word alone."""
    return tuple(
        Task(name, name, kind, name in logits, None, place) for place, (name, kind) in enumerate(kinds.items())
    )


def compiled_tasks(
    model: keras.Model, kinds: Mapping[str, Kind] | None = None, logits: Collection[str] = ()
) -> tuple[Task, ...]:
    """The tasks of a compiled model, in the order of its losses.

    Args:
        model: compiled; its `loss` may be one loss, a list or a dictionary.
        logits: binary tasks whose outputs are logits, where the loss does not say so.
        kinds: the user's word; None infers each kind from the loss. Outputs without names, of which there are as many,
            take the names given, in their order.

    Raises:
        ValueError: `kinds` names a task that the model has not.
    """
    outputs = list(getattr(model, "output_names", None) or [])
    loss = getattr(model, "loss", None)
    said = list(kinds or ())
    if isinstance(loss, Mapping):
        found: list[tuple[str, str | int | None, Any]] = [(str(name), name, one) for name, one in loss.items()]
    elif isinstance(loss, (list, tuple)):
        unnamed = said if len(said) == len(loss) else [f"output_{number}" for number in range(1, len(loss) + 1)]
        names = outputs if len(outputs) == len(loss) else unnamed
        found = [(name, number, one) for number, (name, one) in enumerate(zip(names, loss, strict=True))]
    elif len(outputs) > 1 or (not outputs and len(said) > 1):
        found = [(name, number, loss) for number, name in enumerate(outputs or said)]
    else:
        only = said[0] if len(said) == 1 else (outputs or ["output"])[0]
        found = [(only, None, loss)]
    if kinds is not None:
        unknown = sorted(set(kinds) - {name for name, _, _ in found})
        if unknown:
            has = ", ".join(repr(name) for name, _, _ in found)
            raise ValueError(f"tasks: the model has no output {', '.join(map(repr, unknown))}; it has {has}")
    return tuple(
        _task(name, key, one, outputs.index(name) if name in outputs else place, kinds, logits)
        for place, (name, key, one) in enumerate(found)
        if one is not None or kinds
    )


def _task(
    name: str, key: str | int | None, loss: Any, place: int, kinds: Mapping[str, Kind] | None, logits: Collection[str]
) -> Task:
    known: Any = None if loss is None else keras.losses.get(loss)
    if known is not None and not isinstance(known, keras.losses.Loss):
        by_name = {_snake(cls.__name__): cls for cls in (*_BINARY, *_REGRESSION)}
        cls = by_name.get(getattr(known, "__name__", ""))
        known = cls() if cls is not None else _FunctionLoss(known)
    if kinds is not None:
        kind = kinds.get(name)
    elif isinstance(known, _BINARY):
        kind = "binary"
    elif isinstance(known, _REGRESSION):
        kind = "regression"
    else:
        kind = None
    return Task(name, key, kind, name in logits or bool(getattr(known, "from_logits", False)), known, place)


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def like(outputs: Any, structure: Any, tasks: tuple[Task, ...]) -> Any:
    """Labels or sample weights, laid out as the outputs are."""
    return laid_out(structure, outputs, [task.key for task in tasks], [task.place for task in tasks])


def measure(
    tasks: tuple[Task, ...],
    labels: Any,
    outputs: Any,
    sample_weights: Any,
    total: Callable[[list[Any]], list[Any]],
) -> dict[str, Any]:
    """The tasks' scalars as float32 tensors, by name.

    Args:
        tasks: of the model.
        labels, outputs, sample_weights: as `compute_loss` got them, laid out `like` the outputs.
        total: adds scalars up over the replicas; the identity on one.
    """
    found: dict[str, Any] = {}
    rows: list[tuple[Task, Any, Any, Any]] = []
    for task in tasks:
        label, output = task.part_of(labels), task.part_of(outputs)
        if label is None or output is None:
            continue
        weights = task.part_of(sample_weights)
        if task.loss is not None:
            found[f"loss/{task.name}"] = total([ops.cast(task.loss(label, output, weights), "float32")])[0]
        if task.kind is not None:
            rows.append((task, *flat(label, output, weights)))
    if rows:
        # Binary tasks first, so that they are the first rows of the tables.
        found |= _moments(sorted(rows, key=lambda row: KINDS.index(str(row[0].kind))), total)
    return {name: found[name] for task in tasks for name in task.scalars if name in found}


def _moments(rows: list[tuple[Task, Any, Any, Any]], total: Callable[[list[Any]], list[Any]]) -> dict[str, Any]:
    """All tasks at once: one by one, starting an operation on a batch took longer than computing it."""
    tasks = [row[0] for row in rows]
    binary = sum(task.kind == "binary" for task in tasks)
    lengths = [row[1].shape[0] for row in rows]
    if len(set(lengths)) > 1 or lengths[0] is None:
        rows = _of_one_length(rows)
    y, ranked, w = (ops.stack([row[column] for row in rows]) for column in (1, 2, 3))
    p = ops.stack([ops.sigmoid(row[2]) if row[0].kind == "binary" and row[0].from_logits else row[2] for row in rows])
    sums = [ops.sum(w, 1), ops.sum(w * y, 1), ops.sum(w * p, 1)]
    if binary < len(tasks):
        sums.append(ops.sum(w[binary:] * ops.square(p[binary:] - y[binary:]), 1))
    if binary:
        # Ranks do not change under the sigmoid, but probabilities saturate in float32 where logits do not.
        # Over replicas: the pairs within each, a sample of the batch's pairs that needs no exchange of examples.
        up = w[:binary] * y[:binary]
        logits = [task.from_logits for task in tasks[:binary]]
        sums.extend(won_pairs(ranked[:binary], up, w[:binary] - up, logits))
    count, labels, predictions, *rest = total(sums)
    label_mean, mean = labels / count, predictions / count
    # Around the means of the whole batch: the difference of two squares would lose a collapsed model's spread.
    around = [ops.sum(w * ops.square(p - mean[:, None]), 1)]
    if binary < len(tasks):
        around.append(ops.sum(w[binary:] * ops.square(y[binary:] - label_mean[binary:, None]), 1))
    spread, *label_spread = total(around)
    columns = {"label_mean": label_mean, "prediction_mean": mean, "prediction_std": ops.sqrt(spread / count)}
    found = {f"{what}/{task.name}": column[row] for what, column in columns.items() for row, task in enumerate(tasks)}
    if binary:
        auc = rest[-2] / rest[-1]
        found |= {f"batch_auc/{task.name}": auc[row] for row, task in enumerate(tasks[:binary])}
    if binary < len(tasks):
        rmse, label_std = ops.sqrt(rest[0] / count[binary:]), ops.sqrt(label_spread[0] / count[binary:])
        for row, task in enumerate(tasks[binary:]):
            found |= {f"rmse/{task.name}": rmse[row], f"label_std/{task.name}": label_std[row]}
    return found


def _of_one_length(rows: list[tuple[Task, Any, Any, Any]]) -> list[tuple[Task, Any, Any, Any]]:
    """Shorter ones are filled up with entries that weigh nothing."""
    lengths = [ops.shape(row[1])[0] for row in rows]
    longest = ops.max(ops.stack(lengths))
    missing = [[[0, longest - length]] for length in lengths]
    return [(row[0], *(ops.pad(one, more) for one in row[1:])) for row, more in zip(rows, missing, strict=True)]


def flat(label: Any, output: Any, weights: Any) -> tuple[Any, Any, Any]:
    """Labels, outputs and sample weights (1 if there are none, 0 where masked) as float32 [entries of the output]."""
    y = ops.reshape(ops.cast(label, "float32"), (-1,))
    p = ops.reshape(ops.cast(output, "float32"), (-1,))
    w = ops.ones_like(y) if weights is None else _spread(weights, output)
    mask = backend.mask(output)
    return y, p, w if mask is None else w * _spread(mask, output)


def _spread(weights: Any, output: Any) -> Any:
    """Sample weights, one per example, as one per output entry."""
    weights = ops.cast(weights, "float32")
    while len(weights.shape) < len(output.shape):
        weights = ops.expand_dims(weights, -1)
    return ops.reshape(ops.broadcast_to(weights, ops.shape(output)), (-1,))
