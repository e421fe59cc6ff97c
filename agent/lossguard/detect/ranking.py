"""Who moved first, and how far: the layers and tasks of one episode.

A layer stands in it from where its movement leads into the onset, or from the frame within the next ten at which it
left its baseline; a task from where its loss did. Heights are the largest seen so far, in scales of each one's own
baseline, so that a layer can be compared with a task.
"""

from collections.abc import Iterable

import numpy as np

from lossguard.detect import voices
from lossguard.detect.record import Moved
from lossguard.wire.frame import Floats64

KEPT = 8
"""Layers in a ranking, and tasks: in a blow-up all layers move within a few frames, and only the first say where."""


def add(ranking: tuple[Moved, ...], found: Iterable[Moved]) -> tuple[Moved, ...]:
    """The ranking with what was found: who is in it keeps the first step and takes the larger height.

    >>> ranking = add((), [("layer", "a", 7, 9.0), ("layer", "b", 6, 8.0)])
    >>> add(ranking, [("layer", "a", 9, 50.0), ("task", "click", 8, 20.0)])
    (('layer', 'b', 6, 8.0), ('layer', 'a', 7, 50.0), ('task', 'click', 8, 20.0))
    """
    known = {(what, name): (step, height) for what, name, step, height in ranking}
    fresh: list[Moved] = []
    for what, name, step, height in found:
        if (what, name) in known:
            first, before = known[what, name]
            known[what, name] = first, max(before, height)
        else:
            fresh.append((what, name, step, height))
    if not fresh and len(known) == len(ranking):
        return tuple((what, name, *known[what, name]) for what, name, _, _ in ranking)
    everyone: list[Moved] = [(what, name, *known[what, name]) for what, name, _, _ in ranking]
    order = sorted([*everyone, *fresh], key=lambda one: (one[2], -one[3], one[0], one[1]))
    layers, tasks = ([one for one in order if one[0] == what][:KEPT] for what in ("layer", "task"))
    return tuple(one for one in order if one in layers or one in tasks)


def tasks(names: tuple[str, ...], hit: Floats64, height: Floats64, steps: dict[int, int], now: int) -> list[Moved]:
    """The losses that were hit.

    Args:
        names: the losses.
        hit: which of them were hit.
        height: scales above the frozen centre now; NaN where unknown.
        steps: since when, where that is known.
        now: the step.
    """
    found: list[Moved] = []
    for i in np.flatnonzero(hit).tolist():
        tall = float(height[i])
        found.append(("task", voices.task_of(names[i]) or "", steps.get(i, now), tall if tall == tall else 0.0))
    return found
