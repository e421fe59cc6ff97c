"""How far a run's lineage has been judged: pure values.

A detector state is a function of its position: the chunks consumed, stretch by stretch. Chunks never change, so a
state from another replica's time, or from a snapshot, is good for ever, as long as its position is a beginning of the
lineage as it is now. That is the whole cache protocol; there is nothing to invalidate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lossguard_service.store.lineage import Stretch


@dataclass(frozen=True, slots=True)
class Consumed:
    """What was judged of one stretch.

    Attributes:
        attempt, start_step: which stretch.
        next_index: its chunks before this one are consumed.
        through: no frame of it at or before this step is left to judge; None before its first frame.
    """

    attempt: int
    start_step: int
    next_index: int
    through: int | None


Position = tuple[Consumed, ...]


def is_beginning(position: Position, plan: Sequence[Stretch]) -> bool:
    """True if judging could go on from `position` and end where judging all of `plan` anew would."""
    if len(position) > len(plan):
        return False
    for place, (consumed, stretch) in enumerate(zip(position, plan, strict=False)):
        if (consumed.attempt, consumed.start_step) != (stretch.attempt, stretch.start_step):
            return False
        if consumed.through is not None and not stretch.holds(consumed.through):
            return False
        if place == len(position) - 1:
            return consumed.next_index <= stretch.next_index
        done = consumed.through is not None and consumed.through == stretch.limit
        if not done and consumed.next_index != stretch.next_index:
            return False
    return True


def to_document(position: Position) -> list[list[int | None]]:
    """The position as JSON holds it."""
    return [[one.attempt, one.start_step, one.next_index, one.through] for one in position]


def from_document(document: Any) -> Position:
    """The inverse of `to_document`."""
    return tuple(Consumed(*one) for one in document)
