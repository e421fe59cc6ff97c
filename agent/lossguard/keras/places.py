"""Where a task's part stands in labels, outputs and sample weights: where Keras itself finds it (its `CompileLoss`).

Outputs are one tensor, a sequence or a dictionary, and labels need not have the same form. Keras lays a sequence of
labels out as the outputs are, a dictionary in the order of its sorted keys; and where some outputs have no loss, labels
may be there for the others alone.
"""

from collections.abc import Collection, Mapping
from typing import Any


def laid_out(structure: Any, outputs: Any, keys: Collection[str | int | None], places: Collection[int]) -> Any:
    """Labels or weights, of which a sequence is laid out as the outputs are.

    Args:
        structure: labels or sample weights.
        outputs: of the model.
        keys, places: of all tasks.

    >>> laid_out([1, 2], {"play": 0, "click": 0}, ["play", "click"], [0, 1])
    {'click': 1, 'play': 2}
    >>> laid_out([1], [0, 0], [1], [1])
    [None, 1]
    """
    if not isinstance(structure, (list, tuple)):
        return structure
    if isinstance(outputs, Mapping):
        names = outputs if len(structure) == len(outputs) else [key for key in keys if isinstance(key, str)]
        return dict(zip(sorted(names), structure, strict=False))
    if isinstance(outputs, (list, tuple)) and len(structure) < len(outputs):
        whole: list[Any] = [None] * len(outputs)
        for place, one in zip(sorted(places), structure, strict=False):
            whole[place] = one
        return whole
    return structure


def part_of(structure: Any, key: str | int | None, place: int, name: str) -> Any:
    """A task's part of labels, outputs or sample weights; None if it is not there.

    Args:
        structure: of all tasks.
        key: a dictionary's key, a position, or None for the only output.
        place: where it stands in a sequence.
        name: of the task.

    >>> part_of({"click": 1, "play": 2}, 1, 1, "output_2"), part_of([1, 2], "play", 1, "play")
    (2, 2)
    """
    if isinstance(structure, Mapping):
        if key in structure:
            return structure[key]
        if key is None:
            return next(iter(structure.values())) if len(structure) == 1 else None
        if isinstance(key, int) and name not in structure:
            return structure[sorted(structure)[key]] if key < len(structure) else None
        return structure.get(name)
    if isinstance(structure, (list, tuple)):
        if key is None:
            return structure[0] if len(structure) == 1 else None
        return structure[place] if place < len(structure) else None
    return structure
