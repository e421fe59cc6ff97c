"""One open attempt: from the rings on the device to where its frames go, and what of that is due when.

Guarantees. An attempt's steps are fetched once each and in order; what the ring no longer holds is counted as dropped.
A forked child has none of it: neither the journal nor the threads behind the device, for which it might wait for ever.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lossguard import drops
from lossguard.guard import guarded
from lossguard.keras.beside import Beside
from lossguard.keras.budget import COST, Budget
from lossguard.keras.fetch import Fetcher, Sink, Snapshot
from lossguard.keras.leftout import LeftOut
from lossguard.keras.optimizer import Hook
from lossguard.keras.pace import Pace
from lossguard.keras.price import clock_of
from lossguard.keras.unheard import say_of_unheard
from lossguard.wire.chunk import AttemptEnd, Event
from lossguard.worker import Worker

_log = logging.getLogger("lossguard")
_UNWEIGHED: Final[tuple[Any, ...]] = ()


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a run's attempts go.

    Attributes:
        journal, project, run, service, token: as `Watch` takes them.
        open_recorder: makes the chief's sink, with `Recorder`'s arguments.
    """

    journal: Path
    project: str
    run: str
    service: str | None
    token: str | None
    open_recorder: Callable[..., Sink]

    def open(self, rank: int, start_step: int, config: Callable[[], Mapping[str, Any]]) -> Sink:
        """A journal on the chief (rank 0), on every other worker its sign of life.

        Args:
            rank: of this process.
            start_step: updates so far.
            config: describes the run; asked on the chief alone.
        """
        place, service, token = (self.journal, self.project, self.run), self.service, self.token
        if rank:
            return Worker(*place, rank, start_step=start_step, service=service, token=token)
        config_now = dict(config())
        return self.open_recorder(*place, start_step=start_step, config=config_now, service=service, token=token)


