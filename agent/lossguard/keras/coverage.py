"""What is watched and what is not: `Watch.coverage()`.

Every weight of the model is in the report, with the reason if its updates are not measured. Tables that a TPU's
embedding engine updates are no variables of Keras: they are found by the objects that hold their configuration, and
named, since nobody can watch them from here.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

MEASURED: Final = "measured"
TREATED: Final = "treated, not measured"
UNWATCHED: Final = "left out by unwatched="
OTHER: Final = "no watched optimizer updates it"
FROZEN: Final = "not trainable"
EMPTY: Final = "has no entries"
ENGINE: Final = "a TPU's embedding engine updates it"


@dataclass(frozen=True, slots=True)
class Covered:
    """One weight of the model.

    Attributes:
        layer: its path.
        parameters: its size.
        how: one of the words above.
    """

    layer: str
    parameters: int
    how: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """All weights of a model, in its order. `print` shows a table.

    Attributes:
        weights: each in one line.
    """

    weights: tuple[Covered, ...]

    @property
    def parameters(self) -> int:
        """Parameters that an optimizer of Keras trains."""
        return sum(one.parameters for one in self.weights if one.how not in (FROZEN, ENGINE))

    @property
    def watched(self) -> float:
        """The share of them that is measured, 0 to 1."""
        measured = sum(one.parameters for one in self.weights if one.how == MEASURED)
        return measured / self.parameters if self.parameters else 1.0

    @property
    def unwatched(self) -> tuple[str, ...]:
        """The layers that are trained and not measured, tables of an embedding engine included."""
        return tuple(one.layer for one in self.weights if one.how not in (MEASURED, FROZEN, EMPTY))

    def __str__(self) -> str:
        width = max([len("layer"), *(len(one.layer) for one in self.weights)])
        lines = [f"{'layer':<{width}}  {'parameters':>12}  updates"]
        lines += [f"{one.layer:<{width}}  {one.parameters:>12,}  {one.how}" for one in self.weights]
        return "\n".join([*lines, f"{self.watched:.1%} of {self.parameters:,} trained parameters are measured"])


def cover(model: Any, optimizers: Sequence[Any], treatments: Sequence[Any], unwatched: Sequence[str]) -> Coverage:
    """What a watch covers.

    Args:
        model: None in a loop of one's own: then only the optimizers' variables are known.
        optimizers: those that are watched. One that is not built yet takes every trainable variable at its first step.
        treatments: that are applied.
        unwatched: patterns of layers that are not measured.
    """
    built = [optimizer for optimizer in optimizers if optimizer.built]
    taken = [variable for optimizer in built for variable in optimizer._trainable_variables]
    weights = [] if model is None else list(model.weights)
    if not built:
        taken = [] if model is None else list(model.trainable_variables)
    updated = {id(variable) for variable in taken}
    known = {id(variable) for variable in weights}
    trainable = updated if model is None else {id(variable) for variable in model.trainable_variables}
    found = []
    for variable in [*weights, *(one for one in taken if id(one) not in known)]:
        path = variable.path
        if math.prod(variable.shape) == 0:
            how = EMPTY
        elif id(variable) in updated:
            left_out = any(re.search(pattern, path) for pattern in unwatched)
            treated = any(treatment.applies_to(path) for treatment in treatments)
            how = MEASURED if not left_out else TREATED if treated else UNWATCHED
        else:
            how = OTHER if id(variable) in trainable else FROZEN
        found.append(Covered(path, math.prod(variable.shape), how))
    return Coverage((*found, *_engine_tables(model)))


def _engine_tables(model: Any) -> Iterator[Covered]:
    """Tables of TensorFlow's embedding engine that a layer of the model holds.

    By what they have in common (a list of `TableConfig`s): importing TensorFlow's TPU classes would not find those of
    other libraries.
    """
    layers = [] if model is None else list(getattr(model, "_flatten_layers", list)())
    seen = set()
    for layer in layers:
        for holder in (layer, *vars(layer).values()):
            tables = getattr(holder, "_table_config", None)
            if id(holder) in seen or not isinstance(tables, (list, tuple)):
                continue
            seen.add(id(holder))
            for table in tables:
                if hasattr(table, "vocabulary_size") and hasattr(table, "dim"):
                    yield Covered(f"{layer.name}/{table.name}", int(table.vocabulary_size) * int(table.dim), ENGINE)
