"""Steps that loss scaling leaves out one after the other.

A step that is left out is no update and has no frame: the next frame's `skipped_steps` tells of it. While no next one
comes, since every further step overflows, a warning in the log tells of it; where none came until the end, the
attempt's last event does (`lossguard.wire.chunk.AttemptStop`).
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final

from lossguard.guard import guarded
from lossguard.keras.scalars import SKIPPED
from lossguard.wire.frame import Frames

IN_A_ROW: Final = 64

_log = logging.getLogger("lossguard")


class LeftOut:
    """Of one attempt.

    Args:
        count: steps left out so far; None where nothing leaves any out. Asked between two executions.
    """

    def __init__(self, count: Callable[[], float | None]) -> None:
        self._count = count
        self._told = count() or 0.0
        self._next = IN_A_ROW

    def judge(self, frames: Frames) -> Mapping[str, float]:
        """Take note of what the last frame says."""
        if SKIPPED in frames.schema.scalars:
            column = frames.schema.scalars.index(SKIPPED)
            said = frames.scalars[frames.scalars_present[:, column], column]
            self._told = float(said[-1]) if len(said) else self._told
            self._next = IN_A_ROW
        return {}

    def look(self) -> None:
        """Warn of 64 steps without an update, and again of four times as many."""
        in_a_row = self._since_the_last_frame()
        if in_a_row >= self._next:
            self._next = 4 * in_a_row
            _log.warning("Lossguard: loss scaling has left out the last %d steps: the model is not updated", in_a_row)

    @guarded("LeftOut.end", 0)
    def end(self) -> int:
        """How many no frame tells of."""
        if in_a_row := max(0, self._since_the_last_frame()):
            _log.warning("Lossguard: loss scaling left out the last %d steps; no frame tells of them", in_a_row)
        return in_a_row

    def _since_the_last_frame(self) -> int:
        return round((self._count() or 0.0) - self._told)