class Attempt:
    """An attempt that has begun. Every method is called between two executions, by the training thread.

    Args:
        sink: where frames and events go.
        hooks: the optimizers' hooks, of whose rings the rows are taken.
        sync: lets variables have the values of the last step.
        start_step: updates so far.
        fetch_steps, fetch_seconds: how often rows are taken.
        budget: share of the training's time, with its cadence; None measures no cost.
        beside: scalars that will be measured beside the step.
        jit: whether the step is compiled by XLA.
        skipped: steps that loss scaling has left out so far; None where there is none.
        holds_weights: whether variables have, once synced, the weights of the last step.
        tasks: the names of those that the steps should tell of.

    Attributes:
        sink: where frames and events go.
    """

    def __init__(
        self,
        sink: Sink,
        hooks: Sequence[Hook],
        sync: Callable[[], None],
        *,
        start_step: int,
        fetch_steps: int,
        fetch_seconds: float,
        budget: Budget | None = None,
        beside: Sequence[str] = (),
        jit: bool = False,
        skipped: Callable[[], float | None] = lambda: None,
        holds_weights: Callable[[], bool] = lambda: True,
        tasks: Sequence[str] = (),
    ) -> None:
        self.sink = sink
        self._hooks = hooks
        self._sync = sync
        self._fetch_steps, self._fetch_seconds = fetch_steps, fetch_seconds
        self._budget = budget
        self._jit = jit
        measured = [] if budget is None else [COST]
        self._left_out = LeftOut(skipped)
        judges = [self._left_out.judge] if budget is None else [self._left_out.judge, budget.judge]
        self._beside = Beside(sink, (*measured, *beside), judges)
        self._fetcher = Fetcher(self._beside)
        self._read_step = start_step
        self._held_step = start_step
        self._holds_weights = holds_weights
        self._steps_unweighed = 0
        self._last_fetch = time.monotonic()
        self._pace = Pace()
        self._slow = False
        self._said_so = False
        self._tasks: Sequence[str] | None = tasks
        self._process = os.getpid()

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process in which the attempt began."""
        return os.getpid() != self._process

    @property
    def worth_weighing(self) -> bool:
        """Whether so many steps were taken since the weights' norms were that the pass over them costs nothing."""
        return self._steps_unweighed >= self._fetch_steps

    def go_on(self) -> None:
        """Training begins again after a pause, in which no row waited."""
        self._last_fetch = time.monotonic()

    def due(self, steps: int) -> bool:
        """Whether rows should be taken now, `steps` after the last question."""
        self._steps_unweighed += steps
        late = self._pace.passed(steps) - self._last_fetch >= self._fetch_seconds
        self._slow = late and self._pace.waiting == steps
        return late or self._pace.waiting >= self._fetch_steps

    def fetch(self, *, hold: bool = False, weigh: bool = False, last: bool = False) -> None:
        """Take the new rows of all rings off the device.

        Args:
            hold: leave the last one for the next time: training may end with it, or be saved, and then its frame says
                what the weights' norms are. Where one execution takes longer than rows may wait they are taken at once.
            weigh: take the weights' norms with the last row.
            last: whether the attempt ends with it, so that what its steps cost is of no use any more.
        """
        if any(hook.ring is None for hook in self._hooks):
            self._without_rings()
            return
        self._say_of_no_layers()
        if self._tasks is not None:
            say_of_unheard(
                [name for hook in self._hooks if hook.ring for name in hook.ring.layout.scalars], self._tasks
            )
            self._tasks = None
        if self._budget is None:
            self._take(hold, weigh)
            return
        with self._budget.training_thread():
            self._take(hold, weigh)
            if not last:
                self._keep_to(self._budget)

    def _take(self, hold: bool, weigh: bool) -> None:
        self._last_fetch = time.monotonic()
        self._pace.cut()
        self._sync()
        hold, weigh = hold and not self._slow, weigh or (hold and self._slow)
        step = min(hook.step for hook in self._hooks)
        # Not twice: there may be no further update, such as where loss scaling leaves every step out.
        last = step - (hold and step > self._held_step)
        self._held_step = step
        first = self._read_step + 1
        room = min(hook.rows for hook in self._hooks)
        if last - first + 1 > room:
            self.sink.drop(drops.RING_OVERRUN, last - first + 1 - room)
            first = last - room + 1
        if last < first:
            self._left_out.look()
            return
        parts = tuple((hook.ring.layout, hook.ring.snapshot(first, last)) for hook in self._hooks if hook.ring)
        after = self._weigh() if weigh and self._holds_weights() else _UNWEIGHED
        if after:
            self._steps_unweighed = 0
        self._fetcher.hand_over(Snapshot(first, self._pace.times(last - first + 1), parts, after))
        self._read_step = last

    def _without_rings(self) -> None:
        self._sync()
        self._left_out.look()
        if not self._said_so and max(hook.step for hook in self._hooks) > self._read_step:
            self._said_so = True
            _log.warning(
                "Lossguard: updates are made by a step that was compiled before its optimizer was watched, and are not "
                "recorded; make the tf.function after watch.wrap"
            )

    def _say_of_no_layers(self) -> None:
        if not self._said_so and not any(hook.ring.layout.layers for hook in self._hooks if hook.ring):
            self._said_so = True
            _log.warning(
                "Lossguard: no layer is watched (unwatched= leaves all of them out): the scalars of each step are "
                "recorded, and nothing about layers"
            )

    @guarded("Attempt.weigh", _UNWEIGHED)
    def _weigh(self) -> tuple[Any, ...]:
        return tuple(hook.weigh() for hook in self._hooks)

    def _keep_to(self, budget: Budget) -> None:
        if budget.price is None:
            clock = clock_of(self._jit)
            clock.begun = clock.begun or self._fetcher.run(clock.prepare)
            if clock.ready:
                budget.price = clock.price([count for hook in self._hooks for count in hook.entries])
        for hook in self._hooks:
            hook.stretch(budget.stretch)

    def put(self, values: Mapping[str, float]) -> None:
        """Say values of the step that has just ended, measured beside it."""
        self._beside.put(self._hooks[0].step, values)

    def event(self, event: Event) -> None:
        """Hand an event on, behind the frames of the steps before it."""
        self._fetcher.event(event)

    def seal(self) -> None:
        """Let the frames fetched so far come to disk soon."""
        self._fetcher.seal()

    def end(self, reason: AttemptEnd, timeout_seconds: float) -> None:
        """Record what was fetched, and end the attempt."""
        self._fetcher.close(timeout_seconds)
        self.sink.close(reason, timeout_seconds, skipped_steps=self._left_out.end())
