"""The attempts of a watched run, one behind the other: what opens the next one, and what ends it.

Guarantees. At most one is open. One that is open ends also at interpreter exit, with its last frame. What goes wrong in
here goes into the log, not into the training. A forked child has no attempt.
"""

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from lossguard.guard import guarded
from lossguard.keras.attempt import Attempt, Destination
from lossguard.keras.budget import Budget
from lossguard.keras.distribution import rank_of
from lossguard.keras.enclosure import leave, reason_of
from lossguard.keras.reaction import Reaction, Trainee
from lossguard.keras.saving import hear_no_more_of_orbax, hear_of_orbax
from lossguard.keras.scalars import StepScalars
from lossguard.keras.sharpness import SCALARS, Sharpness
from lossguard.keras.training import Training
from lossguard.wire.chunk import AttemptEnd, Checkpoint


class Attempts:
    """One run's, in this process.

    Args:
        destination: where they go.
        training: what is watched.
        scalars: of its steps.
        config: free keys that describe the run.
        full_every: every how many steps all stats are measured when nothing is throttled.
        budget: share of the training's time that watching may take; None measures no cost.
        fetch_steps, fetch_seconds: how often rows are taken off the device.
        sharpness: the probe; None for none.
        reaction: what is done about a divergence; None leaves it to people and the service.
    """

    def __init__(
        self,
        destination: Destination,
        training: Training,
        scalars: StepScalars,
        *,
        config: Mapping[str, Any],
        full_every: int,
        budget: float | None,
        fetch_steps: int,
        fetch_seconds: float,
        sharpness: Sharpness | None,
        reaction: Reaction | None,
    ) -> None:
        self._destination = destination
        self._training = training
        self._scalars = scalars
        self._user_config = dict(config)
        self._full_every, self._budget_share = full_every, budget
        self._fetch_steps, self._fetch_seconds = fetch_steps, fetch_seconds
        self._sharpness = sharpness
        self._reaction = reaction
        self._trainee = Trainee(training.updates, training.state, self._renew)
        self.current: Attempt | None = None
        self._failed = False
        self._thread = 0
        training.saved = self.saved

    @guarded("Attempts.open", None)
    def open(self, start_step: int | None = None) -> None:
        """Begin one.

        Args:
            start_step: updates so far; None asks the optimizer.
        """
        self._failed = True
        start_step = self._training.updates() if start_step is None else start_step
        self._training.rest(False)
        self._thread = threading.get_ident()
        sink = self._destination.open(rank_of(self._training.optimizers), start_step, self._config)
        if self._reaction is not None:
            sink = self._reaction.begin(sink, self._scalars.kinds, self._trainee)
        self.current = Attempt(
            sink,
            self._training.hooks,
            self._training.sync,
            start_step=start_step,
            fetch_steps=self._fetch_steps,
            fetch_seconds=self._fetch_seconds,
            budget=None if self._budget_share is None else Budget(self._budget_share, self._full_every, time.time()),
            beside=() if self._sharpness is None else SCALARS,
            jit=bool(getattr(self._training.model, "jit_compile", False)),
            skipped=lambda: self._scalars.skipped,
            holds_weights=lambda: self._training.holds_weights,
            tasks=tuple(self._scalars.kinds),
        )
        self._failed = False
        atexit.register(self._at_exit)
        hear_of_orbax(self.saved)

    def _config(self) -> dict[str, Any]:
        acts = {} if self._reaction is None else self._reaction.config
        return {**self._user_config, **acts, "budget": self._budget_share, **self._training.describe()}

    @property
    def wanted(self) -> bool:
        """Whether one should be opened. One that could not be is not tried again at every step, for each would wait."""
        return self.current is None and not self._failed

    def go_on(self) -> None:
        """Before the first step of a `fit`, which may not be the first one of the attempt, or of a `with` block."""
        self._failed = False
        if self.current is not None:
            self.current.go_on()

    def turn(self, steps: int) -> str:
        """Between two executions, `steps` after the last call: what is due now.

        Returns:
            Why the training must stop; empty if it need not.
        """
        attempt = self.current
        if attempt is None or attempt.forked:
            return ""
        self._probe(attempt, steps)
        if attempt.due(steps):
            # With detectors in this process no row may wait.
            self.flush(hold=self._reaction is None)
        return self._react(steps)

    @guarded("Attempts.probe", None)
    def _probe(self, attempt: Attempt, steps: int) -> None:
        if self._sharpness is not None and self._sharpness.due(steps):
            attempt.put(self._sharpness.probe())

    @guarded("Attempts.react", "")
    def _react(self, steps: int) -> str:
        return "" if self._reaction is None else self._reaction.turn(steps, self._trainee)

    @guarded("Attempts.flush", None)
    def flush(self, *, hold: bool = False, weigh: bool = False, last: bool = False) -> None:
        """Take the new rows off the device.

        Args:
            hold, weigh, last: see `Attempt.fetch`.
        """
        if self.current is not None and not self.current.forked:
            hear_of_orbax(self.saved)
            self.current.fetch(hold=hold, weigh=weigh, last=last)

    def epoch_ended(self, last: bool) -> None:
        """Between two epochs, where callbacks save the model, and behind a last one put other weights in.

        Args:
            last: whether training ends with it.
        """
        if self.current is not None and (last or self.current.worth_weighing):
            self.flush(weigh=True)

    @guarded("Attempts.checkpoint", None)
    def checkpoint(self, path: str | os.PathLike[str], step: int | None, has_slots: bool) -> None:
        """Say that the model was saved, see `Watch.checkpoint`."""
        if self.current is not None and not self.current.forked:
            now = self._training.updates()
            step = now if step is None else step
            self.flush(weigh=step == now)
            self.current.event(Checkpoint(step, time.time(), os.fspath(path), has_slots))

    @guarded("Attempts.saved", None)
    def saved(self) -> None:
        """The model is being saved: the frames of its steps shall not come to disk later than it."""
        if self.current is not None and not self.current.forked and threading.get_ident() == self._thread:
            self.flush(weigh=True)
            self.current.seal()

    @guarded("Attempts.close", None)
    def close(self, reason: AttemptEnd, timeout_seconds: float) -> None:
        """End the open one; calling it again does nothing."""
        attempt = self.current
        if attempt is None or attempt.forked:
            return
        leave(self._training.model)
        self.flush(weigh=True, last=True)
        self.current = None
        hear_no_more_of_orbax(self.saved)
        atexit.unregister(self._at_exit)
        self._training.rest(True)
        attempt.end(reason, timeout_seconds)

    def _renew(self, back: Callable[[], None]) -> None:
        self.flush(last=True)
        if self.current is None:
            return
        self.current.end("interrupted", 10.0)
        atexit.unregister(self._at_exit)
        try:
            back()
            if self._training.model is not None:
                # The epoch's averages would carry the divergence, NaN for ever, into other callbacks.
                self._training.model.reset_metrics()
        finally:
            self.open()

    def _at_exit(self) -> None:
        self.close(reason_of(getattr(sys, "last_type", None) or KeyboardInterrupt), 5.0)
