"""What is kept of an incident, from which the `Incident` with its sentences is made when somebody asks."""

import math
from dataclasses import dataclass
from typing import Literal

from lossguard.wire.incident import IncidentKind

Moved = tuple[Literal["layer", "task"], str, int, float]
"""Who moved: what it is, its name, the step, and how tall at most, in scales."""


@dataclass(slots=True)
class Record:
    """The facts of one incident.

    Attributes:
        number: see `lossguard.wire.incident.Incident`, as for all fields that have its names.
        kind: what it is now.
        onset_step: first step.
        detected_step: flagged at.
        declared_full_step: first called full at.
        end_step: first step after it.
        peak_step: step of its worst value.
        peak: in robust deviations.
        residual: against the frozen baseline.
        first_signal_step: when a layer or scalar left its own baseline.
        first_layer: the layer that did.
        tasks: tasks hit, the first one first.
        reason: why it was declared what it is: the key of a sentence in `words`.
        subject: the task, scalar or layer that the reason is about.
        value: the number that goes into the sentence.
        movers: what moved, as `ranking` orders it.
        learning_rate: the factor by which the learning rate rose shortly before; 1 where it did not.
    """

    number: int
    kind: IncidentKind
    onset_step: int
    detected_step: int
    declared_full_step: int | None = None
    end_step: int | None = None
    peak_step: int = 0
    peak: float = 0.0
    residual: float = 0.0
    first_signal_step: int | None = None
    first_layer: str | None = None
    tasks: tuple[str, ...] = ()
    reason: str = "jump"
    subject: str = "loss"
    value: float = math.nan
    learning_rate: float = 1.0
    movers: tuple[Moved, ...] = ()
