"""When the steps of one fetch ended.

Nothing in a compiled step has a clock, and rows are taken many steps at once. What the training thread knows is when
an execution of one or several steps returned. The times of the first and the last execution since the last fetch say
how long a step takes; a pause before the first of them (another epoch's validation, a checkpoint) does not count.
"""

import time
from typing import Final

import numpy as np

from lossguard.wire.frame import Floats64

GRID: Final = 1024.0
"""Times are whole 1/1024ths of a second: finer, their last bits would be noise that no codec can make smaller."""


class Pace:
    """The clock of one attempt, asked between executions by the training thread."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._steps = self._taken = 0
        self._last = self._before = time.monotonic()
        self._step_seconds = 0.0
        self._fresh = True

    @property
    def waiting(self) -> int:
        """Steps since the last `cut`."""
        return self._steps

    def passed(self, steps: int) -> float:
        """Note an execution of so many steps that has just returned; the monotonic seconds of now."""
        if not self._steps:
            self._before = self._last
        self._steps += steps
        self._last = time.monotonic()
        if self._first is None:
            self._first = self._steps, self._last
        return self._last

    def cut(self) -> None:
        """End the stretch of steps whose rows are taken now.

        Where it had only one execution, its steps share the time since the one before. In the first of all that would
        be the compiler's time, and they all end when it did.
        """
        if self._first is None:
            return
        steps, seconds = self._steps - self._first[0], self._last - self._first[1]
        if not steps and not self._fresh:
            steps, seconds = self._steps, self._last - self._before
        self._step_seconds = seconds / steps if steps else 0.0
        self._first, self._taken, self._steps, self._fresh = None, self._steps, 0, False

    def times(self, count: int) -> Floats64:
        """When the newest `count` steps before the last `cut` ended.

        Returns:
            Unix seconds, float64 [count], never falling; a step of an earlier stretch ended when that did.
        """
        back = np.arange(count - 1, -1, -1)
        ended = np.where(back < self._taken, self._last - self._step_seconds * back, self._before)
        ended = np.maximum(ended, self._before)
        now, wall = time.monotonic(), time.time()
        return np.floor((wall - (now - ended)) * GRID) / GRID
