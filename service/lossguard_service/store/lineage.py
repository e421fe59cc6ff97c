"""Which frames of which attempts make up a run: pure, no SQL.

A run's lineage is what its present model was trained on. Attempts count in the order in which they arrived; an attempt
that started at step s supersedes what earlier attempts did after s. An attempt takes part once its chunk 0, which says
where it started, is here, and with its chunks up to the first one missing.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attempt:
    """One uninterrupted stretch of a run.

    Attributes:
        number: 1, 2, ... in order of arrival.
        key: 32 hex digits drawn by the trainer.
        start_step: the step of the checkpoint it started from; None until its chunk 0 is here.
        started, stopped: Unix seconds by the trainer's clock; None where unknown.
        stop_reason: "finished", "interrupted", "failed"; None while it runs and after a kill.
        next_index: the first chunk that is still missing.
        last_step: the last step in the chunks before it; None before the first frame.
        skipped_steps: steps after its last frame that loss scaling left out, as it said when it stopped.
        superseded_after: steps beyond this one are superseded by a later attempt; None if none are.
    """

    number: int
    key: str
    start_step: int | None
    started: float | None
    stopped: float | None
    stop_reason: str | None
    next_index: int
    last_step: int | None
    skipped_steps: int = 0
    superseded_after: int | None = None


@dataclass(frozen=True, slots=True)
class Stretch:
    """An attempt's part in the lineage.

    Attributes:
        attempt: its number.
        start_step: where it started.
        next_index: its chunks 0 to next_index - 1 take part.
        limit: frames beyond this step do not; None if no later attempt says so.
    """

    attempt: int
    start_step: int
    next_index: int
    limit: int | None

    def holds(self, step: int) -> bool:
        """True if a frame at `step` belongs to the lineage."""
        return self.limit is None or step <= self.limit


def limits(attempts: Iterable[Attempt]) -> dict[int, int | None]:
    """For each attempt's number, the last step of it that no later attempt supersedes; None if there is none."""
    result: dict[int, int | None] = {}
    limit: int | None = None
    for attempt in sorted(attempts, key=lambda attempt: attempt.number, reverse=True):
        result[attempt.number] = limit
        if attempt.start_step is not None:
            limit = attempt.start_step if limit is None else min(limit, attempt.start_step)
    return result


def lineage(attempts: Iterable[Attempt]) -> tuple[Stretch, ...]:
    """The stretches in order; an attempt of which nothing counts any more is left out.

    >>> first = Attempt(1, "a" * 32, 0, None, None, None, next_index=4, last_step=400)
    >>> second = Attempt(2, "b" * 32, 250, None, None, None, next_index=1, last_step=300)
    >>> [(part.attempt, part.limit) for part in lineage([first, second])]
    [(1, 250), (2, None)]
    """
    attempts = sorted(attempts, key=lambda attempt: attempt.number)
    limit = limits(attempts)
    return tuple(
        Stretch(attempt.number, attempt.start_step, attempt.next_index, limit[attempt.number])
        for attempt in attempts
        if attempt.start_step is not None
        and attempt.next_index > 0
        and ((last := limit[attempt.number]) is None or attempt.start_step < last)
    )
