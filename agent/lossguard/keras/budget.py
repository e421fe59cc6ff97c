"""What watching costs its training, and how it stays below a budget.

Guarantees. `agent_cost` is the share of the time since the frames before that went into watching: the measuring on the
device, by its price (`lossguard.keras.price`) times how often it was done; the time of the training thread in this
package; the CPU time of the threads behind. Above the budget the full set is measured more rarely, 16 times as rarely
at most, and the bursts behind a jump are shortened alike. The gradient norms, which tell a gradient that is not finite,
are measured in every step whatever they cost. What is known and what is estimated: decision 0212.

Pure but for two clocks, which come in as arguments.
"""

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from lossguard.wire.frame import Frames
from lossguard.wire.stats import WEIGHT_NORM

COST: Final = "agent_cost"
STRETCHES: Final = (1, 2, 4, 8, 16)
BLOCKS: Final = 5
"""Decisions rest on the medians of so many blocks of frames: a pause of the training is no reason for anything."""
BACK: Final = 0.75
"""The full set comes back more often when that would cost at most this share of the budget: no swinging."""

_TASKS: Final = Path("/proc/self/task")


class StepPrice(NamedTuple):
    """Seconds on the device.

    Attributes:
        cheap: of what every step measures.
        rest: of what a full step measures beyond that.
    """

    cheap: float
    rest: float


class _Block(NamedTuple):
    step_seconds: float
    extra_share: float  # of steps that were full and not due, as it would be without any stretch
    host_share: float


class Budget:
    """One attempt's.

    Attributes:
        price: of this run's layers; None until the first step is compiled and it is known.
        stretch: the full set is due every `full_every` times so many steps. The thread behind decides.

    Args:
        share: of the training's time that watching may take, for example 0.01.
        full_every: every how many steps all stats are measured when nothing is throttled.
        seconds: when the attempt begins, Unix seconds.
        behind: CPU seconds so far of the threads behind.
        clock: seconds, for the training thread's own time.
    """

    def __init__(
        self,
        share: float,
        full_every: int,
        seconds: float,
        *,
        behind: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._share = share
        self._full_every = full_every
        self.price: StepPrice | None = None
        self.stretch = 1
        self._seconds = seconds
        self._behind = cpu_of_threads if behind is None else behind
        self._clock = clock
        self._behind_before = self._behind()
        self._host = 0.0
        self._host_before = 0.0
        self._blocks: deque[_Block] = deque(maxlen=BLOCKS)

    @contextmanager
    def training_thread(self) -> Iterator[None]:
        """What the training thread does in here is ours."""
        begin = self._clock()
        try:
            yield
        finally:
            self._host += self._clock() - begin

    def judge(self, frames: Frames) -> Mapping[str, float]:
        """What the steps of these frames cost; decides about the next ones.

        Args:
            frames: all since the last call; their last time is when they were handed over.
        """
        before, self._seconds = self._seconds, float(frames.times[-1])
        wall, steps = self._seconds - before, len(frames)
        host, behind = self._host, self._behind()
        ours = host - self._host_before + behind - self._behind_before
        self._host_before, self._behind_before = host, behind
        price = self.price
        if price is None or not wall > 0:
            return {}
        names = frames.schema.stats
        full = frames.stats_present[:, names.index(WEIGHT_NORM)] if WEIGHT_NORM in names else np.zeros(steps, np.bool_)
        due = (frames.steps - 1) % (self._full_every * self.stretch) == 0
        extra = float((full & ~due).mean()) * self.stretch
        self._blocks.append(_Block(wall / steps, extra, ours / wall))
        self._decide(price)
        return {COST: (steps * price.cheap + float(full.sum()) * price.rest + ours) / wall}

    def _decide(self, price: StepPrice) -> None:
        # The first block waited for the compiler.
        if len(self._blocks) < 2:
            return
        step_seconds = statistics.median(block.step_seconds for block in self._blocks)
        host_share = statistics.median(block.host_share for block in self._blocks)
        # Bursts stretch as the cadence does. The block that was under way at a change counts wrongly, the median not.
        bursts = statistics.median(block.extra_share for block in self._blocks)
        full_share = min(1.0, 1.0 / self._full_every + bursts)

        def share_at(stretch: int) -> float:
            return (price.cheap + price.rest * full_share / stretch) / step_seconds + host_share

        fitting = next((one for one in STRETCHES if share_at(one) <= self._share), STRETCHES[-1])
        if fitting > self.stretch or share_at(fitting) <= BACK * self._share:
            self.stretch = fitting


def checked_share(budget: float | None) -> float | None:
    """The argument `budget` of `Watch`.

    Raises:
        ValueError: it is no share.
    """
    if budget is None:
        return None
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget < 1:
        raise ValueError(f"budget: must be a share of the training's time between 0 and 1, or None, got {budget!r}")
    return float(budget)


def cpu_of_threads() -> float:
    """CPU seconds that this package's threads of this process have taken; 0 where the system does not say (not Linux).

    From the files of the system and not by `pthread_getcpuclockid`, which may crash on a thread that has just ended.
    """
    total = 0
    for thread in threading.enumerate():
        if thread.name.startswith("lossguard-"):
            try:
                total += int((_TASKS / str(thread.native_id) / "schedstat").read_text().split()[0])
            except (OSError, ValueError, IndexError):
                continue
    return total * 1e-9
